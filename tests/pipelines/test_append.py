"""Appends: a child snapshot is the one that all ratings together would have made."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from featurestore.errors import (
    ArtifactError,
    FingerprintError,
    NotFound,
    SourceError,
    SpecError,
    StoreBusy,
    TooManyRejects,
)
from featurestore.paths import as_path
from featurestore.snapshot import list_snapshots, open_snapshot
from featurestore.staging import set_latest
from featurestore.store import FeatureStore
from pipelines.duplicates import SUPERSEDED
from pipelines.job import IngestConfig, choose_spec, ingest
from pipelines.runner import pipeline_options
from pipelines.source import open_source


def append(folder, store, spec=None, **options):
    """Append as `slotstore ingest --append` does."""
    source, parent = open_source(str(folder), store), open_snapshot(store)
    config = IngestConfig(source, choose_spec(spec, source, parent)[0], parent=parent, **options)
    return ingest(config, store, pipeline_options([]))


def part_of(source, folder, lines):
    """Copy a source with only some lines of its ratings."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("ratings.dat"))
    (folder / "ratings.dat").write_text("".join(lines))
    return folder


def ratings(source):
    return (source / "ratings.dat").read_text().splitlines(keepends=True)


def rejects(store):
    with FeatureStore(store) as opened:
        return opened.sql("SELECT * FROM rejects ORDER BY file, byte_offset").to_pylist()


def vocabulary(store):
    with FeatureStore(store) as opened:
        return opened.sql("SELECT * FROM vocabulary ORDER BY feature, value").to_pylist()


def test_two_halves_make_the_snapshot_of_the_whole(synthetic_source, tiny_store, ingest_folder, tmp_path):
    lines = ratings(synthetic_source)
    first = part_of(synthetic_source, tmp_path / "first", lines[:15_000])
    second = part_of(synthetic_source, tmp_path / "second", lines[15_000:])
    parent = ingest_folder(first, tmp_path / "store", shard_bytes=100_000).snapshot
    before = {path: path.stat() for path in parent.files("examples")}
    result = append(second, tmp_path / "store", shard_bytes=100_000)
    child, whole = result.snapshot, open_snapshot(tiny_store)
    assert (child.manifest.id, child.manifest.splits) == (whole.manifest.id, whole.manifest.splits)
    assert child.manifest.parent == parent.manifest.id
    assert [entry["snapshot"] for entry in child.manifest.lineage] == [parent.manifest.id]
    assert child.problems(deep=True) == []
    assert vocabulary(tmp_path / "store") == vocabulary(tiny_store)
    assert {path: path.stat() for path in parent.files("examples")} == before
    assert all(path.samefile(mine) for path, mine in zip(before, child.files("examples"), strict=False))
    assert [shard.is_inherited for shard in child.manifest.shards["examples"]] == [True] * len(before) + [
        False
    ] * (len(child.files("examples")) - len(before))


def test_the_later_rating_stays(tiny_source, ingest_folder, tmp_path):
    store, new = tmp_path / "store", tmp_path / "new"
    parent = ingest_folder(tiny_source.folder, store, shard_bytes=60).snapshot
    old = ratings(tiny_source.folder)
    part_of(
        tiny_source.folder,
        new,
        [
            "1::1::5::978400000\n",  # later
            "1::2::5::978200000\n",  # earlier
            old[2],  # the same
            f"{old[3].rsplit('::', 2)[0]}::{'1' if '::5::' in old[3] else '5'}::{old[3].rsplit('::', 1)[1]}",
        ],  # and at the same time, another
    )
    (new / "users.dat").write_text("1::F::18::10::new-zip\n")
    result = append(new, store)
    counts = result.snapshot.manifest.counts
    assert (result.reports.examples, result.reports.superseded, result.reports.replaced) == (2, 2, 2)
    assert counts == {"read": 16, "examples": 12, "rejects": 4}
    assert result.snapshot.problems(deep=True) == []
    with FeatureStore(store) as opened:
        rows = opened.sql(
            "SELECT movie_id, rating, timestamp, zip FROM examples WHERE user_id = '1' ORDER BY movie_id"
        ).to_pylist()
    assert rows[0] == {"movie_id": "1", "rating": 5.0, "timestamp": 978400000, "zip": "new-zip"}
    assert rows[1]["timestamp"] == rows[0]["timestamp"] - (978400000 - 978300012)
    assert [row["zip"] for row in rows] == ["new-zip", "48067", "48067", "new-zip"]
    assert open_snapshot(store, parent.manifest.id).problems(deep=True) == []
    found = rejects(store)
    assert all(row["reason"].startswith(SUPERSEDED) for row in found)
    assert [row["file"].split("/")[0] for row in found] == [parent.manifest.id] * 2 + ["ratings.dat"] * 2
    assert found[0]["raw"].startswith("1::1::")
    words = {row["value"]: row["count"] for row in vocabulary(store) if row["feature"] == "zip"}
    assert words == {"48067": 2, "new-zip": 2, "70072": 4, "98107-2117": 4}


def test_a_chain_of_appends_is_the_whole(tiny_source, ingest_folder, tmp_path):
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    ingest_folder(part_of(tiny_source.folder, tmp_path / "0", lines[:4]), store)
    append(part_of(tiny_source.folder, tmp_path / "1", lines[4:8]), store)
    last = append(part_of(tiny_source.folder, tmp_path / "2", lines[8:]), store).snapshot
    whole = ingest_folder(tiny_source.folder, tmp_path / "whole").snapshot
    assert last.manifest.id == whole.manifest.id
    assert len(last.manifest.lineage) == 2
    assert last.problems(deep=True) == []


def test_an_append_that_is_run_again_changes_nothing(tiny_source, ingest_folder, tmp_path):
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    ingest_folder(part_of(tiny_source.folder, tmp_path / "0", lines[:4]), store)
    new = part_of(tiny_source.folder, tmp_path / "1", lines[4:])
    first, again = append(new, store), append(new, store)
    assert again.snapshot.manifest == first.snapshot.manifest
    assert again.reports is None
    assert len(list_snapshots(store)) == 2


def test_ratings_that_are_there_already_add_nothing(tiny_source, ingest_folder, tmp_path):
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    ingest_folder(tiny_source.folder, store)
    twice = part_of(tiny_source.folder, tmp_path / "1", lines[::-1])
    result = append(twice, store)
    assert (result.reports.examples, result.reports.superseded, result.reports.replaced) == (0, 12, 0)
    assert result.snapshot.manifest.counts == {"read": 24, "examples": 12, "rejects": 12}


DROPPING = """
[table]
num_slots = 64
dim = 2
[[features]]
name = "user_id"
lookups = 1
[label]
threshold = 4.0
drop = {drop}
[split]
fractions = [0.5, 0.5]
"""


def test_what_the_label_drops_does_not_count_for_the_boundaries(tiny_source, ingest_folder, tmp_path):
    lines, spec = ratings(tiny_source.folder), tmp_path / "dropping.toml"
    spec.write_text(DROPPING.format(drop=[3.0]))
    whole = ingest_folder(tiny_source.folder, tmp_path / "whole", spec=str(spec)).snapshot.manifest
    first, second = (part_of(tiny_source.folder, tmp_path / name, part)
                     for name, part in (("0", lines[:7]), ("1", lines[7:])))  # fmt: skip
    ingest_folder(first, tmp_path / "store", spec=str(spec))
    child = append(second, tmp_path / "store").snapshot
    assert (child.manifest.id, child.manifest.splits) == (whole.id, whole.splits)
    assert whole.counts["examples"] == 12
    assert (whole.splits["rows"], whole.splits["dropped"]) == ({"train": 4, "validation": 5, "test": 0}, 3)
    assert child.problems(deep=True) == []


def test_a_label_that_drops_all_is_refused(tiny_source, ingest_folder, tmp_path):
    spec = tmp_path / "dropping.toml"
    spec.write_text(DROPPING.format(drop=[1, 2, 3, 4, 5]))
    with pytest.raises(SourceError, match=r"all 12 examples have a rating that the spec 'dropping' drops"):
        ingest_folder(tiny_source.folder, tmp_path / "store", spec=str(spec))
    assert list_snapshots(tmp_path / "store") == []


def test_bad_records_are_those_of_the_new_source(tiny_source, ingest_folder, tmp_path):
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    parent = ingest_folder(tiny_source.folder, store).snapshot
    new = part_of(tiny_source.folder, tmp_path / "1", [lines[0], "9::1::5::978400000\n"])
    with pytest.raises(TooManyRejects, match=r"1 of 2 records are bad.*\n.*user_id '9' is not in users.dat"):
        append(new, store)
    assert [found.manifest for found in list_snapshots(store)] == [parent.manifest]
    result = append(new, store, max_reject_ratio=0.5)
    assert (result.reports.rejects, result.reports.superseded) == (2, 1)


def test_what_cannot_be_appended(tiny_source, article_store, ingest_folder, tmp_path):
    store = tmp_path / "store"
    with pytest.raises(NotFound, match="no snapshot in"):
        append(tiny_source.folder, store)
    ingest_folder(tiny_source.folder, store)
    with pytest.raises(FingerprintError, match=r"(?s)fingerprint .* without --append"):
        append(tiny_source.folder, store, spec="article")
    write_100k(tmp_path / "ml-100k")
    with pytest.raises(SourceError, match=r"(?s)release_date.*append a source of the same format"):
        append(tmp_path / "ml-100k", store)


def write_100k(folder):
    folder.mkdir()
    (folder / "u.data").write_text("1\t1\t3\t978300000\n")
    (folder / "u.user").write_text("1|24|M|technician|85711\n")
    (folder / "u.item").write_text("1|Toy Story (1995)|01-Jan-1995||url|" + "|".join("0" * 19) + "\n")


def test_a_parent_that_is_no_longer_the_newest(tiny_source, ingest_folder, tmp_path):
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    first = ingest_folder(part_of(tiny_source.folder, tmp_path / "0", lines[:4]), store).snapshot
    append(part_of(tiny_source.folder, tmp_path / "1", lines[4:8]), store)
    source = open_source(str(part_of(tiny_source.folder, tmp_path / "2", lines[8:])), store)
    config = IngestConfig(source, first.manifest.load_spec(), parent=first)
    with pytest.raises(StoreBusy, match="run again"):
        ingest(config, store, pipeline_options([]))
    set_latest(store, first.manifest.id)
    assert ingest(config, store, pipeline_options([])).snapshot.manifest.parent == first.manifest.id


def test_a_killed_append_leaves_the_parent(synthetic_source, ingest_folder, tmp_path):
    lines, store = ratings(synthetic_source), tmp_path / "store"
    parent = ingest_folder(part_of(synthetic_source, tmp_path / "0", lines[:10_000]), store).snapshot
    new = part_of(synthetic_source, tmp_path / "1", lines[10_000:])
    command = [sys.executable, "-m", "pipelines.ingest", str(new), "--store", str(store), "--append"]
    child = subprocess.Popen([*command, "--shard-bytes", "4000"], stdout=subprocess.DEVNULL)
    while not list(store.glob("staging/*/reports/examples-*")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [found.manifest for found in list_snapshots(store)] == [parent.manifest]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert (told["parent"], told["examples"], told["replaced"]) == (parent.manifest.id, len(lines), 0)
    assert open_snapshot(store).problems(deep=True) == []


def test_appends_in_a_bucket(tiny_source, ingest_folder, s3_bucket, tmp_path):
    lines, store = ratings(tiny_source.folder), as_path(f"{s3_bucket}/appended")
    ingest_folder(part_of(tiny_source.folder, tmp_path / "0", lines[:8]), store)
    new = part_of(tiny_source.folder, tmp_path / "1", [*lines[8:], "1::1::5::978400000\n"])
    result = append(new, store)
    assert (result.reports.examples, result.reports.replaced) == (5, 1)
    assert result.snapshot.problems(deep=True) == []


def test_a_source_with_mended_movies_is_appended_again(tiny_source, ingest_folder, tmp_path):
    """The same ratings, which the first time were rejects for want of a movie."""
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    ingest_folder(part_of(tiny_source.folder, tmp_path / "0", lines[:4]), store)
    new = part_of(tiny_source.folder, tmp_path / "1", lines[4:])
    movies = (new / "movies.dat").read_bytes()
    (new / "movies.dat").write_bytes(movies.splitlines(keepends=True)[0])
    assert append(new, store, max_reject_ratio=1).reports.examples == 2
    (new / "movies.dat").write_bytes(movies)
    assert append(new, store).reports.examples == 6


def test_an_append_of_superseded_ratings_alone_writes_no_shard(tiny_source, ingest_folder, tmp_path):
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    parent = ingest_folder(tiny_source.folder, store).snapshot
    child = append(part_of(tiny_source.folder, tmp_path / "1", lines[:2]), store).snapshot
    assert child.files("examples") == [
        child.folder / shard.seen_from_child(parent.manifest.id).path
        for shard in parent.manifest.shards["examples"]
    ]
    assert child.problems(deep=True) == []
    assert [path.name for path in child.folder.iterdir() if path.name == "examples"] == []


def test_a_damaged_child_says_what_makes_it_again(tiny_source, ingest_folder, tmp_path):
    lines, store = ratings(tiny_source.folder), tmp_path / "store"
    ingest_folder(part_of(tiny_source.folder, tmp_path / "0", lines[:4]), store)
    child = append(part_of(tiny_source.folder, tmp_path / "1", lines[4:]), store).snapshot
    child.files("examples")[-1].unlink()
    with pytest.raises(ArtifactError, match=rf"mend it: {tmp_path}/0, then {tmp_path}/1 with --append"):
        open_snapshot(store)


def test_a_store_that_duckdb_cannot_open_is_refused(tiny_source, ingest_folder, tmp_path):
    with pytest.raises(SpecError, match="question mark"):
        ingest_folder(tiny_source.folder, tmp_path / "a?b")
    assert not (tmp_path / "a?b").exists()
