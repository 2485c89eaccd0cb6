"""Re-slotting: a child is the snapshot that a full ingestion under its spec would have made."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore.reslot
import featurestore.vocabulary
from featurestore.cli import cli, run_command
from featurestore.compare import compare
from featurestore.digest import file_digest
from featurestore.errors import ArtifactError, NotFound, SpecError, StoreBusy
from featurestore.hashing import MAX_SLOTS, default_seed, hash_values
from featurestore.paths import as_path
from featurestore.reslot import reslot
from featurestore.retention import remove_snapshots
from featurestore.shards import write_parquet
from featurestore.snapshot import MANIFEST, latest, list_snapshots, open_snapshot
from featurestore.spec import SPECS, Table, load_spec, parse_spec
from featurestore.staging import set_latest, staging
from featurestore.store import FeatureStore
from featurestore.vocabulary import Vocabulary
from pipelines.job import IngestConfig, ingest
from pipelines.runner import pipeline_options
from pipelines.source import open_source


def edited(spec, num_slots=None, lookups=()):
    """The spec as a person would edit its file: another number of slots, other lookups or listed seeds."""
    data = spec.to_dict()
    data["table"]["num_slots"] = num_slots or data["table"]["num_slots"]
    for feature in data["features"]:
        name, seeds = feature["name"], feature["seeds"]
        if name in lookups:
            more = [default_seed(name, number) for number in range(len(seeds), lookups[name])]
            feature["seeds"] = [*seeds, *more][: lookups[name]]
        if feature["seeds"] == [default_seed(name, number) for number in range(len(feature["seeds"]))]:
            feature["lookups"] = len(feature.pop("seeds"))
    return parse_spec(data, "edited", "an edited spec")


def ingest_with(spec, source, store, parent=None, **options):
    config = IngestConfig(open_source(str(source), store), spec, parent=parent, **options)
    return ingest(config, store, pipeline_options([])).snapshot


def copy(store, folder):
    shutil.copytree(store, folder)
    return folder


def facts(snapshot):
    """All that a manifest says of its contents: not when, of what and with what it was made."""
    data = dataclasses.asdict(snapshot.manifest)
    for key in ("created", "parent", "versions"):
        data.pop(key)
    data["spec"].pop("name")
    for shards in data["shards"].values():
        for shard in shards:
            shard["path"] = "/".join(shard["path"].split("/")[-2:])  # of the parent's too
    return data


def run(capsys, *args):
    """Run the command; return its exit status, output and errors."""
    try:
        run_command(cli, ["reslot", *map(str, args)])
        status = 0
    except SystemExit as done:
        status = done.code
    return status, *capsys.readouterr()


def edit_manifest(snapshot, change):
    path = snapshot.folder / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def replace_vocabulary(snapshot, number, change):
    """Replace a shard of the vocabulary by another, of which the manifest tells."""
    shard = snapshot.manifest.shards["vocabulary"][number]
    written = write_parquet(change(snapshot.read(shard)), snapshot.folder, shard.path)
    edit_manifest(
        snapshot, lambda data: data["shards"]["vocabulary"].__setitem__(number, dataclasses.asdict(written))
    )


# A child is what an ingestion makes


@pytest.mark.parametrize(
    ("fixture", "num_slots", "lookups"),
    [
        ("tiny_store", 1, {}),
        ("tiny_store", 100_003, {}),
        ("tiny_store", MAX_SLOTS, {"user_id": 1, "movie_id": 1}),
        ("tiny_store", None, {"user_id": 4, "zip": 2}),
        ("tiny_store", 999, {"user_id": 1, "movie_id": 3, "gender": 1}),
        ("article_store", 97, {}),
        ("article_store", 1000, {"user_id": 3, "movie_id": 1, "zip": 2}),
        ("paper_store", 50, {"movie_id": 2}),
    ],
)
def test_a_child_is_the_snapshot_of_a_full_ingestion(
    request, synthetic_source, tmp_path, fixture, num_slots, lookups
):
    store = copy(request.getfixturevalue(fixture), tmp_path / "store")
    parent = open_snapshot(store)
    before = {path: path.read_bytes() for kind in parent.manifest.shards for path in parent.files(kind)}
    done = reslot(store, num_slots=num_slots, lookups=lookups)
    spec = edited(parent.manifest.load_spec(), num_slots, lookups)
    whole = ingest_with(spec, synthetic_source, tmp_path / "whole", shard_bytes=100_000)
    child = done.snapshot
    assert facts(child) == facts(whole)  # id, content digest, sums, splits, counts, columns, bytes of shards
    assert done.made
    assert child.manifest.load_spec().fingerprint == spec.fingerprint
    assert (child.manifest.parent, child.manifest.is_reslotted) == (parent.manifest.id, True)
    assert child.problems(deep=True) == []
    assert {path: path.read_bytes() for path in before} == before
    inherited = [shard.is_inherited for shard in child.manifest.shards["vocabulary"]]
    pairs = zip(spec.features, parent.manifest.load_spec().features, strict=True)
    assert inherited == [one == other for one, other in pairs]


def test_a_child_by_a_spec_is_the_snapshot_of_a_full_ingestion(tiny_store, synthetic_source, tmp_path):
    """Another table with vectors, other lookups, and seeds that no name gives."""
    store = copy(tiny_store, tmp_path / "store")
    old = open_snapshot(store).manifest.load_spec()
    features = [dataclasses.replace(old.features[0], seeds=(7, 8, 9)), old.features[1].with_lookups(6)]
    table = Table(5000, 1, 30)
    spec = dataclasses.replace(old, name="new", table=table, features=(*features, *old.features[2:]))
    done = reslot(store, spec=spec)
    whole = ingest_with(spec, synthetic_source, tmp_path / "whole", shard_bytes=100_000)
    assert facts(done.snapshot) == facts(whole)
    assert done.snapshot.manifest.load_spec() == spec
    assert done.changes == (
        "num_slots 32,768 -> 5,000, dim 16 -> 1, vector none -> 30, lookups of user_id 2 -> 3, "
        "lookups of movie_id 2 -> 6"
    )
    assert not reslot(store, spec=dataclasses.replace(spec, name="same")).made
    seeds = dataclasses.replace(features[0], seeds=(9, 8, 7))
    others = dataclasses.replace(spec, features=(seeds, *spec.features[1:]))
    assert reslot(store, spec=others, newest=False).changes == "other seeds"


def test_where_slots_stay_their_shards_stay(tiny_store, synthetic_source, tmp_path):
    """Another dim, or vectors: not a byte of the examples is another."""
    store = copy(tiny_store, tmp_path / "store")
    old = open_snapshot(store).manifest.load_spec()
    spec = dataclasses.replace(old, table=Table(old.table.num_slots, 4, 9))
    child = reslot(store, spec=spec).snapshot
    assert facts(child) == facts(ingest_with(spec, synthetic_source, tmp_path / "whole", shard_bytes=100_000))
    assert all(shard.is_inherited for shards in child.manifest.shards.values() for shard in shards)
    assert child.problems(deep=True) == []
    with FeatureStore(store) as opened:
        assert opened.sql("SELECT count(*) AS n FROM examples")["n"].to_pylist() == [
            child.manifest.counts["examples"]
        ]


def test_a_spec_says_all_of_the_table(tiny_store):
    with pytest.raises(SpecError, match="a spec says all of the table: give it, or --num"):
        reslot(tiny_store, num_slots=5, spec=load_spec("movielens"))


def test_the_command_takes_a_spec(tiny_store, tmp_path, capsys):
    store, file = copy(tiny_store, tmp_path / "store"), tmp_path / "narrow.toml"
    text = (SPECS / "movielens.toml").read_text()
    file.write_text(text.replace("num_slots = 32768\ndim = 16", "num_slots = 777\ndim = 2\nvector = 12"))
    status, out, err = run(capsys, "--store", store, "--spec", file, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert (told["num_slots"], told["dim"], told["vector"]) == (777, 2, 12)
    assert told["newest"] == told["snapshot"] == open_snapshot(store).manifest.id


def test_a_spec_of_other_examples_needs_an_ingestion(tiny_store):
    spec = load_spec("article")
    with pytest.raises(SpecError, match=r"spec 'article' needs an ingestion(?s:.*): 2 problems") as raised:
        reslot(tiny_store, spec=spec)
    features, split = raised.value.problems
    assert features.startswith(
        "its features are user_id, movie_id, age, occupation, zip; the snapshot has user"
    )
    assert split.startswith("its [split] is {'kind': 'time', 'fractions': [0.5, 0.5]")
    other = dataclasses.replace(spec.features[0], column="movie_id")
    with pytest.raises(SpecError, match=r"its features are user_id \(of movie_id\), movie_id"):
        reslot(tiny_store, spec=dataclasses.replace(spec, features=(other, *spec.features[1:])))


@pytest.fixture(scope="module")
def paper_store(tmp_path_factory, synthetic_source, ingest_folder):
    store = tmp_path_factory.mktemp("paper") / "store"
    ingest_folder(synthetic_source, store, spec="paper", shard_bytes=100_000)
    return store


def test_rejects_are_the_parents_where_they_are(tiny_source, ingest_folder, tmp_path):
    with (tiny_source.folder / "ratings.dat").open("a") as file:
        file.write("1::99::5::978300000\n1::1::5::no time\n")
    parent = ingest_folder(tiny_source.folder, tmp_path / "store", max_reject_ratio=0.5).snapshot
    child = reslot(tmp_path / "store", num_slots=7).snapshot
    spec = edited(parent.manifest.load_spec(), 7)
    whole = ingest_with(spec, tiny_source.folder, tmp_path / "whole", max_reject_ratio=0.5)
    assert facts(child) == facts(whole)
    assert child.manifest.counts["rejects"] == 2
    assert child.files("rejects")[0].samefile(parent.files("rejects")[0])
    assert child.problems(deep=True) == []


def part_of(source, folder, lines):
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("ratings.dat"))
    (folder / "ratings.dat").write_text("".join(lines))
    return folder


def test_it_does_not_matter_whether_one_appends_or_re_slots_first(tiny_source, ingest_folder, tmp_path):
    """The append replaces ratings: a rewritten shard's dictionary keeps a zip that no row has any more."""
    lines = (tiny_source.folder / "ratings.dat").read_text().splitlines(keepends=True)
    first = part_of(tiny_source.folder, tmp_path / "first", lines[:8])
    later = [f"1::{movie}::4::978400000\n" for movie in (1, 2, 3, 4)]
    second = part_of(tiny_source.folder, tmp_path / "second", [*lines[8:], *later])
    (second / "users.dat").write_text("1::F::1::10::new-zip\n3::M::25::15::98107-2117\n")
    digests = []
    for order in ("append, re-slot", "re-slot, append"):
        store = tmp_path / order
        parent = ingest_folder(first, store).snapshot
        spec = edited(parent.manifest.load_spec(), 11, {"zip": 2})
        if order == "re-slot, append":
            parent = reslot(store, num_slots=11, lookups={"zip": 2}).snapshot
        child = ingest_with(parent.manifest.load_spec(), second, store, parent=parent)
        if order == "append, re-slot":
            kept = child.read(child.manifest.shards["examples"][0])["zip"].chunk(0).dictionary.to_pylist()
            assert "48067" in kept
            assert "48067" not in {row["value"] for row in vocabulary(store)}
            child = reslot(store, num_slots=11, lookups={"zip": 2}).snapshot
        assert child.manifest.fingerprint == spec.fingerprint
        assert child.manifest.is_reslotted == (order == "append, re-slot")
        assert child.problems(deep=True) == []
        digests.append(child.manifest.content_digest)  # a reject of an append names the parent, by its id
    assert digests[0] == digests[1]


def vocabulary(store):
    with FeatureStore(store) as opened:
        return opened.sql("FROM vocabulary").to_pylist()


texts = st.text(st.characters(codec="utf-8"), max_size=3)
rows = st.lists(st.tuples(texts | st.none(), texts), min_size=1, max_size=30)
numbers_of_lookups = st.dictionaries(st.sampled_from(["user_id", "movie_id"]), st.integers(1, 6))


@settings(max_examples=10)
@given(rows, st.integers(1, MAX_SLOTS), numbers_of_lookups, st.integers(1, 4))
def test_any_values_and_any_size(publish, make_spec, rows, num_slots, lookups, shards):
    users, movies = zip(*rows, strict=True)
    table = pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "movie_id": pa.array(movies, pa.string()),
            "rating": pa.array([1] * len(rows), pa.float32()),
            "timestamp": pa.array(range(len(rows)), pa.int64()),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        parent = publish(Path(folder) / "store", table, shards=shards)
        child = reslot(Path(folder) / "store", num_slots=num_slots, lookups=lookups).snapshot
        spec = edited(make_spec(), num_slots, lookups)
        whole = publish(Path(folder) / "whole", table, spec, shards=shards)
        assert child.manifest.id == whole.manifest.id
        assert child.manifest.columns == {
            **whole.manifest.columns,
            **dict.fromkeys(spec.slot_columns, "int32"),
        }
        if child.manifest.id != parent.manifest.id:
            with FeatureStore(Path(folder) / "store") as one, FeatureStore(Path(folder) / "whole") as other:
                for view in ("examples", "slots ORDER BY ALL"):
                    assert one.sql(f"FROM {view}").equals(other.sql(f"FROM {view}"))


def test_slots_are_those_of_sql(tiny_store, tmp_path):
    store = copy(tiny_store, tmp_path / "store")
    reslot(store, num_slots=1009, lookups={"user_id": 3, "movie_id": 1})
    with FeatureStore(store) as opened:
        assert opened.spec.slot_columns[:4] == (
            "user_id_slot_0", "user_id_slot_1", "user_id_slot_2", "movie_id_slot_0",
        )  # fmt: skip
        for feature in opened.spec.features:
            for lookup, column in enumerate(feature.slot_columns):
                wrong = f"{column} <> slot('{feature.name}', {feature.column}, {lookup})"
                assert opened.sql(f"SELECT 1 FROM examples WHERE {wrong}").num_rows == 0
        assert opened.sql("SELECT max(slot) < 1009 AS fits FROM slots")["fits"].to_pylist() == [True]


@pytest.mark.real_data
def test_real_ratings_under_the_articles_spec(ml100k_article_store, real_data, tmp_path):
    store = copy(ml100k_article_store, tmp_path / "store")
    child = reslot(store, num_slots=4096, lookups={"zip": 2}).snapshot
    spec = edited(open_snapshot(ml100k_article_store).manifest.load_spec(), 4096, {"zip": 2})
    assert facts(child) == facts(ingest_with(spec, real_data / "ml-100k", tmp_path / "whole"))


# Which snapshot is the newest


def test_a_child_becomes_the_newest_as_an_ingestion_does(store):
    parent = latest(store)
    child = reslot(store, num_slots=50).snapshot.manifest
    assert latest(store) == child.id != parent
    with duckdb.connect(str(store / "catalog.duckdb"), read_only=True) as plain:
        assert plain.sql("SELECT max(user_id_slot_0) < 50 FROM examples").fetchall() == [(True,)]


def test_the_newest_can_be_left_the_newest(store, capsys):
    files = [store / "LATEST", store / "catalog.duckdb"]
    reslot(store, num_slots=96)  # which writes a catalog
    before = [path.read_bytes() for path in files]
    status, out, err = run(capsys, "--store", store, "--num-slots", 50, "--no-latest", "--json")
    told = json.loads(out)
    assert (status, err, told["made"], told["num_slots"]) == (0, "", True, 50)
    assert told["newest"] == told["parent"] != told["snapshot"]
    assert [path.read_bytes() for path in files] == before
    assert open_snapshot(store, told["snapshot"]).problems(deep=True) == []


def test_what_is_the_newest_stays_so_where_it_was_never_written_down(store):
    """A first ingestion was killed before it wrote LATEST: without it the one made last is the newest."""
    parent = latest(store)
    (store / "LATEST").unlink()
    reslot(store, num_slots=50, newest=False)
    assert latest(store) == parent


def test_a_child_that_is_there_is_found(store):
    parent = open_snapshot(store)
    first = reslot(store, num_slots=50, newest=False)
    again = reslot(store, num_slots=50, newest=False)
    back = reslot(store, first.snapshot.manifest.id, num_slots=97, newest=False)
    assert (first.made, again.made, back.made) == (True, False, False)
    assert again.snapshot.manifest == first.snapshot.manifest
    assert back.snapshot.manifest == parent.manifest
    first.snapshot.files("examples")[0].unlink()
    mended = reslot(store, num_slots=50, newest=False)
    assert (mended.made, mended.snapshot.manifest.id) == (True, first.snapshot.manifest.id)
    assert mended.snapshot.problems(deep=True) == []


def test_the_size_that_it_has_is_nothing_to_do(store, capsys):
    before = sorted(store.rglob("*"))
    status, out, _ = run(capsys, "--store", store, "--num-slots", 97, "--lookups", "user_id=2")
    assert status == 0
    assert f"snapshot  {latest(store)} in {store} has this table and these lookups already: nothing" in out
    assert sorted(store.rglob("*")) == before


@pytest.mark.parametrize("by_spec", [False, True])
def test_a_damaged_child_says_what_makes_it_again(store, capsys, by_spec):
    """Also where it has seeds that no name gives, and another dim."""
    old = open_snapshot(store).manifest.load_spec()
    first = dataclasses.replace(old.features[0], seeds=(7, 8))
    spec = dataclasses.replace(old, table=Table(50, 1, 12), features=(first, *old.features[1:]))
    done = reslot(store, spec=spec) if by_spec else reslot(store, num_slots=50, lookups={"movie_id": 1})
    path = done.snapshot.files("examples")[1]
    path.write_bytes(bytes(path.stat().st_size))
    parent = done.parent.manifest.id
    with pytest.raises(ArtifactError) as raised:
        done.snapshot.check(deep=True)
    line = str(raised.value).splitlines()[-1]
    command = line.partition(": slotstore reslot ")[2].split()
    assert line.startswith(f"Make it again from snapshot {parent}")
    assert run(capsys, *command)[0] == 0
    assert open_snapshot(store).manifest.id == done.snapshot.manifest.id
    assert open_snapshot(store).problems(deep=True) == []


def test_the_parent_can_be_removed(store):
    done = reslot(store, num_slots=50)
    remove_snapshots(store, [done.parent.manifest.id])
    assert [one.manifest.id for one in list_snapshots(store)] == [done.snapshot.manifest.id]
    assert done.snapshot.problems(deep=True) == []
    assert reslot(store, num_slots=51).snapshot.problems(deep=True) == []


def test_a_diff_says_that_the_size_changed_and_no_row(store):
    done = reslot(store, num_slots=50)
    found = compare(done.parent, done.snapshot)
    assert [(one.key, one.old, one.new) for one in found.spec if one.key != "fingerprint"] == [
        ("table.num_slots", 97, 50)
    ]
    rows = found.rows
    assert (rows.kept, rows.added, rows.removed, rows.changed) == (300, 0, 0, 0)
    assert found.splits == []
    assert all(one.added == one.gone == one.recounted == 0 for one in found.values)
    assert [(one.kind, one.shared, one.only_new) for one in found.shards] == [
        ("examples", 0, 3), ("vocabulary", 2, 0), ("rejects", 0, 0),
    ]  # fmt: skip


# What goes wrong


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--num-slots", "0"], 2, "--num-slots must be in 1..2147483647, got 0"),
        (["--num-slots", "-5"], 2, "--num-slots must be in 1..2147483647, got -5"),
        (["--num-slots", "2147483648"], 2, "--num-slots must be in 1..2147483647, got 2147483648"),
        (["--num-slots", "many"], 2, "'many' is not a valid integer"),
        ([], 2, "nothing to change: give --num-slots N, --lookups FEATURE=NUMBER or both, or --spec FILE"),
        (["--spec", "paper", "--num-slots", "9"], 2, "a spec says all of the table: give it, or --num-slots"),
        (["--spec", "paper", "--lookups", "zip=2"], 2, "a spec says all of the table: give it, or --n"),
        (["--spec", "papers"], 2, "neither a shipped spec nor a readable file (did you mean 'paper'?)"),
        (["--lookups", "user=2"], 2, "no feature 'user' (did you mean 'user_id'?), the spec has user_id, "),
        (["--lookups", "xyz=2"], 2, "no feature 'xyz' (known: user_id, movie_id)"),
        (["--lookups", "user_id=0"], 2, "--lookups user_id=0: a feature takes 1 to 64 lookups"),
        (["--lookups", "user_id=65"], 2, "--lookups user_id=65: a feature takes 1 to 64 lookups"),
        (["--lookups", "user_id"], 2, "expected FEATURE=NUMBER, such as zip=2, got 'user_id'"),
        (["--lookups", "user_id=x"], 2, "expected FEATURE=NUMBER, such as zip=2, got 'user_id=x'"),
        (["--lookups", "user_id=1", "--lookups", "user_id=2"], 2, "user_id is given 1 and 2 lookups"),
        (["--num-slots", "9", "--snapshot", "zzz"], 4, "no snapshot 'zzz'"),
    ],
)  # fmt: skip
def test_bad_input_is_told(store, capsys, args, status, said):
    before = sorted(store.rglob("*"))
    found, out, err = run(capsys, "--store", store, *args)
    assert (found, out) == (status, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert sorted(store.rglob("*")) == before


def test_all_that_is_wrong_is_told_at_once(store):
    with pytest.raises(SpecError) as raised:
        reslot(store, num_slots=0, lookups={"usr_id": 1, "movie_id": 99})
    assert len(raised.value.problems) == 3


def test_a_further_seed_that_is_listed_already(make_spec):
    clash = default_seed("user_id", 1)
    spec = make_spec(features=[{"name": "user_id", "seeds": [clash]}])
    with pytest.raises(
        SpecError, match=r"feature 'user_id': 1 problem(?s:.*)list them in a spec, and ingest"
    ):
        spec.resized(lookups={"user_id": 2})


def test_a_store_that_is_not_there_is_not_made(tmp_path, capsys):
    status, _, err = run(capsys, "--store", tmp_path / "nowhere", "--num-slots", 5)
    assert status == 4
    assert "slotstore ingest SOURCE --store" in err
    assert not (tmp_path / "nowhere").exists()


def test_a_store_without_vocabulary_says_how_to_build_it(store):
    edit_manifest(open_snapshot(store), lambda data: data["shards"].update(vocabulary=[]))
    with pytest.raises(NotFound, match=rf"has no vocabulary(?s:.*)slotstore ingest 'a test' --store {store}"):
        reslot(store, num_slots=50)


def test_a_store_that_is_written_to_is_busy(store, capsys):
    with staging(store):
        status, _, err = run(capsys, "--store", store, "--num-slots", 50)
    assert status == 5
    assert "is running: wait for it" in err


def test_an_altered_vocabulary_is_noticed(store):
    parent = open_snapshot(store)
    path = parent.files("vocabulary")[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"(?s)vocabulary/{path.name} has digest .* the manifest says"):
        reslot(store, num_slots=50)
    assert [one.manifest for one in list_snapshots(store)] == [parent.manifest]
    assert list((store / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.slice(1), r"the vocabulary of user_id lacks 1 of its values, such as '\d'"),
        (lambda table: table.set_column(0, "feature", pa.array(["zip"] * len(table))), "it is of zip, exp"),
        (
            lambda table: table.set_column(3, "hashes", pa.array([[1]] * len(table), pa.list_(pa.uint32()))),
            r"values of user_id have \[1\] hashes, the spec has 2 seeds",
        ),
        (lambda table: table.drop_columns(["hashes"]), "hashes"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_does_not_fit_is_noticed(store, change, said):
    replace_vocabulary(open_snapshot(store), 0, change)
    with pytest.raises(ArtifactError, match=said):
        reslot(store, num_slots=50)
    assert len(list_snapshots(store)) == 1


def test_a_damaged_shard_of_the_parent_is_noticed(store):
    path = open_snapshot(store).files("examples")[2]
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ArtifactError, match=rf"examples/{path.name} has digest"):
        reslot(store, num_slots=50)
    assert len(list_snapshots(store)) == 1


def test_a_full_disk_leaves_the_store_as_it_was(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted((store / "snapshots").rglob("*"))
    monkeypatch.setattr(featurestore.reslot, "write_parquet", full)
    with pytest.raises(ArtifactError, match=r"nothing was published: .*No space left"):
        reslot(store, num_slots=50)
    assert sorted((store / "snapshots").rglob("*")) == before
    assert list((store / "staging").iterdir()) == []


def test_another_snapshot_that_becomes_the_newest_meanwhile(store, publish, make_table):
    old = open_snapshot(store).manifest.id
    new = publish(store, make_table(40, seed=5)).manifest.id
    set_latest(store, old)

    def interfere(done, shards):  # as another machine may in a bucket, which has no lock
        if done == shards:
            set_latest(store, new)

    with pytest.raises(
        StoreBusy, match=rf"{new} has become the newest snapshot .* {old} was re-slotted(?s:.*)again"
    ):
        reslot(store, num_slots=50, progress=interfere)
    assert latest(store) == new
    assert {one.manifest.id for one in list_snapshots(store)} == {old, new}
    assert reslot(store, old, num_slots=50, progress=interfere).made  # who names it wants that one


def test_a_killed_one_leaves_the_parent(synthetic_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    parent = ingest_folder(synthetic_source, store, shard_bytes=2_000).snapshot
    program = "from featurestore.cli import main; main()"
    command = [sys.executable, "-c", program, "reslot", "--store", str(store), "--num-slots", "123", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list(store.glob("staging/*/examples/*.parquet")):
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert [one.manifest for one in list_snapshots(store)] == [parent.manifest]
    assert latest(store) == parent.manifest.id
    assert list(store.glob("staging/*"))
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (told["parent"], told["newest"]) == (parent.manifest.id, told["snapshot"])
    assert open_snapshot(store).problems(deep=True) == []
    assert list((store / "staging").iterdir()) == []


def test_re_slotting_loads_neither_beam_nor_torch(store):
    program = (
        "import sys\nfrom featurestore.cli import cli, run_command\n"
        "run_command(cli, ['reslot', '--store', sys.argv[1], '--num-slots', '50'])\n"
        "print(*{'apache_beam', 'torch', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, store], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert "num_slots 97 -> 50" in done.stdout


def test_in_a_bucket(tiny_source, ingest_folder, s3_bucket, tmp_path):
    store = as_path(f"{s3_bucket}/reslotted")
    parent = ingest_folder(tiny_source.folder, store).snapshot
    child = reslot(store, num_slots=17, lookups={"zip": 2}).snapshot
    ingest_folder(tiny_source.folder, tmp_path / "here")
    here = reslot(tmp_path / "here", num_slots=17, lookups={"zip": 2}).snapshot
    assert (child.manifest.id, child.manifest.parent) == (here.manifest.id, parent.manifest.id)
    assert latest(store) == child.manifest.id
    assert child.problems(deep=True) == []
    assert not reslot(store, parent.manifest.id, num_slots=17, lookups={"zip": 2}, newest=False).made


def test_under_keeps_the_hashes_it_has(make_spec, monkeypatch):
    feature = make_spec().feature("movie_id")
    words = Vocabulary.of(feature, pa.array(["a", "b"]), pa.array([2, 1]))
    hashed = []

    def spy(values, seeds):
        hashed.append(seeds)
        return hash_values(values, seeds)

    monkeypatch.setattr(featurestore.vocabulary, "hash_values", spy)
    assert (words.under(feature.with_lookups(1)).hashes == words.hashes[:1]).all()
    more = feature.with_lookups(3)
    assert (words.under(more).hashes == hash_values(words.values, more.seeds)).all()
    assert hashed == [[], [default_seed("movie_id", 2)]]


def test_the_digest_is_of_the_bytes_read(store):
    snapshot = open_snapshot(store)
    shard = snapshot.manifest.shards["examples"][0]
    assert snapshot.read(shard, ["rating"]).column_names == ["rating"]
    assert file_digest(snapshot.folder / shard.path) == shard.digest
