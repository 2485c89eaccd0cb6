import itertools
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.database import (
    Database,
    define_views,
    identifier,
    parquet,
    unique_names,
    write_catalog,
)
from featurestore.errors import ArtifactError, NotFound, QueryError
from featurestore.hashing import slot
from featurestore.snapshot import open_snapshot
from featurestore.spec import SPLITS
from featurestore.splits import quoted
from featurestore.store import FeatureStore

VIEWS = {
    "examples", "train", "validation", "test", "vocabulary", "slots", "lookups", "rejects", "hash_collisions",
}  # fmt: skip
RULES = {
    "time": {"kind": "time", "fractions": [0.8, 0.1, 0.1]},
    "halves": {"kind": "time", "fractions": [0.5, 0.5]},
    "random": {"kind": "random", "fractions": [0.6, 0.2, 0.2], "seed": 3},
    "leave_last": {"kind": "leave_last", "last": 4},
}


@pytest.fixture(scope="module")
def tiny(tiny_store):
    with FeatureStore(tiny_store) as opened:
        yield opened


LABELS = {"all": {}, "without 3": {"threshold": 4, "drop": [3, 1]}}


@pytest.fixture(scope="module", params=itertools.product(RULES, LABELS), ids=", ".join)
def split_store(request, tmp_path_factory, publish, make_table, make_spec):
    """A store of 2,000 ratings in five shards for each kind of split, with and without a label that drops."""
    folder, (rule, label) = tmp_path_factory.mktemp("split"), request.param
    publish(folder, make_table(2_000), make_spec(RULES[rule], label=LABELS[label]), shards=5)
    with FeatureStore(folder) as opened:
        yield opened


def rows(table):
    return list(zip(*table.to_pydict().values(), strict=True))


# Views


def test_views_and_their_columns(tiny):
    views = tiny.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").column(0).to_pylist()
    assert set(views) == VIEWS
    for view in ("examples", *SPLITS):
        assert tiny.sql(f"FROM {view} LIMIT 0").column_names == list(tiny.snapshot.manifest.columns)
    assert tiny.sql("FROM examples LIMIT 0").column_names[:4] == [
        "user_id",
        "movie_id",
        "rating",
        "timestamp",
    ]
    assert tiny.sql("FROM vocabulary LIMIT 0").column_names == ["feature", "value", "count", "hashes"]
    assert tiny.sql("FROM rejects LIMIT 0").column_names == [
        "file",
        "byte_offset",
        "source_column",
        "raw",
        "reason",
    ]
    assert tiny.sql("FROM lookups LIMIT 0").column_names == [
        "feature",
        "source_column",
        "lookup",
        "seed",
        "slot_column",
    ]
    assert tiny.sql("FROM slots LIMIT 0").column_names == [
        "feature", "value", "lookup", "seed", "hash", "slot", "count",
    ]  # fmt: skip


def test_views_hold_what_the_manifest_counts(tiny):
    counts = {view: tiny.sql(f"SELECT count(*) FROM {view}").column(0)[0].as_py() for view in VIEWS}
    assert counts["examples"] == tiny.snapshot.manifest.counts["examples"] == 20_000
    assert {split: counts[split] for split in SPLITS} == tiny.splits.rows
    assert counts["rejects"] == 0
    assert counts["lookups"] == len(tiny.spec.slot_columns)


def test_lookups_are_the_spec(tiny):
    assert rows(tiny.sql("FROM lookups")) == [
        (feature.name, feature.column, lookup, seed, column)
        for feature in tiny.spec.features
        for lookup, (seed, column) in enumerate(zip(feature.seeds, feature.slot_columns, strict=True))
    ]


def test_every_stored_slot_is_the_hash_of_its_value(tiny):
    for feature in tiny.spec.features:
        stored = tiny.sql(
            f"SELECT DISTINCT {feature.column}, {', '.join(feature.slot_columns)} FROM examples"
        )
        for value, *slots in rows(stored):
            assert slots == [slot(value, seed, tiny.spec.table.num_slots) for seed in feature.seeds]


def test_slots_agree_with_the_examples(tiny):
    """The view over the vocabulary says the same as the columns of the examples, value by value."""
    for feature in tiny.spec.features:
        for lookup, column in enumerate(feature.slot_columns):
            differing = tiny.sql(
                f"SELECT * FROM (SELECT {feature.column} AS value, {column} AS slot, count(*) AS count "
                "FROM examples GROUP BY ALL) AS e FULL JOIN "
                "(SELECT * FROM slots WHERE feature = $feature AND lookup = $lookup) AS s "
                "USING (value, slot, count) "
                "WHERE e.value IS NULL OR s.seed IS NULL",
                {"feature": feature.name, "lookup": lookup},
            )
            assert differing.num_rows == 0


def test_slots_are_hash_and_seed_of_the_value(tiny):
    sample = tiny.sql("SELECT * FROM slots WHERE hash(value) % 7 = 0").to_pylist()
    assert len(sample) > 50
    for row in sample:
        assert row["slot"] == row["hash"] % tiny.spec.table.num_slots == slot(
            row["value"], row["seed"], tiny.spec.table.num_slots
        )  # fmt: skip


# SQL


def test_parameters(tiny):
    named = tiny.sql("SELECT count(*) AS n FROM examples WHERE user_id = $user", {"user": "1"})
    positional = tiny.sql("SELECT count(*) AS n FROM examples WHERE user_id = ?", ["1"])
    assert named.equals(positional)
    assert named.column("n")[0].as_py() > 0
    assert (
        tiny.sql("SELECT count(*) AS n FROM examples WHERE user_id = ?", ["1' OR '1"]).column(0)[0].as_py()
        == 0
    )


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELEKT 1", "Parser Error"),
        ("FROM nothing", "nothing does not exist"),
        ("SELECT usr_id FROM examples", "user_id"),
        ("SELECT title::INT FROM examples", "Could not convert"),
        ("FROM 'nothing.csv'", "No files found"),
        ("SELECT slot('user_id', '1', 2)", "no lookup 2 of user_id: see the view lookups"),
        ("SELECT slot('usr_id', '1', 0)", "no lookup 0 of usr_id"),
        ("SELECT $missing", "missing"),
    ],
)
def test_refused_statements(tiny, query, said):
    with pytest.raises(QueryError, match=said):
        tiny.sql(query)
    assert tiny.sql("SELECT 1").num_rows == 1


def test_an_error_in_the_middle_of_a_stream(tiny):
    late = "SELECT CASE WHEN i = 19000000 THEN error('too late') ELSE 1 END FROM range(20000000) AS t(i)"
    reader = tiny.read(late)
    assert reader.read_next_batch().num_rows > 0
    with pytest.raises(QueryError, match="too late"):
        reader.read_all()


def test_python_variables_are_no_tables(tiny):
    secret = pa.table({"a": [1]})
    assert secret.num_rows
    for name in ("secret", "sql", "self"):
        with pytest.raises(QueryError, match="does not exist"):
            tiny.sql(f"FROM {name}")


def test_statements_that_return_nothing(tiny_store):
    with FeatureStore(tiny_store) as opened:
        for statement in ("CREATE TABLE mine (i INT)", "SET threads = 1", "", "-- nothing"):
            result = opened.sql(statement)
            assert (result.num_rows, result.num_columns) == (0, 0)
        assert rows(opened.sql("INSERT INTO mine VALUES (1), (2)")) == [(2,)]
        assert rows(opened.sql("FROM mine")) == [(1,), (2,)]


def test_columns_named_alike(tiny):
    assert tiny.sql("SELECT 1 AS a, 2 AS a, 3 AS a").to_pylist() == [{"a": 1, "a_1": 2, "a_2": 3}]
    assert unique_names(["a", "a_1", "a", "a"]) == ["a", "a_1", "a_2", "a_3"]


def test_batches_are_not_larger_than_asked_for(tiny):
    batches = list(tiny.read("SELECT user_id FROM examples", batch_rows=4096))
    assert sum(batch.num_rows for batch in batches) == 20_000
    assert max(batch.num_rows for batch in batches) <= 4096


def test_several_streams_at_once(tiny):
    one, other = (tiny.read("SELECT movie_id FROM examples", batch_rows=2048) for _ in range(2))
    assert one.read_next_batch().equals(other.read_next_batch())
    tiny.sql("SELECT 1")
    assert one.read_all().equals(other.read_all())


def test_a_stream_outlives_its_store(tiny_store):
    with FeatureStore(tiny_store) as opened:
        reader = opened.stream("train", ["user_id"])
        rows_in_train = opened.splits.rows["train"]
    assert reader.read_all().num_rows == rows_in_train


# Streams


def key_order(opened, shards=None):
    """The keys of the shards' rows, as pyarrow reads them."""
    files = opened.snapshot.files("examples")
    tables = [pq.read_table(files[n], columns=["user_id", "movie_id"]) for n in shards or range(len(files))]
    return [row for table in tables for row in rows(table)]


def streamed(opened, split, **options):
    return rows(opened.stream(split, ["user_id", "movie_id"], **options).read_all())


@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_is_the_view_in_the_order_of_the_shards(split_store, split):
    found = streamed(split_store, split)
    assert found == streamed(split_store, split, batch_rows=100)
    assert len(found) == split_store.splits.rows[split]
    view = set(rows(split_store.sql(f"SELECT user_id, movie_id FROM {split}")))
    assert found == [key for key in key_order(split_store) if key in view]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shards", [[4, 3, 2, 1, 0], [2, 0, 1, 4, 3], [3], [4, 1]])
def test_shards_are_read_in_the_order_asked_for(split_store, split, shards):
    """Also some of them: a rank counts all of a user's examples, wherever they are."""
    view = set(rows(split_store.sql(f"SELECT user_id, movie_id FROM {split}")))
    found = streamed(split_store, split, shards=shards)
    assert found == [key for key in key_order(split_store, shards) if key in view]


def test_what_the_label_drops_is_in_the_examples_and_in_no_split(split_store):
    drop, every = split_store.spec.label.drop, split_store.sql("SELECT rating FROM examples")["rating"]
    assert every.length() == 2_000
    assert sum(rating in drop for rating in every.to_pylist()) == split_store.splits.dropped
    assert sum(split_store.splits.rows.values()) == 2_000 - split_store.splits.dropped
    for split in SPLITS:
        found = split_store.stream(split, ["rating", "timestamp"]).read_all().to_pydict()
        assert not set(found["rating"]) & set(drop)
        times = found["timestamp"]
        assert split_store.time_range(split) == ((min(times), max(times)) if times else None)
    assert split_store.snapshot.problems(deep=True) == []


def test_shards_divide_a_split(split_store):
    parts = [streamed(split_store, "validation", shards=shards) for shards in ([0, 2], [1], [3, 4], [])]
    assert sorted(itertools.chain.from_iterable(parts)) == sorted(streamed(split_store, "validation"))
    assert parts[-1] == []


def test_order_holds_over_many_row_groups(tmp_path, publish, make_table):
    """Threads read row groups as they come; the stream must not show it."""
    table = make_table(30_000, users=100)
    snapshot = publish(tmp_path, table, shards=4)
    for path in snapshot.files("examples"):
        pq.write_table(pq.read_table(path), path, row_group_size=500)
    with closing(Database()) as database:  # past the manifest, whose sizes no longer fit
        define_views(database, snapshot)
        database.execute("SET threads = 8")
        files = parquet(snapshot.files("examples"))
        found = rows(
            database.read(
                f"SELECT user_id, movie_id FROM {files} WHERE rating > 1", batch_rows=1000
            ).read_all()
        )
    kept = table.filter(pa.compute.greater(table.column("rating"), 1))
    assert found == rows(kept.select(["user_id", "movie_id"]))


def test_columns_come_as_asked_for(split_store):
    reader = split_store.stream("train", ["movie_id_slot_1", "rating", "timestamp"])
    assert reader.schema.names == ["movie_id_slot_1", "rating", "timestamp"]
    assert reader.schema.types == [pa.int32(), pa.float32(), pa.int64()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": "trian", "columns": ["rating"]}, r"no split 'trian' \(did you mean 'train'\?\)"),
        (
            {"split": "examples", "columns": ["rating"]},
            r"no split 'examples' \(known: train, validation, test\)",
        ),
        (
            {"split": "train", "columns": ["ratng"]},
            r"no column 'ratng' in the examples \(did you mean 'rating'\?\)",
        ),
        ({"split": "train", "columns": ['rating" FROM examples --']}, "no column 'rating\" FROM"),
        ({"split": "train", "columns": []}, "no columns asked for"),
        (
            {"split": "train", "columns": ["rating"], "shards": [5]},
            "no shard 5: the snapshot has shards 0 to 4",
        ),
        ({"split": "train", "columns": ["rating"], "shards": [-1]}, "no shard -1"),
    ],
)
def test_streams_of_what_there_is_not(split_store, arguments, said):
    with pytest.raises(NotFound, match=said):
        split_store.stream(**arguments)


def test_a_shard_is_streamed_once(split_store):
    with pytest.raises(ValueError, match=r"asked for twice: \[1, 1\]"):
        split_store.stream("train", ["rating"], shards=[1, 1])


def test_time_ranges(split_store):
    for split in SPLITS:
        times = split_store.stream(split, ["timestamp"]).read_all().column(0).to_pylist()
        assert split_store.time_range(split) == ((min(times), max(times)) if times else None)
    with pytest.raises(NotFound):
        split_store.time_range("examples")


# Opening


def test_a_certain_snapshot(store, publish, make_table):
    first = open_snapshot(store).manifest.id
    publish(store, make_table(40, seed=5))
    with FeatureStore(store) as newest, FeatureStore(store, first[:6]) as older:
        assert newest.snapshot.manifest.counts["examples"] == 40
        assert older.sql("SELECT count(*) FROM examples").column(0)[0].as_py() == 300
        assert repr(older) == f"FeatureStore({str(store)!r}, snapshot='{first}')"


def test_rejects_are_kept(store, publish, make_table):
    reject = {
        "file": "ratings.dat",
        "byte_offset": 7,
        "source_column": "rating",
        "raw": "x",
        "reason": "no number",
    }
    publish(store, make_table(300), rejects=[reject])
    with FeatureStore(store) as opened:
        assert opened.sql("FROM rejects").to_pylist() == [reject]


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a[1]", "star*", "key=value", "ünï cödé", "a;b--c"])
def test_folders_with_odd_names(tmp_path, publish, make_table, name):
    for other in ("a1", "starry"):  # a[1] and star* as patterns would mean these too
        publish(tmp_path / other / "store", make_table(50))
    publish(tmp_path / name / "store", make_table(50))
    write_catalog(tmp_path / name / "store", open_snapshot(tmp_path / name / "store"))
    with FeatureStore(tmp_path / name / "store") as opened:
        table = opened.sql("FROM examples")
        assert table.column_names == list(opened.snapshot.manifest.columns)
        assert table.num_rows == 50
        assert opened.stream("train", ["rating"]).read_all().num_rows == opened.splits.rows["train"]
    with duckdb.connect(str(tmp_path / name / "store" / "catalog.duckdb"), read_only=True) as plain:
        assert plain.execute("SELECT count(*) FROM examples").fetchall() == [(50,)]


def test_a_relative_store_is_found_after_a_change_of_folder(store, monkeypatch):
    monkeypatch.chdir(store.parent)
    with FeatureStore("store") as opened:
        monkeypatch.chdir("/")
        assert opened.sql("SELECT count(*) FROM examples").column(0)[0].as_py() == 300


def test_shards_lost_while_open_are_blamed(store):
    with FeatureStore(store) as opened:
        path = opened.snapshot.files("examples")[1]
        path.rename(path.with_suffix(".gone"))
        with pytest.raises(ArtifactError, match=f"{path.name} is missing"):
            opened.sql("SELECT sum(rating) FROM examples")


def test_altered_shards_are_blamed(store):
    with FeatureStore(store) as opened:
        path = opened.snapshot.files("examples")[1]
        path.write_bytes(b"\0" * path.stat().st_size)
        with pytest.raises(ArtifactError, match=r"(?s)cannot be read: .*`slotstore snapshots verify --store"):
            opened.sql("SELECT * FROM examples")


def test_a_store_that_fails_to_open_holds_nothing(store, monkeypatch):
    closed, close = [], Database.close

    def remember(database):
        closed.append(database)
        close(database)

    monkeypatch.setattr(Database, "close", remember)
    for path in open_snapshot(store).files("vocabulary"):
        path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ArtifactError):
        FeatureStore(store)
    assert len(closed) == 1


# The database


def test_nothing_is_fetched_from_the_network(tiny):
    settings = tiny.sql(
        "SELECT current_setting('autoinstall_known_extensions') AS a, "
        "current_setting('autoload_known_extensions') AS b"
    )
    assert settings.to_pylist() == [{"a": False, "b": False}]
    with pytest.raises(QueryError):
        tiny.sql("FROM 'https://example.invalid/x.parquet'")


def test_spilled_rows_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with closing(Database()) as database:
        database.execute("SET memory_limit = '40MB'")
        database.execute("SET threads = 1")
        reader = database.read("SELECT hash(i)::VARCHAR AS h FROM range(1500000) AS t(i) ORDER BY h")
        reader.read_next_batch()
        assert list(tmp_path.iterdir())
        del reader
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_opened(tmp_path):
    with pytest.raises(ArtifactError, match="cannot open the database"):
        Database(tmp_path / "no folder" / "x.duckdb")


@pytest.mark.parametrize("text", ["plain", "it's", "''", '"', "a\\'b", "; DROP TABLE x --"])
def test_quoting(text):
    with closing(Database()) as database:
        assert database.execute(f"SELECT {quoted(text)}") == [(text,)]
        assert database.read(f"SELECT 1 AS {identifier(text)}").schema.names == [text]


# The catalog


def test_the_catalog_opens_anywhere_in_the_plain_client(tiny_store):
    program = (
        "import duckdb, sys; con = duckdb.connect(sys.argv[1], read_only=True); "
        "print(con.execute(\"SELECT count(*), slot('user_id', '1193', 0) FROM train\").fetchall())"
    )
    with FeatureStore(tiny_store) as opened:
        expected = [
            (opened.splits.rows["train"], slot("1193", opened.spec.feature("user_id").seeds[0], 32768))
        ]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_store / "catalog.duckdb")],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout == f"{expected}\n"


def test_a_catalog_is_replaced_whole(store, publish, make_table):
    """Also one that a client was killed in: its log must not be taken for the new one's."""
    write_catalog(store, open_snapshot(store))
    killed = (
        "import duckdb, os, sys; con = duckdb.connect(sys.argv[1]); "
        "con.execute('CREATE TABLE mine AS SELECT 1'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(store / "catalog.duckdb")])
    assert (store / "catalog.duckdb.wal").exists()
    write_catalog(store, publish(store, make_table(40, seed=5)))
    with duckdb.connect(str(store / "catalog.duckdb")) as plain:
        assert plain.execute("SELECT count(*) FROM examples").fetchall() == [(40,)]
    assert list((store / "staging").iterdir()) == []


def test_a_catalog_that_fails_leaves_the_last_one(store):
    write_catalog(store, open_snapshot(store))
    before = (store / "catalog.duckdb").read_bytes()
    snapshot = open_snapshot(store)
    snapshot.files("vocabulary")[0].unlink()
    with pytest.raises(QueryError):
        write_catalog(store, snapshot)
    assert (store / "catalog.duckdb").read_bytes() == before
    assert list((store / "staging").iterdir()) == []


def test_the_session_s_store_was_not_changed(tiny_store):
    """Every test above only reads it."""
    assert open_snapshot(tiny_store).problems(deep=True) == []
    assert {path.name for path in Path(tiny_store).iterdir()} >= {"LATEST", "catalog.duckdb", "snapshots"}
    assert not [path for path in (tiny_store / "staging").rglob("*") if path.is_file()]
