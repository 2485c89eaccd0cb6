"""The diff of two snapshots, against one made by hand in Python."""

import json
import shutil
import tempfile

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.cli import cli, run_command
from featurestore.compare import SHOWN, compare
from featurestore.errors import ArtifactError
from featurestore.retention import remove_snapshots
from featurestore.snapshot import open_snapshot
from featurestore.snapshots_command import snapshots


def ratings(rows):
    """A table of {(user, movie): (rating, timestamp)}."""
    return pa.table(
        {
            "user_id": pa.array([user for user, _ in rows], pa.string()).dictionary_encode(),
            "movie_id": pa.array([movie for _, movie in rows], pa.string()).dictionary_encode(),
            "rating": pa.array([rating for rating, _ in rows.values()], pa.float32()),
            "timestamp": pa.array([time for _, time in rows.values()], pa.int64()),
        }
    )


OLD = {("1", "a"): (3, 100), ("1", "b"): (4, 200), ("2", "a"): (5, 300), ("2", "b"): (1, 400)}
NEW = {("1", "a"): (3, 100), ("1", "b"): (2, 200), ("2", "a"): (5, 301), ("3", "c"): (1, 400)}


def command(*args):
    return CliRunner().invoke(snapshots, [str(arg) for arg in args], catch_exceptions=False).stdout


def unread(snapshot, kind, number):
    """Make a shard unreadable, with the size that the manifest says."""
    path = snapshot.files(kind)[number]
    path.write_bytes(bytes(path.stat().st_size))


def test_rows_and_values(tmp_path, publish):
    old, new = (publish(tmp_path, ratings(rows), shards=2) for rows in (OLD, NEW))
    found = compare(old, new)
    assert found.spec == []
    rows = found.rows
    assert (rows.kept, rows.added, rows.removed, rows.changed) == (1, 1, 1, 2)
    assert rows.changed_in == {"rating": 1, "timestamp": 1}
    assert rows.uncompared == []
    assert rows.shown == {
        "added": [{"user_id": "3", "movie_id": "c", "rating": 1.0, "timestamp": 400}],
        "removed": [{"user_id": "2", "movie_id": "b", "rating": 1.0, "timestamp": 400}],
        "changed": [
            {"user_id": "1", "movie_id": "b", "rating": [4.0, 2.0]},
            {"user_id": "2", "movie_id": "a", "timestamp": [300, 301]},
        ],
    }
    assert [list(vars(one).values()) for one in found.values] == [
        ["user_id", 2, 3, 1, 0, 1, ["3"], []],
        ["movie_id", 2, 3, 1, 0, 1, ["c"], []],
    ]


tables = st.dictionaries(
    st.tuples(st.sampled_from("123"), st.sampled_from("abcd")),
    st.tuples(st.integers(1, 2), st.integers(100, 101)),
    min_size=1,
)


@settings(max_examples=12)
@given(old=tables, new=tables, shards=st.integers(1, 3))
def test_any_two_tables(old, new, shards, publish):
    with tempfile.TemporaryDirectory() as store:
        found = compare(publish(store, ratings(old), shards=shards), publish(store, ratings(new), shards=2))
    added, removed, both = sorted(new.keys() - old), sorted(old.keys() - new), sorted(old.keys() & new)
    changed = [key for key in both if old[key] != new[key]]
    rows = found.rows
    assert (rows.added, rows.removed, rows.changed) == (len(added), len(removed), len(changed))
    assert rows.kept == len(both) - len(changed)
    for kind, keys in (("added", added), ("removed", removed), ("changed", changed)):
        assert [(row["user_id"], row["movie_id"]) for row in rows.shown[kind]] == keys[:SHOWN]
    for place, one in enumerate(found.values):
        before, after = ({key[place] for key in rows} for rows in (old, new))
        assert (one.old, one.new) == (len(before), len(after))
        assert one.shown_added == sorted(after - before)[:SHOWN]
        assert (one.added, one.gone) == (len(after - before), len(before - after))


def test_a_child_is_compared_with_its_parent_by_what_was_appended(tmp_path, publish, append, make_table):
    """The shards that both use are not read: they could not be here."""
    table = make_table(400)
    old = publish(tmp_path, table.slice(0, 300))
    new = append(tmp_path, table.slice(300))
    for number in range(3):
        unread(old, "examples", number)
    found = compare(old, new)
    assert (found.rows.kept, found.rows.added, found.rows.removed, found.rows.changed) == (300, 100, 0, 0)
    backwards = compare(new, old)
    assert (backwards.rows.kept, backwards.rows.added, backwards.rows.removed) == (300, 0, 100)
    examples, vocabulary, rejects = found.shards
    assert (examples.shared, examples.only_old, examples.only_new) == (3, 0, 1)
    assert (vocabulary.shared, vocabulary.only_old, vocabulary.only_new) == (0, 2, 2)
    assert list(vars(rejects).values()) == ["rejects", 0, 0, 0, 0, 0, 0]
    assert examples.shared_bytes == sum(shard.bytes for shard in old.manifest.shards["examples"])
    assert {one.key for one in found.splits} == {
        "train.rows", "validation.rows", "test.rows", "validation.from", "test.from",
    }  # fmt: skip
    movies = found.values[1]
    before, after = (set(part["movie_id"].to_pylist()) for part in (table.slice(0, 300), table))
    assert (movies.old, movies.new, movies.gone) == (len(before), len(after), 0)
    assert movies.shown_added == sorted(after - before)[:SHOWN]


def test_shards_with_the_same_bytes_are_not_read_either(tmp_path, publish, make_table):
    table = make_table(300)
    one = publish(tmp_path / "one", table)
    other = publish(tmp_path / "other", table)
    for number in range(3):
        unread(one, "examples", number)
    assert compare(one, other).rows.kept == 300


def test_another_label_that_drops(tmp_path, publish, make_table, make_spec):
    table = make_table(300)
    old = publish(tmp_path, table, make_spec({"kind": "random", "fractions": [0.5, 0.5]}))
    new = publish(
        tmp_path, table, make_spec({"kind": "random", "fractions": [0.5, 0.5]}, label={"drop": [3.0]})
    )
    found = compare(old, new)
    assert [(one.key, one.old, one.new) for one in found.spec][1:] == [("label.drop", "(none)", [3.0])]
    assert {one.key: one.new for one in found.splits} == {
        "train.rows": new.manifest.splits["rows"]["train"],
        "validation.rows": new.manifest.splits["rows"]["validation"],
        "dropped.rows": new.manifest.splits["dropped"],
    }


def test_a_snapshot_with_itself(store):
    snapshot = open_snapshot(store)
    found = compare(snapshot, snapshot)
    assert (found.spec, found.splits) == ([], [])
    assert (found.rows.kept, found.rows.added, found.rows.removed, found.rows.changed) == (300, 0, 0, 0)
    assert all((one.old, one.added, one.gone, one.recounted) == (one.new, 0, 0, 0) for one in found.values)


def test_another_spec(tmp_path, publish, make_spec, make_table):
    """Keys that moved are named, one by one; slots, which another spec moves anyway, are not compared."""
    table = make_table(300)
    old = publish(tmp_path, table)
    features = [{"name": "movie_id", "seeds": [5]}, {"name": "film", "column": "movie_id", "lookups": 1}]
    new = publish(
        tmp_path, table, make_spec({"kind": "random", "fractions": [0.5, 0.5], "seed": 3}, features)
    )
    found = compare(old, new)
    changes = {one.key: (one.old, one.new) for one in found.spec}
    assert changes["fingerprint"] == (old.manifest.fingerprint, new.manifest.fingerprint)
    assert changes["features"] == (["user_id", "movie_id"], ["movie_id", "film"])
    assert changes["features.movie_id.seeds"] == ([2, 3], [5])
    assert changes["features.film.column"] == ("(none)", "movie_id")
    assert changes["features.user_id.column"] == ("user_id", "(none)")
    assert changes["split.kind"] == ("time", "random")
    assert "table.dim" not in changes
    assert found.rows.kept == 300
    assert found.rows.columns == ["rating", "timestamp"]
    assert found.rows.uncompared == [
        "user_id_slot_0", "user_id_slot_1", "movie_id_slot_0", "movie_id_slot_1", "film_slot_0",
    ]  # fmt: skip
    values = {one.feature: one for one in found.values}
    assert (values["user_id"].old, values["user_id"].new, values["user_id"].gone) == (7, 0, 7)
    assert (values["film"].old, values["film"].added) == (0, values["film"].new)
    assert values["movie_id"].recounted == 0


def test_columns_that_only_one_has(tmp_path, publish):
    old = publish(tmp_path, ratings(OLD))
    wider = ratings(NEW).append_column("title", pa.array(["x", None, "y", "z"]).dictionary_encode())
    new = publish(tmp_path, wider)
    rows = compare(old, new).rows
    assert (rows.changed, rows.uncompared) == (2, ["title"])


def test_a_null_is_a_value(tmp_path, publish):
    one, other, third = (
        publish(tmp_path, ratings(OLD).append_column("title", pa.array(titles).dictionary_encode()))
        for titles in (["x", None, "y", None], ["x", None, None, "z"], [None] * 3 + ["z"])
    )
    assert compare(one, other).rows.changed_in == {"title": 2}
    assert compare(other, third).rows.shown["changed"] == [
        {"user_id": "1", "movie_id": "a", "title": ["x", None]},
    ]


def test_a_damaged_shard_is_named(tmp_path, publish):
    old, new = (publish(tmp_path, ratings(rows)) for rows in (OLD, NEW))
    unread(new, "vocabulary", 1)
    with pytest.raises(ArtifactError, match=r"(?s)cannot be compared: .*vocabulary.*snapshots verify"):
        compare(old, new)
    new.files("vocabulary")[1].unlink()
    with pytest.raises(ArtifactError, match="is damaged"):
        compare(old, new)


# The command


@pytest.fixture
def grown(tmp_path, publish, append):
    """A store of a snapshot and its child, and their ids."""
    parent = publish(tmp_path, ratings(OLD), created="2001-01-01T00:00:00.000+00:00")
    child = append(tmp_path, ratings({("9", "a"): (5, 500)}))
    return tmp_path, parent.manifest.id, child.manifest.id


def test_the_newest_is_compared_with_its_parent(grown):
    store, parent, child = grown
    expected = command("diff", parent, child, "--store", store, "--json")
    for args in ([], [parent[:5]], [parent, "latest"]):
        assert command("diff", *args, "--store", store, "--json") == expected
    data = json.loads(expected)
    assert list(data) == ["old", "new", "spec", "rows", "values", "splits", "shards", "drift"]
    assert (data["old"]["id"], data["new"]["id"], data["new"]["parent"]) == (parent, child, parent)
    assert (data["rows"]["kept"], data["rows"]["added"]) == (4, 1)


def test_what_a_person_reads(tmp_path, publish):
    old, new = (publish(tmp_path, ratings(rows), shards=1).manifest.id for rows in (OLD, NEW))
    lines = command("diff", old, new, "--store", tmp_path).splitlines()
    assert lines[0].startswith(f"from {old}, ")
    assert lines[1].startswith(f"to   {new}, ")
    words = [line.split() for line in lines]
    for expected in (["kept", "1"], ["added", "1"], ["changed", "2"], ["1", "b", "4.0", "->", "2.0"]):
        assert expected in words
    assert {"rows changed in: rating 1, timestamp 1", "spec: the same", "splits: the same"} <= set(lines)


def test_a_person_reads_times(grown):
    words = [line.split() for line in command("diff", "--store", grown[0]).splitlines()]
    assert ["validation.from", "1970-01-01T00:06:40+00:00", "1970-01-01T00:08:20+00:00"] in words


def test_list_shows_the_parent(grown):
    store, parent, child = grown
    rows = json.loads(command("list", "--store", store, "--json"))
    assert [(row["snapshot"], row["parent"]) for row in rows] == [(parent, None), (child, parent)]


def test_no_parent_to_compare_with(grown, capsys):
    store, parent, child = grown

    def message():
        with pytest.raises(SystemExit) as done:
            run_command(cli, ["snapshots", "diff", "--store", str(store)])
        assert done.value.code == 4
        return capsys.readouterr().err

    shutil.copytree(store / "snapshots" / parent, store / "kept")
    remove_snapshots(store, [parent])
    assert f"{parent}, from which snapshot {child} grew, was removed: say which one" in message()
    shutil.rmtree(store / "snapshots" / parent)
    (store / "kept").rename(store / "snapshots" / parent)
    remove_snapshots(store, [child])
    assert f"snapshot {parent} grew from no other: say which one to compare it with" in message()
