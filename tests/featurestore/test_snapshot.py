import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from featurestore.errors import ArtifactError, NotFound, StoreBusy, VersionError
from featurestore.manifest import FORMAT_VERSION, ID_LENGTH, Manifest
from featurestore.snapshot import Snapshot, list_snapshots, open_snapshot
from featurestore.staging import staging

REJECT = {
    "file": "ratings.dat",
    "byte_offset": 7,
    "source_column": "rating",
    "raw": "1::2::x::3",
    "reason": "no number",
}


def shard(store, kind="examples", number=1):
    return open_snapshot(store).files(kind)[number]


def edit_manifest(store, **changes):
    path = open_snapshot(store).folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip_byte(path, at=100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Publishing


def test_a_snapshot_is_published_whole(tmp_path, publish, make_table):
    snapshot = publish(tmp_path, make_table(50), shards=2)
    assert snapshot.folder == tmp_path / "snapshots" / snapshot.manifest.id
    assert snapshot.manifest.id == snapshot.manifest.content_digest[:ID_LENGTH]
    assert (tmp_path / "LATEST").read_text() == f"{snapshot.manifest.id}\n"
    assert [path.name for path in snapshot.files("examples")] == [
        "part-00000-of-00002.parquet", "part-00001-of-00002.parquet",
    ]  # fmt: skip
    assert snapshot.problems(deep=True) == []
    assert open_snapshot(tmp_path) == snapshot
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "LATEST",
        "ingest.lock",
        "snapshots",
        "staging",
    ]


def test_staged_files_are_no_snapshot_until_published(store, publish, make_table):
    before = open_snapshot(store)
    with staging(store) as stage:
        (stage.folder / "examples").mkdir()
        (stage.folder / "examples" / "part.parquet").write_bytes(b"half")
        (stage.folder / "manifest.json").write_text("{}")
        assert open_snapshot(store) == before
        assert list_snapshots(store) == [before]
    assert list((store / "staging").iterdir()) == []


def test_a_failed_ingestion_leaves_the_store_as_it_was(store):
    before = contents(store)

    def fail(folder):
        (folder / "file").write_bytes(b"half")
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"), staging(store) as stage:
        fail(stage.folder)
    assert contents(store) == before


def test_errors_of_the_body_are_not_taken_for_the_lock_s(store):
    with pytest.raises(BlockingIOError), staging(store):
        raise BlockingIOError("from a pipe")


def test_what_a_killed_ingestion_left_is_removed(store):
    left = store / "staging" / "killed" / "examples"
    left.mkdir(parents=True)
    (left / "part.parquet").write_bytes(b"half")
    (store / "staging" / "catalog-1.duckdb").write_bytes(b"half")
    with staging(store) as stage:
        assert list((store / "staging").iterdir()) == [stage.folder]
    assert list((store / "staging").iterdir()) == []


def test_the_newest_is_served_and_the_others_stay(store, publish, make_table):
    first = open_snapshot(store)
    second = publish(store, make_table(40, seed=5), created="2002-01-01T00:00:00.000+00:00")
    assert open_snapshot(store) == second
    assert open_snapshot(store, first.manifest.id) == first
    assert list_snapshots(store) == [first, second]


def test_the_same_content_is_one_snapshot(store, publish, make_table):
    first = open_snapshot(store)
    publish(store, make_table(40, seed=5))
    before = contents(first.folder)
    again = publish(store, make_table(300), shards=2, created="2003-01-01T00:00:00.000+00:00")
    assert again == first == open_snapshot(store)
    assert contents(first.folder) == before
    assert len(list_snapshots(store)) == 2


@pytest.mark.parametrize("damage", [flip_byte, os.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_a_damaged_snapshot_is_replaced_by_the_same_content(store, publish, make_table, damage):
    damage(shard(store))
    again = publish(store, make_table(300))
    assert again.problems(deep=True) == []
    assert len(list_snapshots(store)) == 1
    assert list((store / "staging").iterdir()) == []


def test_a_snapshot_without_a_readable_manifest_is_replaced(store, publish, make_table):
    (open_snapshot(store).folder / "manifest.json").write_text("{")
    assert publish(store, make_table(300)).problems(deep=True) == []


def test_rejects_make_another_snapshot(store, publish, make_table):
    """Else the rejects of a later ingestion with the same examples would be forgotten."""
    clean = open_snapshot(store)
    with_reject = publish(store, make_table(300), rejects=[REJECT])
    with_other = publish(store, make_table(300), rejects=[{**REJECT, "byte_offset": 8}])
    assert len({snapshot.manifest.id for snapshot in (clean, with_reject, with_other)}) == 3
    assert clean.manifest.content_digest == with_reject.manifest.content_digest
    assert with_reject.manifest.counts == {"read": 301, "examples": 300, "rejects": 1}
    assert with_reject.problems(deep=True) == []
    assert publish(store, make_table(300), rejects=[REJECT]) == with_reject
    assert len(list_snapshots(store)) == 3


def test_a_second_process_is_told_that_the_store_is_busy(store):
    program = (
        "import sys, pathlib; from featurestore.staging import staging\n"
        "with staging(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StoreBusy, match=f"another ingestion into {store} or a removal"), staging(store):
            pytest.fail("two hold the store")
        other.kill()
        other.communicate()
    with staging(store):  # a killed holder holds nothing
        pass


def test_a_store_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"), staging(tmp_path / "file" / "store"):
        pytest.fail("made")


# Opening


def test_an_id_may_be_shortened(store):
    snapshot = open_snapshot(store)
    assert open_snapshot(store, snapshot.manifest.id[:4]) == snapshot


def test_an_ambiguous_start_names_the_candidates(store):
    folder = open_snapshot(store).folder
    for name in ("abc1", "abc2"):
        shutil.copytree(folder, folder.with_name(name))
    with pytest.raises(NotFound, match=r"2 snapshots in .* begin with 'abc': abc1, abc2"):
        open_snapshot(store, "abc")


def test_an_unknown_id_names_the_nearest(store):
    known = open_snapshot(store).manifest.id
    wrong = known[:-1] + ("0" if known[-1] != "0" else "1")
    with pytest.raises(NotFound, match=f"no snapshot '{wrong}' in .*did you mean '{known}'.*snapshots list"):
        open_snapshot(store, wrong)


@pytest.mark.parametrize("path", ["nothing", "file"])
def test_no_store(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        NotFound, match=f"no snapshot in .*{path}: make one with `slotstore ingest SOURCE --store"
    ):
        open_snapshot(tmp_path / path)
    assert list_snapshots(tmp_path / path) == []


def test_latest_names_a_snapshot_that_is_gone(store):
    shutil.rmtree(open_snapshot(store).folder)
    with pytest.raises(NotFound, match="no snapshot '"):
        open_snapshot(store)


def test_folders_without_a_manifest_are_no_snapshots(store):
    (store / "snapshots" / "stray").mkdir()
    (store / "snapshots" / ".DS_Store").write_bytes(b"")
    assert len(list_snapshots(store)) == 1
    with pytest.raises(NotFound):
        open_snapshot(store, "stray")


def test_another_format_version_names_both(store):
    edit_manifest(store, format_version=99)
    with pytest.raises(
        VersionError, match=f"format version 99, this slotstore reads {FORMAT_VERSION}: ingest"
    ):
        open_snapshot(store)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '{"format_version": 1}', '{"format_version": 1, "shards": 3}', "\udcff",
    ],
)  # fmt: skip
def test_a_broken_manifest(store, text):
    path = open_snapshot(store).folder / "manifest.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ArtifactError, match=r"manifest.json is no manifest .*ingest the source again"):
        open_snapshot(store)


@pytest.mark.parametrize(
    "change",
    [{"spec": {}}, {"spec": 3}, {"splits": {}}, {"counts": {"read": 1}}, {"unknown": 1}, {"sums": None}],
)
def test_a_manifest_with_a_wrong_part(store, change):
    edit_manifest(store, **change)
    with pytest.raises(ArtifactError, match=r"manifest.json is no manifest"):
        open_snapshot(store)


# Verifying


def test_a_missing_shard(store):
    path = shard(store)
    path.unlink()
    with pytest.raises(
        ArtifactError, match=r"(?s)is damaged:.*examples/part-00001.* is missing.*Ingest the source"
    ):
        open_snapshot(store)


def test_a_truncated_shard(store):
    path = shard(store, "vocabulary", 0)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(
        ArtifactError, match=f"vocabulary/.* has {size - 1:,} bytes, the manifest says {size:,}"
    ):
        open_snapshot(store)


def test_many_problems_are_counted(tmp_path, publish, make_table):
    snapshot = publish(tmp_path, make_table(50), shards=7)
    for path in snapshot.files("examples"):
        path.unlink()
    with pytest.raises(ArtifactError, match="and 2 more"):
        open_snapshot(tmp_path)


def test_an_altered_byte_is_found_by_a_deep_check_only(store):
    path = shard(store)
    flip_byte(path)
    snapshot = open_snapshot(store)
    assert snapshot.problems(deep=False) == []
    (problem,) = snapshot.problems(deep=True)
    assert problem.startswith(f"examples/{path.name} has digest xxh3_128:")
    with pytest.raises(ArtifactError, match=path.name):
        snapshot.check(deep=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"counts": {"read": 302, "examples": 300, "rejects": 1}},
            "counts do not balance: 302 read, 300 examples",
        ),
        (
            {"counts": {"read": 299, "examples": 299, "rejects": 0}},
            "the shards of examples hold 300 rows, the manif",
        ),
        (
            {"splits": {"kind": "time", "boundaries": [1, 2], "rows": {"train": 1}}},
            "the splits hold 1 rows of 300",
        ),
        (
            {"splits": {"kind": "time", "boundaries": [1, 2], "rows": {"train": 290}, "dropped": 9}},
            "the splits hold 290 rows of 300 examples, 9 of which the label drops",
        ),
        ({"fingerprint": "0" * 16}, "the spec has fingerprint "),
        ({"sums": [1, 2]}, "the examples have sums "),
        ({"content_digest": "0" * 32}, "the examples have content digest "),
        ({"id": "0" * 12}, "the contents have id "),
    ],
)
def test_a_manifest_that_does_not_fit_its_files(store, change, said):
    edit_manifest(store, **change)
    (folder,) = (store / "snapshots").iterdir()
    found = open_snapshot(store, folder.name).problems(deep=True)
    assert any(problem.startswith(said) for problem in found), found


def test_a_shard_of_other_rows_than_the_manifest_says(store):
    snapshot = open_snapshot(store)
    first, *others = snapshot.manifest.shards["examples"]
    shards = {
        **snapshot.manifest.shards,
        "examples": [dataclasses.replace(first, rows=first.rows + 1), *others],
    }
    wrong = Snapshot(snapshot.folder, dataclasses.replace(snapshot.manifest, shards=shards))
    assert wrong.problems(deep=True) == [f"{first.path} has 100 rows, the manifest says 101"]


def test_the_manifest_survives_json(store):
    manifest = open_snapshot(store).manifest
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.load_spec().fingerprint == manifest.fingerprint
    assert again.load_splits().rows == manifest.splits["rows"]
    assert json.loads(manifest.to_json())["shards"]["examples"][0]["rows"] == 100


def test_a_vocabulary_that_does_not_count_the_examples_is_a_problem(store, publish, make_table):
    other = publish(store, make_table(299, seed=3))
    manifest = json.loads((open_snapshot(store).folder / "manifest.json").read_text())
    first = next(found for found in list_snapshots(store) if found.manifest.id != other.manifest.id)
    shards = [
        dataclasses.asdict(shard.seen_from_child(first.manifest.id))
        for shard in first.manifest.shards["vocabulary"]
    ]
    edit_manifest(store, shards={**manifest["shards"], "vocabulary": shards})
    assert open_snapshot(store).problems(deep=True) == [
        "the vocabulary of user_id counts 300 examples of 299",
        "the vocabulary of movie_id counts 300 examples of 299",
    ]
