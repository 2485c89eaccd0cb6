"""Sources and stores on an object store: a real S3 server on loopback, from ingestion to training."""

import json
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from featurestore.cli import load
from featurestore.errors import ArtifactError, NotFound, SourceError
from featurestore.paths import as_path, files_below
from featurestore.snapshot import list_snapshots, open_snapshot
from featurestore.store import FeatureStore
from pipelines.source import open_source


def upload(folder, url):
    for path in folder.iterdir():
        if path.is_file():
            (as_path(url) / path.name).write_bytes(path.read_bytes())


@pytest.fixture(scope="module")
def remote_source(s3_bucket, synthetic_source):
    upload(synthetic_source, f"{s3_bucket}/raw")
    return f"{s3_bucket}/raw"


@pytest.fixture(scope="module")
def remote_store(s3_bucket, remote_source, ingest_folder):
    ingest_folder(remote_source, as_path(f"{s3_bucket}/store"), shard_bytes=100_000)
    return as_path(f"{s3_bucket}/store")


def test_a_snapshot_in_a_bucket_is_that_on_disk(remote_store, tiny_store):
    here, there = open_snapshot(tiny_store), open_snapshot(remote_store)
    assert there.manifest.content_digest == here.manifest.content_digest
    assert there.manifest.id == here.manifest.id
    assert there.problems(deep=True) == []
    assert files_below(remote_store / "staging") == []


def test_it_is_queried_and_streamed_as_on_disk(remote_store, tiny_store):
    query = "SELECT slot('user_id', user_id, 0) AS slot, count(*) AS n FROM train GROUP BY ALL ORDER BY ALL"
    with FeatureStore(str(remote_store)) as there, FeatureStore(tiny_store) as here:
        assert there.sql(query).equals(here.sql(query))
        columns = [*here.spec.slot_columns, "rating"]
        assert there.stream("test", columns).read_all().equals(here.stream("test", columns).read_all())


def test_the_commands_take_urls(remote_store):
    def run(name, *args):
        done = CliRunner().invoke(load(name), [*args, "--store", str(remote_store)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert json.loads(run("query", "SELECT count(*) AS n FROM examples", "--format", "json"))[0]["n"] > 10_000
    assert "train" in run("splits")
    assert "is intact" in run("snapshots", "verify")
    assert str(remote_store) not in run("features")


def test_training_reads_from_a_bucket(remote_store, tmp_path, monkeypatch):
    from training.job import train
    from training.train import TrainConfig

    monkeypatch.chdir(tmp_path)
    result = train(TrainConfig(store=remote_store, epochs=1, tracking=False))
    assert result.test is not None
    assert result.checkpoint.is_relative_to("store")  # beside us: a checkpoint is a local file


def test_a_killed_ingestion_leaves_nothing_visible(s3_bucket, remote_source, ingest_folder):
    store = as_path(f"{s3_bucket}/killed")
    command = [sys.executable, "-m", "pipelines.ingest", remote_source, "--store", str(store)]
    child = subprocess.Popen([*command, "--shard-bytes", "20000"], stdout=subprocess.DEVNULL)
    while not any("/reports/" in name for name in files_below(store)):
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list_snapshots(store) == []
    with pytest.raises(NotFound, match="no snapshot in s3://bucket/killed"):
        open_snapshot(store)
    ingest_folder(remote_source, store, shard_bytes=100_000)
    assert open_snapshot(store).problems(deep=True) == []


def test_a_damaged_snapshot_is_replaced_beside_its_remains(s3_bucket, remote_source, ingest_folder):
    store = as_path(f"{s3_bucket}/damaged")
    first = ingest_folder(remote_source, store).snapshot
    first.files("examples")[0].write_bytes(b"no parquet")
    with pytest.raises(ArtifactError, match="is damaged"):
        open_snapshot(store)
    second = ingest_folder(remote_source, store).snapshot
    assert second.manifest.id == first.manifest.id
    assert second.problems(deep=True) == []


def test_mistakes_are_told(s3_bucket, tmp_path):
    with pytest.raises(SourceError, match="s3://bucket/nowhere is not a folder"):
        open_source(f"{s3_bucket}/nowhere", tmp_path)
    with pytest.raises(SourceError, match="slotstore generate"):
        open_source("synthetic:1000", as_path(f"{s3_bucket}/store"))


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "s3://bucket/x?scheme=http"])
def test_urls_that_cannot_be_stores_are_usage_errors(url):
    done = CliRunner().invoke(load("splits"), ["--store", url])
    assert done.exit_code == 2
    assert url in done.stderr


def test_two_ingestions_at_once_both_end_right(s3_bucket, remote_source, tiny_source):
    """There is no lock: each has a folder of its own, and the last to end is the newest."""
    store = as_path(f"{s3_bucket}/shared")
    upload(tiny_source.folder, f"{s3_bucket}/tiny")
    command = [sys.executable, "-m", "pipelines.ingest", "--store", str(store), "--json"]
    sources = (remote_source, remote_source, f"{s3_bucket}/tiny")
    running = [subprocess.Popen([*command, source], stdout=subprocess.PIPE) for source in sources]
    told = [json.loads(child.communicate()[0]) for child in running]
    found = {snapshot.manifest.id: snapshot for snapshot in list_snapshots(store)}
    assert set(found) == {one["snapshot"] for one in told}
    assert len(found) == 2
    assert all(snapshot.problems(deep=True) == [] for snapshot in found.values())
    assert open_snapshot(store).manifest.id in found
