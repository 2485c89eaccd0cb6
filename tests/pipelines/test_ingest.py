"""Whole ingestions: what is published, what is refused, and that nothing half-done is visible."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import DirectOptions

from featurestore.errors import ArtifactError, SourceError, SpecError, StoreBusy, TooManyRejects, VersionError
from featurestore.snapshot import list_snapshots, open_snapshot
from featurestore.spec import SPECS
from featurestore.store import FeatureStore
from pipelines import job, vocabulary
from pipelines.runner import available_cores, pipeline_options
from pipelines.source import open_source
from pipelines.vocabulary import add_counts

SLOTSTORE = [sys.executable, "-m", "pipelines.ingest"]


def append(path: Path, data: bytes):
    path.write_bytes(path.read_bytes() + data)


def rejects(store):
    with FeatureStore(store) as opened:
        return opened.sql("SELECT * FROM rejects ORDER BY file, byte_offset").to_pylist()


def count(store, view="examples"):
    with FeatureStore(store) as opened:
        return opened.sql(f"SELECT count(*) AS n FROM {view}")["n"][0].as_py()


def untouched(store):
    return not (store / "snapshots").exists() and not (store / "LATEST").exists()


def test_everything_known_about_a_rating_is_an_example(tiny_source, ingest_folder, tmp_path):
    result = ingest_folder(tiny_source.folder, tmp_path / "store")
    assert result.snapshot.manifest.counts == {"read": 12, "examples": 12, "rejects": 0}
    with FeatureStore(tmp_path / "store") as store:
        first = store.sql(
            "SELECT COLUMNS(lambda c: NOT contains(c, '_slot_')) FROM examples LIMIT 1"
        ).to_pylist()[0]
        titles = store.sql("SELECT DISTINCT title FROM examples ORDER BY title")["title"].to_pylist()
    assert first == {
        "user_id": "1", "movie_id": "1", "rating": 2.0, "timestamp": 978300011, "gender": "F", "age": "1",
        "occupation": "10", "zip": "48067", "title": "Toy Story (1995)", "genres": "Animation|Comedy",
    }  # fmt: skip
    assert titles == ["A::B", "Jumanji (1995)", "Toy Story (1995)", "Étranger"]


def test_vocabulary_counts_every_value(tiny_store):
    with FeatureStore(tiny_store) as store:
        wrong = store.sql(
            "WITH raw AS (UNPIVOT (SELECT user_id, movie_id, gender, age, occupation, zip FROM examples) "
            "ON COLUMNS(*) INTO NAME feature VALUE value), "
            "counted AS (SELECT feature, value, count(*) n FROM raw GROUP BY ALL) "
            "FROM counted FULL JOIN vocabulary USING (feature, value) WHERE n IS DISTINCT FROM count"
        )
        assert wrong.num_rows == 0
        assert store.sql("SELECT count(*) AS n FROM vocabulary")["n"][0].as_py() > 400


@pytest.mark.parametrize(
    "change",
    [
        {"shard_bytes": 50_000},
        {"shard_bytes": 10**9},
        {"flags": ["--direct_num_workers", "1", "--direct_running_mode", "in_memory"]},
        {"shard_bytes": 50_000, "broadcast_bytes": 0},
    ],
)
def test_digest_and_rows_do_not_depend_on_shards_or_workers(
    tiny_store, synthetic_source, ingest_folder, tmp_path, change
):
    flags = change.pop("flags", [])
    result = ingest_folder(synthetic_source, tmp_path / "other", flags=[*flags], **change)
    expected = open_snapshot(tiny_store).manifest
    assert result.snapshot.manifest.content_digest == expected.content_digest
    assert result.snapshot.manifest.splits == expected.splits
    assert result.snapshot.problems(deep=True) == []
    with FeatureStore(tiny_store) as one, FeatureStore(tmp_path / "other") as other:
        assert one.sql("FROM examples").equals(other.sql("FROM examples"))
        assert one.sql("FROM vocabulary ORDER BY ALL").equals(other.sql("FROM vocabulary ORDER BY ALL"))


def test_worker_processes_give_the_same_digest(tiny_store, synthetic_source, tmp_path):
    store = str(tmp_path / "store")
    flags = [
        "--direct_num_workers",
        "2",
        "--direct_running_mode",
        "multi_processing",
        "--shard-bytes",
        "100000",
    ]
    done = subprocess.run(
        [*SLOTSTORE, str(synthetic_source), "--store", store, "--json", *flags],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["content_digest"] == open_snapshot(tiny_store).manifest.content_digest
    assert said["counters"]["join_loads"] <= 2  # once a process


def test_same_content_again_is_the_same_snapshot(tiny_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    first = ingest_folder(tiny_source.folder, store)
    second = ingest_folder(tiny_source.folder, store)
    assert first.snapshot == second.snapshot
    assert len(list_snapshots(store)) == 1
    assert list((store / "staging").iterdir()) == []


BAD_LINES = {
    "truncated last line": b"1::4::5::9783",
    "wrong column count": b"1::4::5\n",
    "non-numeric rating": b"1::4::five::978300099\n",
    "unknown user id": b"99::4::5::978300099\n",
    "unknown movie id": b"1::99::5::978300099\n",
    "byte garbage": b"\x00\xff\xfe::\x80garbage\n",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_record_stops_the_ingestion_or_becomes_a_reject(tiny_source, ingest_folder, tmp_path, line):
    path, store = tiny_source.folder / "ratings.dat", tmp_path / "store"
    offset = path.stat().st_size
    append(path, line)
    with pytest.raises(TooManyRejects) as caught:
        ingest_folder(tiny_source.folder, store)
    message = str(caught.value)
    assert "1 of 13 records are bad" in message
    assert f"ratings.dat, byte {offset:,}: " in message
    assert "--max-reject-ratio" in message
    assert untouched(store)
    ratio = float(message.rsplit("--max-reject-ratio ", 1)[1].rstrip("."))
    result = ingest_folder(tiny_source.folder, store, max_reject_ratio=ratio)
    assert result.snapshot.manifest.counts == {"read": 13, "examples": 12, "rejects": 1}
    assert [(row["file"], row["byte_offset"]) for row in rejects(store)] == [("ratings.dat", offset)]
    assert result.snapshot.problems(deep=True) == []


def test_bad_users_and_their_ratings_are_all_accounted_for(tiny_source, ingest_folder, tmp_path):
    users, store = tiny_source.folder / "users.dat", tmp_path / "store"
    users.write_bytes(
        users.read_bytes().replace(b"2::M::56::16::70072", b"2::M::56::70072") + b"1::M::1::1::00000\n"
    )
    result = ingest_folder(tiny_source.folder, store, max_reject_ratio=1.0)
    assert result.snapshot.manifest.counts == {"read": 14, "examples": 8, "rejects": 6}
    found = rejects(store)
    assert {row["reason"] for row in found} == {
        "expected 5 columns separated by '::', got 4",
        "user_id '1' stands on an earlier line too; the first is kept",
        "user_id '2' is not in users.dat",
    }


def test_of_duplicate_ratings_the_latest_is_kept(tiny_source, ingest_folder, tmp_path):
    path, store = tiny_source.folder / "ratings.dat", tmp_path / "store"
    append(path, b"1::1::5::978390000\n1::2::5::978290000\n")
    with pytest.raises(TooManyRejects, match=r"2 of 14 .*\n.*user_id '1' rated movie_id '1' more than once"):
        ingest_folder(tiny_source.folder, store, shard_bytes=60)
    assert untouched(store)
    result = ingest_folder(tiny_source.folder, store, shard_bytes=60, max_reject_ratio=0.5)
    assert result.snapshot.manifest.counts == {"read": 14, "examples": 12, "rejects": 2}
    assert [row["raw"] for row in rejects(store)] == ["1::1::2::978300011", "1::2::5::978290000"]
    with FeatureStore(store) as opened:
        kept = opened.sql("SELECT timestamp FROM examples WHERE user_id = '1' AND movie_id = '1'")
        assert kept["timestamp"].to_pylist() == [978390000]
        assert (
            opened.sql("SELECT sum(count) AS n FROM vocabulary WHERE feature = 'user_id'")["n"][0].as_py()
            == 12
        )
    assert result.snapshot.problems(deep=True) == []


def test_ranges_without_a_good_record_leave_no_shard(tiny_source, ingest_folder, tmp_path):
    path = tiny_source.folder / "ratings.dat"
    append(path, b"bad\n" * 40 + b"9::1::5::978300000\n" * 3)
    snapshot = ingest_folder(
        tiny_source.folder, tmp_path / "store", max_reject_ratio=1.0, shard_bytes=19
    ).snapshot
    assert snapshot.manifest.counts == {"read": 55, "examples": 12, "rejects": 43}
    assert min(shard.rows for shard in snapshot.manifest.shards["examples"]) > 0
    assert snapshot.problems(deep=True) == []


def test_no_example_at_all_is_no_snapshot(tiny_source, ingest_folder, tmp_path):
    (tiny_source.folder / "ratings.dat").write_bytes(b"bad\nworse\n")
    with pytest.raises(SourceError, match="none of 2 records became an example"):
        ingest_folder(tiny_source.folder, tmp_path / "store", max_reject_ratio=1.0)
    assert untouched(tmp_path / "store")


def test_new_rejects_beside_the_same_examples_are_not_lost(tiny_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    first = ingest_folder(tiny_source.folder, store).snapshot.manifest
    append(tiny_source.folder / "ratings.dat", b"bad\n")
    second = ingest_folder(tiny_source.folder, store, max_reject_ratio=1.0).snapshot.manifest
    assert second.content_digest == first.content_digest
    assert second.id != first.id
    assert len(rejects(store)) == 1


@pytest.mark.parametrize("file", ["ratings.dat", "users.dat", "movies.dat"])
def test_missing_and_empty_files_are_named(tiny_source, ingest_folder, tmp_path, file):
    path = tiny_source.folder / file
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=f"{file} is empty"):
        ingest_folder(tiny_source.folder, tmp_path / "store")
    path.unlink()
    with pytest.raises(SourceError, match=f"{file}.* is missing|no MovieLens files"):
        ingest_folder(tiny_source.folder, tmp_path / "store")
    assert untouched(tmp_path / "store")


def ml_10m(folder):
    folder.mkdir()
    (folder / "ratings.dat").write_text(
        "1::122::3.5::978300000\n2::122::5::978300001\n2::7::0.5::978300002\n"
    )
    (folder / "movies.dat").write_text('122::"Quoted" (1992)::Comedy|Romance\n7::Alien::Drama::Sci-Fi\n')
    return folder


def test_ml_10m_gets_the_features_it_has(ingest_folder, tmp_path):
    folder, store = ml_10m(tmp_path / "ml-10m"), tmp_path / "store"
    result = ingest_folder(folder, store)
    assert result.snapshot.manifest.source["format"] == "ml-10m"
    with FeatureStore(store) as opened:
        assert [feature.name for feature in opened.spec.features] == ["user_id", "movie_id"]
        table = opened.sql("SELECT title, genres, rating FROM examples ORDER BY timestamp")
    assert table["title"].to_pylist() == ['"Quoted" (1992)', '"Quoted" (1992)', "Alien::Drama"]
    assert table["rating"].to_pylist() == [3.5, 5.0, 0.5]


@pytest.fixture(scope="module")
def as_ml_10m(synthetic_source, ingest_folder, tmp_path_factory):
    """The synthetic ratings and movies as an ml-10m folder, ingested."""
    folder = tmp_path_factory.mktemp("ml-10m")
    shutil.copy(synthetic_source / "ratings.dat", folder)
    (folder / "movies.dat").write_text((synthetic_source / "movies.dat").read_text("latin-1"), "utf-8")
    (folder / "tags.dat").touch()
    return ingest_folder(folder, folder / "store").snapshot.manifest


def write_csv(source, folder, newline):
    """Write the ratings and movies of an ml-1m folder as a folder of the later releases."""
    folder.mkdir()
    ratings = (source / "ratings.dat").read_text("ascii").replace("::", ",").replace("\n", newline)
    (folder / "ratings.csv").write_bytes(f"userId,movieId,rating,timestamp{newline}{ratings}".encode())
    with (folder / "movies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=newline)
        writer.writerow(["movieId", "title", "genres"])
        lines = (source / "movies.dat").read_text("latin-1").splitlines()
        writer.writerows(line.split("::") for line in lines)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_and_dat_make_the_same_examples(as_ml_10m, synthetic_source, ingest_folder, tmp_path, newline):
    write_csv(synthetic_source, tmp_path / "csv", newline)
    snapshot = ingest_folder(tmp_path / "csv", tmp_path / "store", shard_bytes=100_000).snapshot
    manifest = snapshot.manifest
    assert (manifest.source["format"], as_ml_10m.source["format"]) == ("ml-csv", "ml-10m")
    assert [file["name"] for file in manifest.source["files"]] == ["movies.csv", "ratings.csv"]
    assert manifest.counts == {"read": 20_000, "examples": 20_000, "rejects": 0}
    assert manifest.content_digest == as_ml_10m.content_digest
    assert '"' in (tmp_path / "csv" / "movies.csv").read_text("utf-8")


def test_bad_lines_of_csv_are_rejects_where_they_stand(tiny_source, ingest_folder, tmp_path):
    folder, store = tmp_path / "csv", tmp_path / "store"
    folder.mkdir()
    movies = '1,"Toy ""Story"", The",Comedy\r\n2,"Jumanji,Adventure\r\n1,Again,Drama\r\n'
    ratings = "1,1,4.5,978300000\r\n1,1,4.5\r\n1,2,3.0,978300001\r\n"
    (folder / "movies.csv").write_text(f"movieId,title,genres\r\n{movies}", "utf-8", newline="")
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\r\n{ratings}", newline="")
    counts = ingest_folder(folder, store, max_reject_ratio=1.0).snapshot.manifest.counts
    assert counts == {"read": 5, "examples": 1, "rejects": 4}
    found = [(row["file"], row["byte_offset"], row["source_column"], row["raw"]) for row in rejects(store)]
    assert found == [
        ("movies.csv", 22 + 31, "", '2,"Jumanji,Adventure'),
        ("movies.csv", 22 + 31 + 22, "movie_id", "1,Again,Drama"),
        ("ratings.csv", 33 + 19, "", "1,1,4.5"),
        ("ratings.csv", 33 + 19 + 9, "movie_id", "1,2,3.0,978300001"),
    ]
    with FeatureStore(store) as opened:
        assert opened.sql("SELECT title FROM examples")["title"].to_pylist() == ['Toy "Story", The']


def test_a_spec_that_does_not_fit_names_every_column(ingest_folder, tmp_path):
    with pytest.raises(SpecError) as caught:
        ingest_folder(ml_10m(tmp_path / "ml-10m"), tmp_path / "store", spec="article")
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        f"feature '{name}' needs column '{name}'" for name in ("age", "occupation", "zip")
    ]


def test_another_header_touches_nothing(ingest_folder, tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "movies.csv").write_text("movieId,title,genres\n1,A,Drama\n")
    (folder / "ratings.csv").write_text("1,1,4.5,978300000\n")
    with pytest.raises(
        SourceError, match=r"ratings\.csv begins with '1,1,4\.5,978300000': expected the header"
    ):
        ingest_folder(folder, tmp_path / "store", max_reject_ratio=1.0)
    assert not (tmp_path / "store").exists()


def test_the_command_says_which_features_are_left_out(tmp_path):
    folder = ml_10m(tmp_path / "ml-10m")
    done = subprocess.run(
        [*SLOTSTORE, str(folder), "--store", str(tmp_path / "store")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ml-10m has no gender, age, occupation, zip" in done.stderr
    assert "read      3 rows" in done.stdout


def test_a_mistake_on_the_command_line_is_told_before_anything_is_touched(tmp_path):
    store = tmp_path / "store"
    done = subprocess.run(
        [*SLOTSTORE, "ml-1m", "--store", str(store), "--max-reject-ration", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "unknown flag --max-reject-ration (did you mean '--max-reject-ratio'?)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not store.exists()


def test_a_store_of_another_version_is_refused(tiny_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    folder = ingest_folder(tiny_source.folder, store).snapshot.folder
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(VersionError, match="format version 99, this slotstore reads 1"):
        FeatureStore(store)


def test_a_damaged_snapshot_is_mended_by_ingesting_again(tiny_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    snapshot = ingest_folder(tiny_source.folder, store).snapshot
    shard = snapshot.files("examples")[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="Ingest the source again"):
        FeatureStore(store)
    assert ingest_folder(tiny_source.folder, store).snapshot.problems(deep=True) == []
    assert count(store) == 12


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.005)


def test_kill_9_leaves_the_last_snapshot_and_the_next_run_succeeds(
    tiny_source, ingest_folder, synthetic_source, tmp_path
):
    store = tmp_path / "store"
    before = ingest_folder(tiny_source.folder, store).snapshot
    running = subprocess.Popen(
        [*SLOTSTORE, str(synthetic_source), "--store", str(store), "--shard-bytes", "2000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: len(list(store.glob("staging/*/reports/examples-*.json"))) >= 3)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert list(store.glob("staging/*/examples/*.parquet")), "it was killed too late to show anything"
    assert count(store) == 12
    assert [snapshot.manifest.id for snapshot in list_snapshots(store)] == [before.manifest.id]
    after = ingest_folder(synthetic_source, store).snapshot
    assert count(store) == 20_000
    assert list((store / "staging").iterdir()) == []
    assert len(list_snapshots(store)) == 2
    assert after.problems(deep=True) == []


def test_two_ingestions_into_one_store_do_not_mix(tiny_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    with (store / "ingest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreBusy, match="another ingestion"):
            ingest_folder(tiny_source.folder, store)
    ingest_folder(tiny_source.folder, store)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can mount a small disk")
def test_a_full_disk_is_said_and_publishes_nothing(synthetic_source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]).returncode:
        pytest.skip("this machine may not mount a small disk")
    try:
        done = subprocess.run(
            [*SLOTSTORE, str(synthetic_source), "--store", str(disk / "store")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == ArtifactError.exit_code, done.stderr
        assert "nothing was published" in done.stderr
        assert "No space left on device" in done.stderr
        assert untouched(disk / "store")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_shards_are_plain_parquet(tiny_store):
    path = open_snapshot(tiny_store).files("examples")[0]
    schema = pq.read_schema(path)
    kinds = {field.name: field.type for field in schema if field.name.endswith("_0")}
    assert set(kinds.values()) == {pa.int32()}
    assert schema.field("timestamp").type == pa.int64()
    assert schema.field("rating").type == pa.float32()


def test_without_a_catalog_the_last_snapshot_stays_the_newest(tiny_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    before = ingest_folder(tiny_source.folder, store).snapshot
    (store / "catalog.duckdb").unlink()
    (store / "catalog.duckdb" / "in the way").mkdir(parents=True)
    append(tiny_source.folder / "ratings.dat", b"bad\n")
    with pytest.raises(ArtifactError, match=r"nothing was published.*catalog\.duckdb"):
        ingest_folder(tiny_source.folder, store, max_reject_ratio=1.0)
    assert open_snapshot(store) == before
    assert list_snapshots(store) == [before]
    shutil.rmtree(store / "catalog.duckdb")
    assert ingest_folder(tiny_source.folder, store, max_reject_ratio=1.0).snapshot == open_snapshot(store)
    assert open_snapshot(store) != before


@pytest.mark.parametrize("change", [b"", b"1::1::3::978300500\n"], ids=["touched", "appended"])
def test_a_source_that_changes_while_it_is_read_is_refused(
    tiny_source, ingest_folder, tmp_path, monkeypatch, change
):
    path = tiny_source.folder / "ratings.dat"
    read = job._run

    def read_then_change(*args):
        result = read(*args)
        append(path, change)
        return result

    monkeypatch.setattr(job, "_run", read_then_change)
    with pytest.raises(SourceError, match="changed while it was read"):
        ingest_folder(tiny_source.folder, tmp_path / "store")
    assert untouched(tmp_path / "store")


def test_a_spec_that_reads_the_label_is_refused(tiny_source, ingest_folder, tmp_path):
    spec = tmp_path / "leak.toml"
    text = (SPECS / "article.toml").read_text()
    spec.write_text(text + '\n[[features]]\nname = "stars"\ncolumn = "rating"\nlookups = 1\n')
    with pytest.raises(SpecError, match="feature 'stars' reads the label's own column"):
        ingest_folder(tiny_source.folder, tmp_path / "store", spec=str(spec))


@pytest.mark.parametrize("flags", [["--spec", "nope"], ["--max-reject-ratio", "7"], ["--runner", "NoRunner"]])
def test_nothing_is_generated_for_a_mistake(tmp_path, flags):
    store = tmp_path / "store"
    done = subprocess.run(
        [*SLOTSTORE, "synthetic:2000", "--store", str(store), *flags], capture_output=True, text=True
    )
    assert done.returncode == SpecError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert not (store / "snapshots").exists()
    assert not (store / "sources").exists() or flags[0] == "--runner"


def test_a_damaged_synthetic_source_is_made_again(tmp_path):
    source = open_source("synthetic:2000", tmp_path)
    source.prepare()
    before = source.ratings[0].read_bytes()
    source.ratings[0].write_bytes(b"")
    source.prepare()
    assert source.ratings[0].read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "workers", "mode"),
    [
        ([], available_cores(), "multi_threading"),
        (["--direct_num_workers", "1"], 1, "multi_threading"),
        (["--direct_running_mode=multi_processing"], available_cores(), "multi_processing"),
        (["--direct_running_mode", "in_memory"], 1, "in_memory"),
        (["--direct_num_workers=3", "--direct_running_mode=multi_processing"], 3, "multi_processing"),
    ],
)
def test_workers_are_as_many_as_asked_for(flags, workers, mode):
    direct = pipeline_options(flags).view_as(DirectOptions)
    assert (direct.direct_num_workers, direct.direct_running_mode) == (workers, mode)


def test_a_first_snapshot_without_latest_is_found(tiny_source, ingest_folder, tmp_path):
    store = tmp_path / "store"
    snapshot = ingest_folder(tiny_source.folder, store).snapshot
    (store / "LATEST").unlink()  # as a kill between the two leaves it
    assert open_snapshot(store) == snapshot


def test_a_runner_that_loses_data_is_found_out(tiny_source, ingest_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "add_counts", lambda tables: add_counts([*tables][:1]))
    with pytest.raises(ArtifactError, match=r"the runner lost data, nothing was published: 3 of 3 shards"):
        ingest_folder(tiny_source.folder, tmp_path / "store", shard_bytes=100)
    assert untouched(tmp_path / "store")
