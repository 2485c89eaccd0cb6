import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli import COMMANDS, cli, load, run_command
from featurestore.hashing import default_seed, slot
from featurestore.output import TABLE_ROWS
from featurestore.snapshot import open_snapshot


@dataclass
class Done:
    status: int
    out: str
    err: str
    raw: bytes


@pytest.fixture
def slotstore(capsysbinary):
    """A function that runs the command in this process: its exit status, stdout and stderr."""

    def run(*args):
        try:
            run_command(cli, [str(arg) for arg in args])
            status = 0
        except SystemExit as done:
            status = done.code
        raw, err = capsysbinary.readouterr()
        return Done(status, raw.decode(errors="replace"), err.decode(), raw)

    return run


def process(*args, **options):
    program = "from featurestore.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True, **options
    )


def assert_mistake(done, status, *said):
    """A message that begins the first line, no traceback, nothing on stdout."""
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    for text in said:
        assert text in done.err


# query

QUESTION = (
    "SELECT user_id, title, rating, 1.5 AS exact, NULL AS nothing FROM examples "
    "WHERE user_id = '1' ORDER BY ALL LIMIT 3"
)


def test_query_csv(slotstore, tiny_store):
    done = slotstore("query", QUESTION, "--store", tiny_store, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["user_id"] for row in rows] == ["1", "1", "1"]
    assert list(rows[0]) == ["user_id", "title", "rating", "exact", "nothing"]
    assert rows[0]["exact"] == "1.5"
    assert rows[0]["nothing"] == ""


def test_query_json(slotstore, tiny_store):
    done = slotstore("query", QUESTION, "--store", tiny_store, "--format", "json")
    rows = json.loads(done.out)
    assert len(rows) == 3
    assert rows[0]["exact"] == 1.5
    assert rows[0]["nothing"] is None
    assert isinstance(rows[0]["rating"], float)


def test_query_table(slotstore, tiny_store):
    done = slotstore("query", QUESTION, "--store", tiny_store)
    header, *lines = done.out.splitlines()
    assert header.split() == ["user_id", "title", "rating", "exact", "nothing"]
    assert len(lines) == 3
    assert all(line.startswith("1 ") for line in lines)


@pytest.mark.parametrize("form", ["csv", "json", "parquet", "table"])
def test_query_into_a_file_is_what_stdout_gets(slotstore, tiny_store, tmp_path, form):
    options = ["--store", tiny_store, "--format", form]
    piped = slotstore("query", QUESTION, *options)
    output = tmp_path / "out"
    output.write_text("an older, longer answer" * 100)
    done = slotstore("query", QUESTION, *options, "--output", output)
    assert (done.status, done.out) == (0, "")
    if form == "parquet":
        assert pq.read_table(output).equals(pq.read_table(io.BytesIO(piped.raw)))
        assert pq.read_table(output).column_names == ["user_id", "title", "rating", "exact", "nothing"]
    else:
        assert output.read_bytes() == piped.raw
    assert list(tmp_path.iterdir()) == [output]


def test_query_streams_all_rows_but_to_a_person(slotstore, tiny_store):
    table = slotstore("query", "FROM range(1000)", "--store", tiny_store).out.splitlines()
    assert len(table) == TABLE_ROWS + 2
    assert table[-1] == f"the first {TABLE_ROWS} rows; --format csv, json or parquet gives all"
    exact = slotstore("query", f"FROM range({TABLE_ROWS})", "--store", tiny_store).out.splitlines()
    assert len(exact) == TABLE_ROWS + 1
    rows = slotstore("query", "FROM range(1000)", "--store", tiny_store, "--format", "csv").out.splitlines()
    assert len(rows) == 1001


@pytest.mark.parametrize(("form", "out"), [("table", "user_id\n"), ("csv", '"user_id"\n'), ("json", "[]\n")])
def test_no_rows(slotstore, tiny_store, form, out):
    done = slotstore(
        "query", "SELECT user_id FROM examples WHERE false", "--store", tiny_store, "--format", form
    )
    assert (done.status, done.out) == (0, out)


def test_no_rows_in_parquet(slotstore, tiny_store):
    done = slotstore(
        "query", "SELECT user_id FROM train WHERE false", "--store", tiny_store, "--format", "parquet"
    )
    table = pq.read_table(io.BytesIO(done.raw))
    assert (table.num_rows, table.column_names) == (0, ["user_id"])


@pytest.mark.parametrize("sql", ["CREATE TABLE mine (i INT)", "SET threads = 1", ""])
@pytest.mark.parametrize(("form", "out"), [("table", ""), ("csv", ""), ("json", "[]\n")])
def test_statements_that_return_nothing(slotstore, tiny_store, sql, form, out):
    done = slotstore("query", sql, "--store", tiny_store, "--format", form)
    assert (done.status, done.out, done.err) == (0, out, "")


def test_json_is_json_whatever_the_type(slotstore, tiny_store):
    sql = (
        "SELECT sum(i) AS huge, 'nan'::DOUBLE AS nan, [1.5, 'inf'::DOUBLE] AS list, "
        "{'a': DATE '2000-12-31'} AS struct, 'é\"' AS text, '\\x01'::BLOB AS bytes, true AS yes, "
        "1 AS twice, 2 AS twice FROM range(3) AS t(i)"
    )
    done = slotstore("query", sql, "--store", tiny_store, "--format", "json")
    assert json.loads(done.out, parse_constant=pytest.fail) == [
        {
            "huge": 3, "nan": None, "list": [1.5, None], "struct": {"a": "2000-12-31"}, "text": 'é"',
            "bytes": "01", "yes": True, "twice": 1, "twice_1": 2,
        }
    ]  # fmt: skip


def test_csv_of_nested_columns(slotstore, tiny_store):
    done = slotstore(
        "query",
        "SELECT [1, 2] AS l, {'a': 'é'} AS s, NULL::INT[] AS n",
        "--store",
        tiny_store,
        "--format",
        "csv",
    )
    assert list(csv.reader(io.StringIO(done.out))) == [["l", "s", "n"], ["[1, 2]", '{"a": "é"}', "null"]]


def test_a_table_shows_text_as_it_is(slotstore, tiny_store):
    sql = "SELECT '[bold]x[/]' AS \"[red]a\", ':smile:' AS b, true AS c, 978300000.5 AS d, NULL AS e"
    lines = slotstore("query", sql, "--store", tiny_store).out.splitlines()
    assert [line.split() for line in lines] == [
        ["[red]a", "b", "c", "d", "e"],
        ["[bold]x[/]", ":smile:", "true", "978300000.5"],
    ]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_type_that_the_format_lacks(slotstore, tiny_store, tmp_path, form):
    options = ["--store", tiny_store, "--format", form, "--output", tmp_path / "out"]
    done = slotstore("query", "SELECT INTERVAL 1 DAY AS i", *options)
    assert_mistake(done, 6, f"the result cannot be written as {form}", "Cast the column")
    assert list(tmp_path.iterdir()) == []


def test_a_query_that_fails_late_leaves_the_last_output(slotstore, tiny_store, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("before")
    late = "SELECT CASE WHEN i = 900000 THEN error('too late') ELSE 1 END FROM range(1000000) AS t(i)"
    done = slotstore("query", late, "--store", tiny_store, "--format", "csv", "--output", output)
    assert_mistake(done, 6, "too late")
    assert output.read_text() == "before"
    assert list(tmp_path.iterdir()) == [output]


def test_output_that_cannot_be_written(slotstore, tiny_store, tmp_path):
    done = slotstore("query", "SELECT 1", "--store", tiny_store, "--output", tmp_path / "no" / "out")
    assert_mistake(done, 2, "--output", "there is no folder", "no")


@pytest.mark.parametrize("command", ["features", "splits", "collisions", "query SELECT"])
def test_nothing_is_no_snapshot_and_no_folder(slotstore, tiny_store, command):
    words = command.split()
    assert_mistake(
        slotstore(*words, "--store", tiny_store, "--snapshot", ""), 2, "an empty id names no snapshot"
    )
    assert_mistake(slotstore(*words, "--store", ""), 2, "an empty path names no folder")


def test_output_into_a_pipe(tiny_store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        done = process(
            "query", "SELECT 1 AS a", "--store", tiny_store, "--format", "csv", "-o", tmp_path / "pipe"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert reader.stdout.read() == b'"a"\n1\n'


def test_output_that_would_be_found_out_late(slotstore, tiny_store, tmp_path):
    """A file that can be written, in a folder where none can take its place; a link that leads nowhere."""
    done = slotstore("query", "SELECT 1", "--store", tiny_store, "--output", "/proc/self/comm")
    assert_mistake(done, 2, "--output", "'/proc/self/comm' cannot be written")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "out")
    done = slotstore("query", "SELECT 1", "--store", tiny_store, "--output", tmp_path / "link")
    assert_mistake(done, 2, "--output", f"there is no folder '{tmp_path / 'gone'}'")


@pytest.mark.parametrize("rows", [1, 300_000])
def test_a_reader_that_has_seen_enough(tiny_store, rows):
    """Also one that has gone before what is still buffered, which the interpreter writes when it ends."""
    program = "import sys; sys.stdin.read(); from featurestore.cli import main; main()"
    args = ["query", f"FROM range({rows})", "--store", str(tiny_store), "--format", "json"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program, *args], env=buffered, **pipes) as writer:
        writer.stdout.close()
        writer.stdin.close()
        assert writer.stderr.read() == b""
    assert writer.returncode == 1


def test_query_a_certain_snapshot(slotstore, store, publish, make_table):
    first = open_snapshot(store).manifest.id
    publish(store, make_table(40, seed=5))
    counts = [
        slotstore("query", "SELECT count(*) FROM examples", "--store", store, "--format", "csv", *options).out
        for options in ([], ["--snapshot", first], ["--snapshot", first[:5]])
    ]
    assert [out.splitlines()[1] for out in counts] == ["40", "300", "300"]


# features, splits, snapshots


def test_features(slotstore, tiny_store):
    rows = json.loads(slotstore("features", "--store", tiny_store, "--json").out)
    assert [row["feature"] for row in rows] == ["user_id", "movie_id", "gender", "age", "occupation", "zip"]
    assert rows[0]["seeds"] == [default_seed("user_id", 0), default_seed("user_id", 1)]
    assert {row["examples"] for row in rows} == {20_000}
    assert rows[2]["values"] == 2
    text = slotstore("features", "--store", tiny_store).out
    assert text.splitlines()[-1] == "table: 32,768 slots x 16, fingerprint 3255a5e2f9e58c9a"
    assert len(text.splitlines()) == 8


def test_features_of_the_article(slotstore, article_store):
    rows = json.loads(slotstore("features", "--store", article_store, "--json").out)
    assert {row["feature"]: row["seeds"] for row in rows} == {
        "user_id": [0, 1], "movie_id": [2, 3], "age": [4], "occupation": [5], "zip": [6],
    }  # fmt: skip
    values = json.loads(
        slotstore(
            "query",
            "SELECT DISTINCT zip, zip_slot_0 FROM train",
            "--store",
            article_store,
            "--format",
            "json",
        ).out
    )
    assert len(values) > 50
    assert all(row["zip_slot_0"] == slot(row["zip"], 6, 1000) for row in values)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (
            {"kind": "time", "fractions": [0.5, 0.5]},
            "rule: time, fractions 0.5, 0.5, boundaries 2000-12-31T",
        ),
        (
            {"kind": "random", "fractions": [0.5, 0.5], "seed": 3},
            "rule: random, fractions 0.5, 0.5, seed 3",
        ),
        (
            {"kind": "leave_last", "last": 2},
            "rule: leave_last, the last 2 of each user are test, the 2 before them",
        ),
    ],
)
def test_splits(slotstore, tmp_path, publish, make_table, make_spec, split, said):
    snapshot = publish(tmp_path, make_table(300), make_spec(split))
    rows = json.loads(slotstore("splits", "--store", tmp_path, "--json").out)
    assert {row["split"]: row["rows"] for row in rows} == snapshot.manifest.splits["rows"]
    assert all((row["first"] is None) == (row["rows"] == 0) for row in rows)
    assert rows[0]["first"].startswith("2000-12-31T")
    assert slotstore("splits", "--store", tmp_path).out.splitlines()[-1].startswith(said)


def test_splits_by_files(slotstore, tmp_path, publish, make_table, make_spec):
    table = make_table(300)
    table = table.append_column("file", pa.array(["a", "b", "c"] * 100))
    rule = {"kind": "files", "train": ["a", "b"], "test": ["c"], "validation_fraction": 0.25, "seed": 3}
    rows = publish(tmp_path, table, make_spec(rule)).manifest.splits["rows"]
    assert rows["train"] + rows["validation"] == 200
    assert rows["test"] == 100
    said = slotstore("splits", "--store", tmp_path).out.splitlines()[-1]
    assert said == "rule: files, train a, b; test c; validation 0.25 of train, seed 3"


def test_splits_without_what_the_label_drops(slotstore, tmp_path, publish, make_table, make_spec):
    spec = make_spec(label={"threshold": 4, "drop": [3, 2.5]})
    dropped = publish(tmp_path, make_table(300), spec).manifest.splits["dropped"]
    rows = json.loads(slotstore("splits", "--store", tmp_path, "--json").out)
    assert rows[-1] == {"split": "(left out)", "rows": dropped, "first": None, "last": None}
    assert dropped > 0
    assert sum(row["rows"] for row in rows) == 300
    lines = slotstore("splits", "--store", tmp_path).out.splitlines()
    assert lines[-1] == "left out: examples whose rating is 2.5 or 3.0"


def test_snapshots_list(slotstore, store, publish, make_table):
    first = open_snapshot(store).manifest
    second = publish(store, make_table(40, seed=5), created="2002-01-01T00:00:00.000+00:00").manifest
    rows = json.loads(slotstore("snapshots", "list", "--store", store, "--json").out)
    assert [(row["snapshot"], row["examples"], row["newest"]) for row in rows] == [
        (first.id, 300, False),
        (second.id, 40, True),
    ]
    text = slotstore("snapshots", "list", "--store", store).out
    assert first.id in text
    assert len(text.splitlines()) == 3


def test_snapshots_list_with_a_damaged_one(slotstore, store):
    open_snapshot(store).files("examples")[0].unlink()
    assert slotstore("snapshots", "list", "--store", store).status == 0


def test_snapshots_show(slotstore, store):
    manifest = open_snapshot(store).manifest
    assert slotstore("snapshots", "show", "--store", store).out == manifest.to_json()
    assert slotstore("snapshots", "show", manifest.id[:4], "--store", store).out == manifest.to_json()


@pytest.mark.parametrize(
    "words", ["show ID", "verify ID", "diff ID", "diff 4 ID", "remove ID", "remove 4 ID"]
)
def test_an_empty_id_is_a_mistake_of_usage(slotstore, tiny_store, words):
    """Of a shell's unset variable: it would name the newest snapshot, also where that is to be removed."""
    given = ["" if word == "ID" else word for word in words.split()]
    done = slotstore("snapshots", *given, "--store", tiny_store)
    assert_mistake(done, 2, "an empty id names no snapshot: give the start of one, or latest")


def test_snapshots_verify(slotstore, store):
    snapshot = open_snapshot(store)
    done = slotstore("snapshots", "verify", "--store", store)
    assert done.out == f"snapshot {snapshot.manifest.id} is intact: 5 shards, 300 examples\n"


def test_snapshots_verify_of_an_altered_byte(slotstore, store):
    path = open_snapshot(store).files("examples")[2]
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    done = slotstore("snapshots", "verify", "--store", store)
    assert_mistake(done, 4, "is damaged", path.name, "digest", "Ingest the source again")


# Mistakes


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["quary", "SELECT 1"], 2, "no command 'quary' (did you mean 'query'?)"),
        (["query", "SELECT 1"], 2, "Missing option '--store'"),
        (["query", "--store", "x"], 2, "Missing argument 'SQL'"),
        (["query", "SELECT 1", "--store", "x", "--formt", "csv"], 2, "--format"),
        (["query", "SELECT 1", "--store", "x", "--format", "xml"], 2, "'table', 'csv', 'json', 'parquet'"),
        (["query", "SELECT 1", "--store", "nowhere"], 4, "no snapshot in nowhere: make one with `slot"),
        (["features", "--store", "nowhere"], 4, "no snapshot in nowhere"),
        (["snapshots", "list", "--store", "nowhere"], 4, "no snapshot in nowhere"),
        (["snapshots", "verify", "abc", "--store", "{store}"], 4, "no snapshot 'abc' in"),
        (["query", "SELEKT 1", "--store", "{store}"], 6, "syntax error"),
        (["query", "SELECT usr_id FROM examples", "--store", "{store}"], 6, "user_id"),
        (["query", "SELECT slot('user_id', 'x', 9)", "--store", "{store}"], 6, "no lookup 9 of user_id"),
    ],
)  # fmt: skip
def test_mistakes(slotstore, tiny_store, args, status, said):
    assert_mistake(slotstore(*(arg.format(store=tiny_store) for arg in args)), status, said)


def test_a_mistake_in_a_process():
    done = process("query", "SELECT 1", "--store", "nowhere")
    assert done.returncode == 4
    assert done.stderr.startswith("error: no snapshot in nowhere")
    assert len(done.stderr.splitlines()) == 1


def test_messages_are_not_markup(slotstore, tiny_store):
    done = slotstore("query", "SELECT error('[bold]x[/bold] [1, 2]')", "--store", tiny_store)
    assert_mistake(done, 6, "[bold]x[/bold] [1, 2]")


def test_an_extra_that_is_not_installed(slotstore, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name="apache_beam")

    monkeypatch.setattr("featurestore.cli.importlib.import_module", missing)
    assert_mistake(
        slotstore("ingest", "x"), 1, "apache_beam is not installed: pip install 'slotstore[ingest]'"
    )


def test_a_bug_keeps_its_traceback(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name="featurestore.gone")

    monkeypatch.setattr("featurestore.cli.importlib.import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        run_command(cli, ["query", "x"])


# Help and imports


def test_help_lists_every_command(slotstore):
    for args in (["--help"], ["-h"]):
        done = slotstore(*args)
        assert done.status == 0
        for name in COMMANDS:
            assert f"\n  {name} " in done.out


def test_version(slotstore):
    assert ", version 0." in slotstore("--version").out


@pytest.mark.parametrize(
    "command",
    [[name] for name in COMMANDS if COMMANDS[name][0].startswith("featurestore.")]
    + [["snapshots", name] for name in ("list", "show", "verify", "diff", "remove", "prune")],
    ids=" ".join,
)
def test_help_of_every_command(slotstore, command):
    done = slotstore(*command, "--help")
    assert done.status == 0, done.err
    assert "Usage: " in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name):
    module = COMMANDS[name][0].split(":")[0]
    if module.startswith("training.train"):
        pytest.importorskip(module)
    command = load(name)
    assert command.help or command.commands


def test_query_is_light(tiny_store):
    """Neither Beam nor torch nor MLflow is loaded to answer a question or to show the help."""
    program = (
        "import sys; from featurestore.cli import cli, run_command\n"
        "run_command(cli, sys.argv[1:])\n"
        "heavy = {'apache_beam', 'torch', 'mlflow', 'matplotlib', 'pandas', 'pipelines', 'training'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    for args in (["query", "SELECT 1 AS one", "--store", str(tiny_store)], ["--help"]):
        done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--resume", "latest"], "--resume is for `slotstore train`"),
        (["--snapshot", "latest"], "--snapshot is for `slotstore train`"),
        (["--json"], "--json is for `slotstore train`"),
        (["--epochs", "0"], "--epochs must be at least 1"),
    ],
)
def test_run_tells_a_wrong_option_of_training_before_it_ingests(slotstore, tmp_path, flags, said):
    done = slotstore("run", "--store", tmp_path / "store", *flags)
    assert_mistake(done, 2, said)
    assert not (tmp_path / "store").exists()
