"""Stores in the shapes that training must handle, and one tracked run, shared by the tests that read them."""

import math
import multiprocessing
import os
import pickle
import socket
import warnings
from pathlib import Path

import pytest
import torch

from featurestore.errors import TrainingError
from featurestore.store import FeatureStore
from training.job import train
from training.objective import RATING
from training.step import CompiledStep
from training.train import TrainConfig
from training.world import join_world

# Steps this small gain nothing from threads, and where the cores are busy threads wait for each other.
torch.set_num_threads(1)

BINARY_SPEC = """
[table]
num_slots = 512
dim = 4
[[features]]
name = "user_id"
lookups = 2
[[features]]
name = "movie_id"
lookups = 1
[label]
column = "rating"
threshold = 4.0
[split]
kind = "leave_last"
last = 2
"""


@pytest.fixture(scope="session")
def binary_store(tmp_path_factory, synthetic_source, ingest_folder):
    """The synthetic source with a binary label, each user's last examples being left out."""
    folder = tmp_path_factory.mktemp("binary")
    (folder / "binary.toml").write_text(BINARY_SPEC)
    ingest_folder(synthetic_source, folder / "store", spec=str(folder / "binary.toml"), shard_bytes=100_000)
    return folder / "store"


@pytest.fixture(scope="session")
def paper_store(tmp_path_factory, synthetic_source, ingest_folder):
    """The synthetic source under the paper's spec, whose label drops the ratings of 3."""
    store = tmp_path_factory.mktemp("paper") / "store"
    ingest_folder(synthetic_source, store, spec="paper", shard_bytes=100_000)
    return store


@pytest.fixture
def tiny(tiny_store):
    with FeatureStore(tiny_store) as store:
        yield store


@pytest.fixture
def binary(binary_store):
    with FeatureStore(binary_store) as store:
        yield store


@pytest.fixture
def any_rate(monkeypatch):
    """Let a training have any learning rate, also one that no command takes: its loss soon is no number."""
    monkeypatch.setattr("training.config.LARGEST_LR", math.inf)


@pytest.fixture
def config(tiny_store, tmp_path):
    """A function that makes the config of a short training which writes nothing but its checkpoint."""

    def make(store=tiny_store, **options):
        settings = {"epochs": 2, "tracking": False, "checkpoint_dir": tmp_path / "checkpoint", **options}
        return TrainConfig(store, **settings)

    return make


@pytest.fixture(scope="session")
def trained(tiny_store, tmp_path_factory):
    """The result of one short training."""
    folder = tmp_path_factory.mktemp("trained")
    return train(TrainConfig(tiny_store, epochs=2, tracking=False, checkpoint_dir=folder))


def _enter_world(rank, size, port, function, args, path):
    """Be one rank: leave in a file what a function of the world returns, or the exception it raises."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    try:
        with (
            warnings.catch_warnings(action="error"),
            join_world(torch.device("cpu"), timeout=20) as (world, _),
        ):
            result = function(world, *args)
    except Exception as error:  # noqa: BLE001  # the test has it
        result = error
    path.write_bytes(pickle.dumps(result))


@pytest.fixture
def run_world(tmp_path, monkeypatch):
    """A function that calls ``function(world, *args)`` in processes of one world; returns what each returned.

    A function of a test module. For a process that was killed it returns None. The processes are forked from
    a server that has imported torch once.
    """
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where they find the test's module
    context = multiprocessing.get_context("forkserver")
    preload = ["training.optimizers", "tests.training.conftest", "torch._dynamo"]  # which optimizers import
    context.set_forkserver_preload(preload)

    def run(size, function, *args, errors=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        paths = [tmp_path / f"rank-{rank}" for rank in range(size)]
        processes = [
            context.Process(target=_enter_world, args=(rank, size, port, function, args, path))
            for rank, path in enumerate(paths)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert all(process.exitcode is not None for process in processes), "a rank hangs"
        results = [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]
        for path in paths:
            path.unlink(missing_ok=True)
        for result in results:
            if isinstance(result, Exception) and not errors:
                raise result
        return results

    return run


@pytest.fixture
def needs_compiler():
    """Skip where `torch.compile` finds none."""
    try:
        CompiledStep(torch.nn.Identity(), None, RATING, batch_rows=1)
    except TrainingError as error:
        pytest.skip(str(error))
