"""A store so small that every row of the table can be counted by hand, and a model trained on it."""

from dataclasses import dataclass

import pytest

from featurestore.hashing import slot
from featurestore.store import FeatureStore
from training.config import TrainConfig
from training.job import train

SPEC = """
[table]
num_slots = 24
dim = 4
[[features]]
name = "user_id"
seeds = [0, 3]
[[features]]
name = "movie_id"
seeds = [0]
[[features]]
name = "zip"
seeds = [3]
[label]
column = "rating"
drop = [3.0]
[split]
kind = "leave_last"
last = 1
"""


@dataclass(frozen=True)
class Small:
    """A small store, its best checkpoint, and what its spec says of a value's slots."""

    store: object
    checkpoint: object

    def slots(self, feature, value):
        seeds = {"user_id": [0, 3], "movie_id": [0], "zip": [3]}[feature]
        return {slot(value, seed, 24) for seed in seeds}


@pytest.fixture(scope="session")
def small(tmp_path_factory, ingest_folder, write_tiny_source):
    """Three users of four movies, and a fourth whose only rating, of a fifth movie, the label drops.

    Both lookups of user 1 lead to one row.
    """
    folder = tmp_path_factory.mktemp("small")
    source = folder / "ml"
    write_tiny_source(source)
    for name, line in {
        "users.dat": "4::F::18::2::00000",
        "movies.dat": "5::Only dropped (1990)::Drama",
        "ratings.dat": "4::5::3::978300099",
    }.items():
        with (source / name).open("a") as file:
            file.write(f"{line}\n")
    (folder / "small.toml").write_text(SPEC)
    ingest_folder(source, folder / "store", spec=str(folder / "small.toml"))
    run = folder / "store" / "checkpoints" / "20260101-000000-aaaa"
    train(TrainConfig(folder / "store", epochs=3, batch_size=2, tracking=False, checkpoint_dir=run))
    return Small(folder / "store", run / "best.pt")


@pytest.fixture(scope="session")
def article_model(article_store, tmp_path_factory):
    """The best checkpoint of a training with the article's spec, nearly all of whose rows are in use."""
    folder = tmp_path_factory.mktemp("article")
    return train(TrainConfig(article_store, epochs=1, tracking=False, checkpoint_dir=folder)).checkpoint


@pytest.fixture
def opened(small):
    with FeatureStore(small.store) as store:
        yield store
