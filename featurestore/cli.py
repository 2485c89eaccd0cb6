"""The `slotstore` command. Other packages' commands are loaded by name when they are called."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from rich.console import Console
from rich.text import Text

from featurestore.errors import SlotstoreError, did_you_mean

COMMANDS = {
    "run": ("featurestore.run_command:command", "Ingest, split, train and show the result, in one go."),
    "download": ("pipelines.download:command", "Fetch a MovieLens data set."),
    "generate": ("pipelines.generate_command:command", "Make MovieLens-shaped files of any size."),
    "ingest": ("pipelines.ingest:command", "Turn raw files into a snapshot of slots."),
    "reslot": ("featurestore.reslot_command:command", "Make a snapshot for another table size."),
    "query": ("featurestore.query_command:query", "Ask a snapshot in SQL."),
    "features": ("featurestore.query_command:features", "Show the features of a snapshot."),
    "splits": ("featurestore.query_command:splits", "Show the splits of a snapshot."),
    "collisions": ("featurestore.collisions_command:collisions_command", "Show which values share slots."),
    "who": ("featurestore.collisions_command:who_command", "Show which values have a slot."),
    "slots": ("featurestore.collisions_command:slots_command", "Show the slots of values, seen or not."),
    "snapshots": ("featurestore.snapshots_command:snapshots", "List, verify, compare and remove snapshots."),
    "cache": ("featurestore.cache_command:command", "Show or remove the copies that trainings have made."),
    "train": ("training.train:command", "Train a model on a snapshot."),
    "advise": ("training.comparison.advise_command:command", "Advise on the table for a number of bytes."),
    "compare": ("training.comparison.command:command", "Compare memory layouts at equal bytes."),
    "utilization": ("training.utilization.command:command", "Show how a trained table is used."),
    "prune-table": (
        "training.utilization.prune_command:command",
        "Write a trained model without the rows that no value has.",
    ),
    "report": ("training.report.command:command", "Write a page about a snapshot and a run."),
    "predict": ("training.predictor:command", "Predict from raw feature values."),
}
EXTRAS = {
    "apache_beam": "ingest",
    "mlflow": "track",
    "matplotlib": "track",
    "altair": "report",
    "jinja2": "report",
    "vl_convert": "report",
}


def load(name: str) -> click.Command:
    """Import and return the command called ``name``."""
    module, attribute = COMMANDS[name][0].split(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is called: `query` loads neither Beam nor torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of a first session."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import and return a command."""
        return load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command where one is unknown."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slotstore")
def cli() -> None:
    """Feature store for unified embeddings: slots computed once, then served to training and SQL.

    Start with `slotstore run`, which does everything once on made-up data.
    """


def run_command(command: click.Command, args: Sequence[str] | None = None) -> None:
    """Run a command as a program: a user's mistake becomes a message and an exit status, not a traceback."""
    try:
        result = command.main(args=None if args is None else list(args), standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # head or less has seen enough; the interpreter's own flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except click.Abort:
        _fail("aborted", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SlotstoreError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        _fail(f"{error.name} is not installed: pip install 'slotstore[{EXTRAS[error.name]}]'", 1)
    if isinstance(result, int):  # what ctx.exit() was called with
        sys.exit(result)


def _fail(message: str, status: int) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error:", "bold red") + Text(f" {message}", "default"))
    sys.exit(status)


def main() -> None:
    """Entry point of `slotstore`."""
    run_command(cli)
