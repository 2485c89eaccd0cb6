"""Ratings that lie in several files, each of which belongs to a split."""

import shutil

import pyarrow.parquet as pq
import pytest

from featurestore.errors import SourceError, SpecError, TooManyRejects
from featurestore.snapshot import list_snapshots, open_snapshot
from featurestore.spec import SPLITS, load_spec
from featurestore.store import FeatureStore
from pipelines.job import IngestConfig
from pipelines.read import plan_files
from pipelines.source import open_source

SPEC = """
[table]
num_slots = 64
dim = 2
[[features]]
name = "user_id"
lookups = 2
[[features]]
name = "{feature}"
lookups = 1
[label]
[split]
kind = "files"
{split}
"""
SPLIT = 'train = ["a.dat", "b.dat"]\ntest = ["c.dat"]'


@pytest.fixture
def spec(tmp_path):
    """A function that writes a spec and returns its path."""

    def write(split=SPLIT, feature="movie_id"):
        (tmp_path / "by_files.toml").write_text(SPEC.format(split=split, feature=feature))
        return str(tmp_path / "by_files.toml")

    return write


@pytest.fixture
def folder(tmp_path, synthetic_source):
    """The synthetic source with its ratings dealt out to three more files."""
    made = tmp_path / "source"
    shutil.copytree(synthetic_source, made)
    lines = (made / "ratings.dat").read_text().splitlines(keepends=True)
    for name, start, step in (("a.dat", 0, 4), ("b.dat", 1, 2), ("c.dat", 2, 4)):
        (made / name).write_text("".join(lines[start::step]))
    return made


def keys(folder, *names):
    lines = [line for name in names for line in (folder / name).read_text().splitlines()]
    return {tuple(line.split("::")[:2]) for line in lines}


def test_an_example_is_in_the_split_of_its_file(folder, ingest_folder, spec, tmp_path):
    (folder / "c.dat").write_text("".join((folder / "c.dat").read_text().splitlines(keepends=True)[1:]))
    snapshot = ingest_folder(folder, tmp_path / "store", spec=spec(), shard_bytes=30_000).snapshot
    assert snapshot.problems(deep=True) == []
    assert snapshot.manifest.splits["rows"] == {"train": 15_000, "validation": 0, "test": 4_999}
    assert [file["name"] for file in snapshot.manifest.source["files"]] == [
        "a.dat", "b.dat", "c.dat", "movies.dat", "users.dat",
    ]  # fmt: skip
    with FeatureStore(tmp_path / "store") as store:
        for split, files in (("train", ["a.dat", "b.dat"]), ("test", ["c.dat"])):
            table = store.stream(split, ["user_id", "movie_id", "file"]).read_all()
            assert set(table["file"].to_pylist()) == {*files}
            found = set(zip(table["user_id"].to_pylist(), table["movie_id"].to_pylist(), strict=True))
            assert found == keys(folder, *files)


@pytest.mark.parametrize("change", [{"shard_bytes": 10**9}, {"shard_bytes": 20_000, "join": "shuffle"}])
def test_the_digest_does_not_depend_on_shards_or_the_join(folder, ingest_folder, spec, tmp_path, change):
    path = spec(f"{SPLIT}\nvalidation_fraction = 0.2")
    one = ingest_folder(folder, tmp_path / "one", spec=path, shard_bytes=100_000).snapshot
    other = ingest_folder(folder, tmp_path / "other", spec=path, **change).snapshot
    assert one.manifest.id == other.manifest.id
    assert one.manifest.splits == other.manifest.splits
    assert one.manifest.splits["rows"]["validation"] == pytest.approx(3_000, rel=0.1)
    with FeatureStore(tmp_path / "one") as first, FeatureStore(tmp_path / "other") as second:
        for view in ("examples", *SPLITS):
            assert first.sql(f"FROM {view}").equals(second.sql(f"FROM {view}"))


def test_the_file_is_a_plain_column_of_text_and_only_there(folder, tiny_store, ingest_folder, spec, tmp_path):
    snapshot = ingest_folder(folder, tmp_path / "store", spec=spec()).snapshot
    assert snapshot.manifest.columns["file"] == "string"
    tables = [pq.read_table(path) for path in snapshot.files("examples")]
    names = [name for table in tables for name in table["file"].unique().to_pylist()]
    assert names == ["a.dat", "b.dat", "c.dat"]
    assert "file" not in open_snapshot(tiny_store).manifest.columns


def test_what_is_wrong_with_the_files_is_said(folder, ingest_folder, spec, tmp_path):
    def refused(split, said):
        with pytest.raises(SourceError, match=said):
            ingest_folder(folder, tmp_path / "store", spec=spec(split))

    present = r"the folder has a.dat, b.dat, c.dat, .*movies.dat, ratings.dat, .*users.dat"
    refused('train = ["a.dat"]\ntest = ["d.dat"]', rf"d.dat is missing: the spec's split names it, {present}")
    refused('train = ["a.dat"]\ntest = ["users.dat"]', r"names users.dat: ml-1m has no ratings in it")
    (folder / "c.dat").write_text("")
    refused(SPLIT, r"c.dat is empty: expected ratings in the form of ml-1m")
    (folder / "c.dat").write_text("1,2,3\n")
    with pytest.raises(TooManyRejects, match=r"c.dat, byte 0: expected 4 columns separated by '::', got 1"):
        ingest_folder(folder, tmp_path / "store", spec=spec())
    assert list_snapshots(tmp_path / "store") == []


def test_no_feature_reads_which_file_it_was(folder, ingest_folder, spec, tmp_path):
    with pytest.raises(SpecError, match="needs column 'file', which the source does not have"):
        ingest_folder(folder, tmp_path / "store", spec=spec(feature="file"))


def test_a_rating_in_two_files_is_a_duplicate(tiny_source, ingest_folder, spec, tmp_path):
    lines = (tiny_source.folder / "ratings.dat").read_text().splitlines(keepends=True)
    for name, part in (("a.dat", lines[:5]), ("b.dat", lines[5:9]), ("c.dat", [lines[0], *lines[9:]])):
        (tiny_source.folder / name).write_text("".join(part))
    with pytest.raises(TooManyRejects, match=r"a.dat, byte 0: user_id '1' rated movie_id '1' more than once"):
        ingest_folder(tiny_source.folder, tmp_path / "store", spec=spec())
    kept = ingest_folder(tiny_source.folder, tmp_path / "store", spec=spec(), max_reject_ratio=0.1).snapshot
    assert kept.manifest.counts == {"read": 13, "examples": 12, "rejects": 1}
    assert kept.manifest.splits["rows"] == {"train": 8, "validation": 0, "test": 4}


def test_nothing_is_appended_to_a_split_by_files(folder, ingest_folder, spec, tmp_path):
    parent = ingest_folder(folder, tmp_path / "store", spec=spec()).snapshot
    source = open_source(str(folder), tmp_path / "store")
    with pytest.raises(SourceError, match=r"(?s)split by the files a.dat, b.dat, c.dat: .*without --append"):
        IngestConfig(source, parent.manifest.load_spec(), parent=parent)


def test_a_synthetic_source_has_no_such_files(tmp_path):
    source = open_source("synthetic:1000", tmp_path)
    with pytest.raises(
        SourceError, match=r"has one file of ratings, the spec's split names u1.base, u1.test"
    ):
        IngestConfig(source, load_spec("ml100k_u1"))


def test_every_csv_file_has_its_header(tmp_path, ingest_folder, spec):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "movies.csv").write_text("movieId,title,genres\n2,Jumanji (1995),Adventure\n3,Heat,Crime\n")
    header = "userId,movieId,rating,timestamp\r\n"
    for name, user in (("ratings.csv", 1), ("a.csv", 2), ("b.csv", 3)):
        lines = [f"{user},{movie},3.5,1112486027\r\n" for movie in (2, 3)]
        (folder / name).write_bytes("".join([header, *lines]).encode())
    path = spec('train = ["a.csv"]\ntest = ["b.csv"]')
    snapshot = ingest_folder(folder, tmp_path / "store", spec=path).snapshot
    assert snapshot.manifest.counts == {"read": 4, "examples": 4, "rejects": 0}
    (folder / "b.csv").write_text("user,movie\n1,2\n")
    with pytest.raises(SourceError, match=r"b.csv begins with 'user,movie': expected the header"):
        ingest_folder(folder, tmp_path / "store", spec=path)


def test_ranges_of_several_files_are_numbered_through(tmp_path):
    for name, size in (("a", 10), ("b", 25)):
        (tmp_path / name).write_bytes(b"\n" * size)
    found = plan_files([tmp_path / "a", tmp_path / "b"], 10)
    assert [(place.file.name, place.start, place.end, place.index, place.count) for place in found] == [
        ("a", 0, 10, 0, 4), ("b", 0, 8, 1, 4), ("b", 8, 16, 2, 4), ("b", 16, 25, 3, 4),
    ]  # fmt: skip
