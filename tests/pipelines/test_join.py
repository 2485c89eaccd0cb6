"""Users and movies joined to ratings: broadcast and shuffled, which must write the same bytes."""

import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.worker import data_plane
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SpecError
from pipelines import entities, job
from pipelines.entities import (
    OFFSET,
    WORD,
    Entities,
    entities_of,
    entities_schema,
    keep_first,
    key_words,
    one_array,
    plan_entity_ranges,
    read_entities,
    read_entity_lines,
    repeated_rejects,
)
from pipelines.job import IngestConfig, choose_spec
from pipelines.join import join_entities, load_entities, write_entities
from pipelines.movielens import ML_1M, BadRecord
from pipelines.read import Records, plan_ranges, read_ratings, reject, rejects_table
from pipelines.shuffle_join import ShuffleJoin, find_needed, partition_rows

USERS, MOVIES = ML_1M.entities
KEYS = st.lists(st.integers(0, 30).map(str), max_size=40)


def users(keys):
    """Entities whose zip says which row they were made of."""
    keys = list(dict.fromkeys(keys))
    texts = [pa.array(keys, pa.string())] * 4 + [pa.array([f"z{key}" for key in keys], pa.string())]
    return entities_of(
        USERS, [pa.table([entities.key_words(texts[0]), *texts], schema=entities_schema(USERS))]
    )


def found(known, wanted):
    rows = known.find(pa.array(wanted, pa.string())).tolist()
    return [None if row < 0 else known.table.column("user_id")[row].as_py() for row in rows]


@given(keys=KEYS, wanted=KEYS)
def test_a_key_is_found_or_is_unknown(keys, wanted):
    assert found(users(keys), wanted) == [key if key in keys else None for key in wanted]


@given(keys=KEYS, wanted=KEYS, words=st.integers(1, 4))
def test_keys_with_one_word_are_told_apart(keys, wanted, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entities, "key_words", lambda keys: key_words(keys) % np.uint64(words))
        assert found(users(keys), wanted) == [key if key in keys else None for key in wanted]


GOOD = st.builds("{}::F::1::10::{}".format, st.integers(0, 9), st.sampled_from(["48067", "", "é"]))
LINES = st.lists(st.one_of(GOOD, GOOD, st.sampled_from(["", "bad", "1::2", "é::\r"])), max_size=15)


def read_naively(data):
    """Rows by key, and rejects: line by line with a dict."""
    rows, rejects, offset = {}, [], 0
    for raw in data.splitlines(keepends=True):
        line = raw.rstrip(b"\r\n").decode("latin-1")
        try:
            fields = USERS.divide(line) if line else {}
        except BadRecord as error:
            rejects.append(reject("users.dat", offset, error.column, line, error.reason))
        else:
            key = fields.get("user_id")
            if key in rows:
                reason = f"user_id {key!r} stands on an earlier line too; the first is kept"
                rejects.append(reject("users.dat", offset, "user_id", line, reason))
            elif fields:
                rows[key] = fields
        offset += len(raw)
    return rows, rejects


@given(
    lines=LINES, newline=st.sampled_from(["\n", "\r\n"]), target=st.integers(1, 300), count=st.integers(1, 5)
)
def test_ranges_and_partitions_are_what_a_dict_of_lines_is(tmp_path_factory, lines, newline, target, count):
    path = tmp_path_factory.mktemp("users") / "users.dat"
    path.write_bytes("".join(f"{line}{newline}" for line in lines).encode("latin-1"))
    rows, rejects = read_naively(path.read_bytes())
    whole, bad = read_entities(path, USERS, "latin-1", target)
    assert {row["user_id"]: row for row in whole.table.drop_columns([WORD]).to_pylist()} == rows
    assert bad.sort_by(OFFSET).to_pylist() == rejects

    parts = [read_entity_lines(place, USERS, "latin-1") for place in plan_entity_ranges(path, target)]
    kept, tables = [], [part.rejects for part in parts]
    lines_read = pa.concat_tables([part.table for part in reversed(parts)]).combine_chunks()
    for _, taken in partition_rows(one_array(lines_read.column(WORD)).to_numpy(), count):
        first, repeated = keep_first(lines_read.take(taken), "user_id")
        kept.append(first)
        tables.append(repeated_rejects(repeated, path, USERS, "latin-1"))
    assert entities_of(USERS, kept).table.equals(whole.table)
    assert pa.concat_tables(tables).sort_by(OFFSET).equals(rejects_table(rejects))


@given(keys=KEYS, rated=st.lists(st.integers(0, 30), min_size=1, max_size=30), count=st.integers(1, 5))
def test_what_a_range_needs_joins_as_the_whole_table_does(tmp_path_factory, keys, rated, count):
    path = tmp_path_factory.mktemp("join") / "ratings.dat"
    path.write_text("".join(f"{key}::1::5::978300000\n" for key in rated))
    (place,) = plan_ranges(path, path.stat().st_size, 10**6)
    records = read_ratings(place, ML_1M)
    whole, needed = users(keys), records.table.column("user_id").chunk(0).dictionary
    parts = dict(partition_rows(one_array(whole.table.column(WORD)).to_numpy(), count))
    pieces = []
    for number, taken in partition_rows(key_words(needed), count):
        if number in parts:
            part = Entities(USERS, whole.table.take(parts[number]))
            pieces += [rows for _, rows in find_needed(part, [(0, needed.take(taken))])]
    one, other = join_entities(records, [whole]), join_entities(records, [entities_of(USERS, pieces)])
    assert one.table.equals(other.table)
    assert one.table.column("zip").chunk(0).dictionary.equals(other.table.column("zip").chunk(0).dictionary)
    assert one.rejects.equals(other.rejects)
    assert one.table.column("zip").to_pylist() == [f"z{key}" for key in rated if str(key) in keys]


def test_a_batch_carries_no_values_but_its_own(tmp_path):
    table = pa.table({"user_id": pa.array(["7", "3", "7"]).dictionary_encode()})
    records = Records(table, rejects_table([]), plan_ranges(tmp_path, 0, 1)[0])
    joined = join_entities(records, [users(str(number) for number in range(1000))])
    assert joined.table.column("zip").chunk(0).dictionary.to_pylist() == ["z7", "z3"]


def test_a_table_written_again_is_the_same_file_and_the_first_stays_readable(tmp_path):
    whole = users(str(number) for number in range(100))
    one = write_entities(whole, 0, tmp_path)
    first = load_entities(one, ML_1M)
    assert write_entities(whole, 0, tmp_path) == one
    assert [path.name for path in one.path.parent.iterdir()] == ["0.arrow"]
    assert first.table.equals(whole.table)
    assert first.find(pa.array(["5", "x"])).tolist()[1] == -1


def write_hostile(folder):
    """1,500 ratings, nine in ten by one user; bad, repeated and unknown users and movies; not UTF-8."""
    numbers = range(1500)
    ratings = [
        f"{1 if number % 10 else 2 + number % 37}::{number}::{1 + number % 5}::{978300000 + number}"
        for number in numbers
    ]
    ratings[200] = "bad"
    lines = [f"{number}::{'FM'[number % 2]}::1::{number % 21}::{number % 3}é" for number in range(1, 37)]
    lines[5:5] = ["1::M::25::0::late", "2::broken", ""]
    titles = [f"{number}::Étranger {number % 700}::Drama" for number in numbers if number % 113]
    titles[900:900] = [titles[3], "no movie", titles[4]]
    for name, text in (("ratings.dat", ratings), ("users.dat", lines), ("movies.dat", titles)):
        (folder / name).write_bytes("".join(f"{line}\n" for line in text).encode("latin-1"))


def test_broadcast_and_shuffle_write_the_same_bytes(tiny_source, ingest_folder, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a buffer sent by the clock may end in the middle of an element")

    monkeypatch.setattr(data_plane.TimeBasedBufferingClosableOutputStream, "__init__", refuse)
    monkeypatch.setattr(job, "ShuffleJoin", functools.partial(ShuffleJoin, range_bytes=700))
    write_hostile(tiny_source.folder)
    results = {
        join: ingest_folder(
            tiny_source.folder,
            tmp_path / join,
            flags=["--direct_num_workers=2"],
            shard_bytes=6000,
            max_reject_ratio=0.5,
            join=join,
        )
        for join in ("broadcast", "shuffle")
    }
    one, other = (result.snapshot.manifest for result in results.values())
    assert (one.id, one.content_digest, one.counts) == (other.id, other.content_digest, other.counts)
    assert one.shards == other.shards  # with the digest of each file
    assert len(one.shards["examples"]) > 4
    reasons = pa.concat_tables(map(pq.read_table, results["shuffle"].snapshot.files("rejects")))
    for reason, count in (
        ("is not in users.dat", 8),
        ("is not in movies.dat", 14),
        ("stands on an earlier line too", 3),
        ("expected", 3),
    ):
        assert sum(reason in text for text in reasons["reason"].to_pylist()) == count, reason
    assert one.counts["rejects"] == reasons.num_rows
    for result in results.values():
        assert {path.name for path in result.snapshot.folder.iterdir()} == {
            "manifest.json",
            "examples",
            "vocabulary",
            "rejects",
        }
    assert results["broadcast"].counters["join_loads"] == 1
    assert results["broadcast"].counters["join_bundles"] > 1
    ranges, other_users, movies = len(one.shards["examples"]), 150, 1500
    assert (
        results["shuffle"].counters["keys_rows"] <= ranges + other_users + movies
    )  # the hot user: once a range


@pytest.mark.parametrize(
    ("options", "shuffles"),
    [
        ({}, False),
        ({"broadcast_bytes": 0}, True),
        ({"broadcast_bytes": 0, "join": "broadcast"}, False),
        ({"join": "shuffle"}, True),
    ],
)
def test_large_tables_are_shuffled_unless_asked_otherwise(tiny_source, options, shuffles):
    assert IngestConfig(tiny_source, choose_spec(None, tiny_source)[0], **options).shuffles() is shuffles


def test_mistakes_about_the_join_are_told_together(tiny_source):
    with pytest.raises(SpecError) as caught:
        IngestConfig(tiny_source, choose_spec(None, tiny_source)[0], join="hash", broadcast_bytes=-1)
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "--join must be one of auto",
        "--broadcast-bytes must be at least 0",
    ]
