"""Stores in the shapes that training must handle, and one tracked run, shared by the tests that read them."""

import pytest
import torch

from featurestore.store import FeatureStore
from training.job import train
from training.train import TrainConfig

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


@pytest.fixture
def tiny(tiny_store):
    with FeatureStore(tiny_store) as store:
        yield store


@pytest.fixture
def binary(binary_store):
    with FeatureStore(binary_store) as store:
        yield store


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
