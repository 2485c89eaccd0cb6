"""Stores made once a session, by the real pipeline, from generated and from real files."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipelines.job import IngestConfig, choose_spec, ingest
from pipelines.runner import pipeline_options
from pipelines.source import Source, open_source
from pipelines.synthetic import generate
from pipelines.synthetic_shape import SyntheticShape

# The same examples on every run, however slow the machine.
settings.register_profile("slotstore", derandomize=True, deadline=None)
settings.load_profile("slotstore")


def _ingest(folder, store, spec=None, flags=(), **options):
    source = open_source(str(folder), store)
    config = IngestConfig(source, choose_spec(spec, source)[0], **options)
    return ingest(config, store, pipeline_options(flags))


@pytest.fixture(scope="session")
def ingest_folder():
    """A function that ingests a folder as `slotstore ingest` does and returns the IngestResult."""
    return _ingest


@pytest.fixture(scope="session")
def synthetic_source(tmp_path_factory) -> Path:
    """About 20,000 ratings in the ml-1m format."""
    folder = tmp_path_factory.mktemp("raw") / "synthetic"
    generate(SyntheticShape(rows=20_000, users=200, movies=400, seed=1), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory, synthetic_source) -> Path:
    """The synthetic source under the default spec, in several shards. Read only."""
    store = tmp_path_factory.mktemp("stores") / "tiny"
    _ingest(synthetic_source, store, shard_bytes=100_000)
    return store


@pytest.fixture(scope="session")
def article_store(tmp_path_factory, synthetic_source) -> Path:
    """The synthetic source under the article's spec. Read only."""
    store = tmp_path_factory.mktemp("stores") / "article"
    _ingest(synthetic_source, store, spec="article", shard_bytes=100_000)
    return store


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MovieLens files that SLOTSTORE_DATA names; skips without it."""
    folder = os.environ.get("SLOTSTORE_DATA")
    if not folder:
        pytest.skip("SLOTSTORE_DATA names no folder of MovieLens files (ml-100k, ml-1m-late)")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def ml100k_article_store(tmp_path_factory, real_data) -> Path:
    """Real ml-100k under the article's spec. Read only."""
    store = tmp_path_factory.mktemp("stores") / "ml-100k"
    _ingest(real_data / "ml-100k", store, spec="article")
    return store


@pytest.fixture(scope="session")
def ml1m_late_store(tmp_path_factory, real_data) -> Path:
    """The real late part of ml-1m under the default spec. Read only."""
    store = tmp_path_factory.mktemp("stores") / "ml-1m-late"
    _ingest(real_data / "ml-1m-late", store)
    return store


@pytest.fixture(scope="session")
def s3_bucket(tmp_path_factory) -> Iterator[str]:
    """The URL of an empty bucket on an S3 server of our own, on loopback, that every client here finds."""
    log = tmp_path_factory.mktemp("s3") / "port"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as output, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            _create_bucket(port)
            yield "s3://bucket"
        finally:
            server.kill()
            server.wait()


def _create_bucket(port):
    for _ in range(300):
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            urllib.request.urlopen(request).close()
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the S3 server did not start")


@pytest.fixture
def tiny_source(tmp_path) -> Source:
    """Twelve ratings by three users of four movies, in the ml-1m format, to be broken by tests."""
    folder = tmp_path / "ml"
    write_tiny(folder)
    return open_source(str(folder), tmp_path)


@pytest.fixture(scope="session")
def write_tiny_source():
    """The function `write_tiny`."""
    return write_tiny


def write_tiny(folder: Path) -> None:
    """Write a tiny ml-1m."""
    folder.mkdir(parents=True)
    users = ["1::F::1::10::48067", "2::M::56::16::70072", "3::M::25::15::98107-2117"]
    movies = [
        "1::Toy Story (1995)::Animation|Comedy",
        "2::Jumanji (1995)::Adventure",
        "3::Étranger::Drama",
        "4::A::B::Drama",
    ]
    ratings = [
        f"{user}::{movie}::{1 + (user * movie) % 5}::{978300000 + 10 * user + movie}"
        for user in (1, 2, 3)
        for movie in (1, 2, 3, 4)
    ]
    for name, lines in (("users.dat", users), ("movies.dat", movies), ("ratings.dat", ratings)):
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
