"""The README is true: its commands parse, its tree is the tree, its Python runs, CI runs its test command."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from featurestore.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith("slotstore ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_understood(line):
    name, *args = shlex.split(line, comments=True)[1:]
    parent = click.Context(cli)
    command = cli.get_command(parent, name)
    while isinstance(command, click.Group):
        command, args = command.get_command(parent, args[0]), args[1:]
    command.make_context(name, args, parent=parent)


def test_the_commands_of_the_readme_are_found():
    assert len(COMMANDS) > 10


def test_the_tree_names_every_file_and_no_other():
    tree = README[README.index("## What is where") : README.index("## Words")]
    named = {re.split(r"\s{2,}", line.strip())[0] for line in tree.splitlines() if "  " in line}
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    modules = {
        Path(path).name
        for path in listed.stdout.split()
        if path.startswith(("featurestore/", "pipelines/", "training/", "mlflow/")) and (ROOT / path).exists()
    } - {"__init__.py", "py.typed"}
    assert {name for name in named if not name.endswith("/") and name != "```"} == modules


def test_ci_finds_the_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    extract = next(line for line in script.splitlines() if line.startswith("command="))
    found = subprocess.run(
        ["bash", "-c", f'{extract}; echo "$command"'], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.strip().endswith("-m pytest")
    assert len(found.stdout.strip().splitlines()) == 1


def test_the_python_of_the_readme_runs(tiny_store):
    code = next(block for kind, block in BLOCKS if kind == "python")
    names = {}
    exec(
        code.replace('"store"', repr(str(tiny_store))).rstrip() + "\n    rows = reader.read_all().num_rows\n",
        names,
    )
    assert names["table"].num_rows == 10
    assert 15_900 < names["rows"] <= 16_000
