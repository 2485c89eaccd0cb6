"""On a real Flink cluster: the same snapshot as here, and nothing half-visible whatever is killed.

Tests marked ``flink`` run where SLOTSTORE_FLINK names the folder of a cluster; they start it again as needed.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore.errors import ArtifactError, RunnerError, SpecError, StoreBusy, TooManyRejects
from featurestore.snapshot import list_snapshots, open_snapshot
from featurestore.store import FeatureStore
from pipelines.flink import ask, reason
from pipelines.flink_cluster import Cluster, load

SLOTSTORE = [sys.executable, "-m", "pipelines.ingest"]
SHARDS = [
    "--shard-bytes",
    "1000",
]  # about 500 shards of the synthetic source: long enough to be killed midway


def cluster_command(name, folder):
    return [sys.executable, "-m", "pipelines.flink_cluster", name, "--folder", folder]


@pytest.fixture
def cluster(tmp_path_factory):
    """The flags of a whole cluster, started again where the last test killed a part of it."""
    folder = os.environ.get("SLOTSTORE_FLINK")
    if not folder:
        pytest.skip("SLOTSTORE_FLINK names no folder of a Flink cluster")
    started = subprocess.run(cluster_command("start", folder), capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    found = load(Path(folder).resolve())[0]
    return [*shlex.split(found.flags), "--flink_job_server_jar", str(found.folder / "job-server.jar")]


def process(name):
    """A running process of the cluster."""
    _, processes = load(Path(os.environ["SLOTSTORE_FLINK"]).resolve())
    return next(process for process in processes if process.name == name)


def begin_command(source, store, flags):
    """Start an ingestion; its paths are relative, to a folder that is not the workers'."""
    return subprocess.Popen(
        [*SLOTSTORE, os.path.relpath(source, store.parent), "--store", store.name, "--json", *flags],
        cwd=store.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end_command(running):
    stdout, stderr = running.communicate(timeout=300)
    return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)


def ingest(source, store, flags):
    return end_command(begin_command(source, store, flags))


def begin(source, store, flags):
    """Start an ingestion and return when its first shards are reported, and most are still to come."""
    running = begin_command(source, store, flags)
    until = time.monotonic() + 120
    while not reports(store):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)
    assert reports(store) < 300, "it came too late to kill anything midway"
    return running


def jobs(cluster):
    """What the cluster says of its jobs, the newest first."""
    found = ask(cluster[cluster.index("--flink_master") + 1], "jobs/overview")["jobs"]
    return sorted(found, key=lambda job: job["start-time"], reverse=True)


def failures(cluster):
    """The failures that the newest job has had so far."""
    master = cluster[cluster.index("--flink_master") + 1]
    return ask(master, f"jobs/{jobs(cluster)[0]['jid']}/exceptions")["exceptionHistory"]["entries"]


def reports(store):
    return len(list(store.glob("staging/*/reports/examples-*.json")))


def rows(store, query):
    with FeatureStore(store) as opened:
        return opened.sql(query)


def assert_same(one, other):
    """Two stores' newest snapshots hold the same examples, vocabulary and rejects, undamaged."""
    first, second = open_snapshot(one), open_snapshot(other)
    assert second.problems(deep=True) == []
    for field in ("content_digest", "counts", "splits", "id"):
        assert getattr(first.manifest, field) == getattr(second.manifest, field)
    assert first.manifest.source["files"] == second.manifest.source["files"]
    for query in ("FROM examples", "FROM vocabulary ORDER BY ALL", "FROM rejects ORDER BY ALL"):
        assert rows(one, query).equals(rows(other, query))


def assert_failed(done, store, status):
    assert done.returncode == status, done.stderr
    assert "nothing was published" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (store / "snapshots").exists()
    assert not (store / "LATEST").exists()


@pytest.fixture
def spoiled_source(synthetic_source, tmp_path):
    """The synthetic source with bad ratings, a bad user, and a rating that comes twice."""
    folder = tmp_path / "spoiled"
    shutil.copytree(synthetic_source, folder)
    first = (folder / "ratings.dat").read_bytes().splitlines(keepends=True)[0]
    with (folder / "ratings.dat").open("ab") as file:
        file.write(b"bad\n1::1::9::978300000\n99999::1::5::978300000\n" + first)
    with (folder / "users.dat").open("ab") as file:
        file.write(b"7777::F\n")
    return folder


@pytest.mark.flink
def test_rejects_and_duplicates_are_those_of_a_local_run(cluster, spoiled_source, ingest_folder, tmp_path):
    ingest_folder(spoiled_source, tmp_path / "local", max_reject_ratio=1.0, shard_bytes=100_000)
    done = ingest(
        spoiled_source, tmp_path / "flink", [*cluster, "--max-reject-ratio", "1", "--shard-bytes", "100000"]
    )
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "local", tmp_path / "flink")
    said = json.loads(done.stdout)
    assert said["rejects"] == 5
    assert said["counters"]["write_rows"] == said["examples"]


@pytest.mark.flink
def test_bad_records_stop_the_ingestion(cluster, spoiled_source, tmp_path):
    done = ingest(spoiled_source, tmp_path / "store", cluster)
    assert_failed(done, tmp_path / "store", TooManyRejects.exit_code)
    assert "ratings.dat, byte" in done.stderr


@pytest.mark.flink
@pytest.mark.real_data
@pytest.mark.parametrize(("name", "spec"), [("ml-100k", "article"), ("ml-1m-late", "movielens")])
def test_real_data_has_the_digest_of_a_local_run(cluster, real_data, ingest_folder, tmp_path, name, spec):
    ingest_folder(real_data / name, tmp_path / "local", spec=spec)
    done = ingest(real_data / name, tmp_path / "flink", [*cluster, "--spec", spec])
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "local", tmp_path / "flink")


@pytest.mark.flink
def test_two_ingestions_at_once_do_not_mix(cluster, tiny_store, synthetic_source, tmp_path):
    store = tmp_path / "store"
    first = begin(synthetic_source, store, [*cluster, *SHARDS])
    second = ingest(synthetic_source, store, [*cluster, *SHARDS])
    first = end_command(first)
    assert first.returncode == 0, first.stderr
    assert second.returncode == StoreBusy.exit_code
    assert "another ingestion" in second.stderr
    assert open_snapshot(store).problems(deep=True) == []
    assert open_snapshot(store).manifest.content_digest == open_snapshot(tiny_store).manifest.content_digest


@pytest.mark.flink
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can mount a small disk")
def test_a_full_disk_is_said(cluster, synthetic_source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]).returncode:
        pytest.skip("this machine may not mount a small disk")
    try:
        done = ingest(synthetic_source, disk / "store", cluster)
        assert_failed(done, disk / "store", ArtifactError.exit_code)
        assert "No space left on device" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        done = ingest(synthetic_source, disk / "store", cluster)
        assert done.returncode == 0, done.stderr
        assert open_snapshot(disk / "store").problems(deep=True) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.flink
def test_a_killed_submitter_leaves_nothing_and_the_next_run_succeeds(
    cluster, tiny_store, synthetic_source, tmp_path
):
    store = tmp_path / "store"
    running = begin(synthetic_source, store, [*cluster, *SHARDS])
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert list_snapshots(store) == []
    # The job that was left behind may still be writing.
    done = ingest(synthetic_source, store, [*cluster, *SHARDS])
    assert done.returncode == 0, done.stderr
    while any(job["state"] == "RUNNING" for job in jobs(cluster)):
        time.sleep(0.2)
    assert len(list_snapshots(store)) == 1
    assert open_snapshot(store).problems(deep=True) == []
    assert open_snapshot(store).manifest.content_digest == open_snapshot(tiny_store).manifest.content_digest


@pytest.mark.flink
def test_a_killed_task_manager_is_survived(cluster, ingest_folder, synthetic_source, tmp_path):
    ingest_folder(synthetic_source, tmp_path / "local", shard_bytes=1000)
    store = tmp_path / "store"
    running = begin(synthetic_source, store, [*cluster, *SHARDS])
    process("taskmanager-1").signal(signal.SIGKILL)
    done = end_command(running)
    assert done.returncode == 0, done.stderr
    assert failures(cluster), "no task failed: it was killed too late to show anything"
    assert_same(tmp_path / "local", store)


@pytest.mark.flink
def test_a_killed_job_manager_is_a_clear_error(cluster, tiny_store, synthetic_source, tmp_path):
    store = tmp_path / "store"
    running = begin(synthetic_source, store, [*cluster, *SHARDS])
    process("jobmanager").signal(signal.SIGKILL)
    done = end_command(running)
    assert_failed(done, store, RunnerError.exit_code)
    assert "no longer answers" in done.stderr
    assert subprocess.run(cluster_command("start", os.environ["SLOTSTORE_FLINK"])).returncode == 0
    done = ingest(synthetic_source, store, [*cluster, *SHARDS])
    assert done.returncode == 0, done.stderr
    assert open_snapshot(store).problems(deep=True) == []
    assert open_snapshot(store).manifest.content_digest == open_snapshot(tiny_store).manifest.content_digest


@pytest.mark.skipif(not os.environ.get("SLOTSTORE_PRISM"), reason="SLOTSTORE_PRISM names no Prism binary")
def test_prism_gives_the_same_digest(tiny_store, synthetic_source, tmp_path):
    prism = ["--runner", "PrismRunner", "--prism_location", os.environ["SLOTSTORE_PRISM"]]
    done = ingest(synthetic_source, tmp_path / "store", [*prism, "--environment_type", "LOOPBACK", *SHARDS])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["content_digest"] == open_snapshot(tiny_store).manifest.content_digest
    assert said["counters"]["write_rejected"] == 0


def test_the_flags_of_a_cluster_can_be_typed():
    flags = Cluster(Path("/data/my cluster"), 8081, 2).flags
    assert shlex.split(flags)[4:] == ["--flink_job_server_jar", "/data/my cluster/job-server.jar"]


def test_without_a_cluster_it_is_said_before_anything_is_touched(tiny_source, tmp_path):
    jar, store = tmp_path / "job-server.jar", tmp_path / "store"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        flags = ["--runner", "FlinkRunner", "--flink_master", f"localhost:{free.getsockname()[1]}"]
    done = ingest(tiny_source.folder, store, flags[:2])
    assert done.returncode == SpecError.exit_code, done.stderr
    assert "needs --flink_master HOST:PORT" in done.stderr
    flags += ["--flink_job_server_jar", str(jar)]
    for expected in (f"no jar of Beam's Flink runner at {jar}", "no Flink at --flink_master"):
        done = ingest(tiny_source.folder, store, flags)
        assert done.returncode == RunnerError.exit_code, done.stderr
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert not store.exists()
        jar.touch()


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        ("java.E: a\n\tat x\nCaused by: java.F: b\n\tat y\nCaused by: java.G: c\n\tat z", "java.G: c"),
        ("java.E: T\nValueError: v [while running 'S']\n\tat x\nCaused by: java.F: b", "ValueError: v"),
        ("java.E: a\n\tat x", "java.E: a"),
    ],
)  # fmt: skip
def test_the_reason_is_the_line_that_says_most(trace, line):
    assert reason(trace) == line


@pytest.mark.flink
def test_an_append_makes_the_same_child(cluster, synthetic_source, ingest_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    lines = (synthetic_source / "ratings.dat").read_text().splitlines(keepends=True)
    user, movie, rating, timestamp = lines[0].split("::")
    later = f"{user}::{movie}::{rating}::{int(timestamp) + 1}\n"
    for folder, part in ((first, lines[:15_000]), (second, [*lines[15_000:], later])):
        shutil.copytree(synthetic_source, folder)
        (folder / "ratings.dat").write_text("".join(part))
    ingest_folder(first, tmp_path / "here", shard_bytes=100_000)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for store, flags in (("here", []), ("there", cluster)):
        done = ingest(second, tmp_path / store, ["--append", *flags])
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["replaced"] == 1
    assert_same(tmp_path / "here", tmp_path / "there")
