"""Trainings of several ranks against one of the same global batch."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from featurestore.errors import Interrupted, TrainingError
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.job import train

KINDS = {
    "replicated": {},
    "replicated, row-wise": {"optimizer": "rowwise_adagrad", "clip_norm": 0.5},
    "sharded": {"shard_table": True, "clip_norm": 0.5},
    "sharded, row-wise": {"shard_table": True, "optimizer": "rowwise_adagrad", "weight_decay": 0.01},
    "in windows, dcn": {"window_rows": 3000, "feed": "stream", "model": "dcn"},
}


class Hears:
    """Counts what it hears; at a step it sends a signal to this process, where it is told to."""

    def __init__(self, rows=None, number=None):
        self.at, self.number = rows, number
        self.epochs = 0

    def on_note(self, text):
        pass

    def on_start(self, rows):
        pass

    def on_step(self, epoch, rows, loss):
        if rows == self.at:
            signal.raise_signal(self.number)

    def on_epoch(self, result):
        self.epochs += 1


def train_ranks(world, store, folder, options):
    """Train as one rank; return its result and how many epochs it heard of."""
    ears = Hears()
    config = TrainConfig(store, tracking=False, checkpoint_dir=folder, **options)
    return train(config, [ears]), ears.epochs


def numbers(result):
    return [(epoch.rows, epoch.train.loss, epoch.validation.loss) for epoch in result.epochs]


def assert_close(one, other):
    """The weights and the optimizer's state of two checkpoints are equal within float tolerance."""
    mine, theirs = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    assert (mine.epoch, mine.rows) == (theirs.epoch, theirs.rows)
    for name, weights in mine.model.items():
        torch.testing.assert_close(weights, theirs.model[name], rtol=1e-3, atol=2e-4)
    assert mine.optimizer.keys() == theirs.optimizer.keys()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_ranks_train_what_one_process_does(run_world, tiny_store, tmp_path, kind):
    options = {"epochs": 2, "batch_size": 1000, **kind}
    alone = train(
        TrainConfig(
            tiny_store, tracking=False, checkpoint_dir=tmp_path / "one", **{**options, "shard_table": False}
        )
    )
    (first, heard), (second, silence) = run_world(2, train_ranks, tiny_store, tmp_path / "two", options)
    for mine, theirs in zip(numbers(first), numbers(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert numbers(second) == numbers(first)
    assert first.test.values == pytest.approx(alone.test.values, rel=1e-4)
    assert (heard, silence) == (2, 0)
    assert (first.rank, second.rank) == (0, 1)
    assert_close(tmp_path / "two", tmp_path / "one")


def test_ranks_gather_their_scores_for_an_auc(run_world, binary_store, tmp_path):
    options = {"epochs": 1, "batch_size": 1000}
    alone = train(TrainConfig(binary_store, tracking=False, checkpoint_dir=tmp_path / "one", **options))
    (first, _), _ = run_world(2, train_ranks, binary_store, tmp_path / "two", options)
    assert first.test.values["auc"] == pytest.approx(alone.test.values["auc"], abs=1e-3)


def stop_or_die(world, store, folder, options, number):
    """Train; the last rank gets a signal, which it alone hears, in the middle of the first epoch."""
    config = TrainConfig(store, tracking=False, checkpoint_dir=folder, **options)
    step = 60 * config.batch_size
    from training.session import Session

    if world.rank == world.size - 1:
        fit = Session.fit
        Session.fit = lambda session, callbacks, tracked: fit(session, [Hears(step, number)], tracked)
    train(config)


OFTEN = {"epochs": 2, "batch_size": 100, "shard_table": True}


@pytest.fixture(scope="module")
def whole(tiny_store, tmp_path_factory):
    """What one process makes of it, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    options = {**OFTEN, "shard_table": False}
    train(TrainConfig(tiny_store, tracking=False, checkpoint_dir=folder, **options))
    return folder


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_with_any_number(
    run_world, tiny_store, whole, tmp_path
):
    stopped = run_world(3, stop_or_die, tiny_store, tmp_path, OFTEN, signal.SIGTERM, errors=True)
    assert [type(error) for error in stopped] == [Interrupted] * 3
    assert "stopped by SIGTERM at epoch 1, 10,000 rows into it" in str(stopped[0])  # the next look: 100 steps
    assert load_checkpoint(tmp_path / "last.pt").rows == 10_000
    run_world(2, train_ranks, tiny_store, tmp_path, {**OFTEN, "resume": str(tmp_path)})
    assert_close(tmp_path, whole)


def test_a_killed_rank_ends_the_job_and_one_process_can_go_on(run_world, tiny_store, whole, tmp_path):
    options = {**OFTEN, "checkpoint_seconds": 0.0}
    died = run_world(2, stop_or_die, tiny_store, tmp_path, options, signal.SIGKILL, errors=True)
    assert died[1] is None
    assert isinstance(died[0], TrainingError)
    assert "rank 0 of 2 lost another worker" in str(died[0])
    assert "--resume" in str(died[0])
    assert load_checkpoint(tmp_path / "last.pt").rows == 5000
    options = {**OFTEN, "shard_table": False, "resume": str(tmp_path)}
    train(TrainConfig(tiny_store, tracking=False, checkpoint_dir=tmp_path, **options))
    assert_close(tmp_path, whole)


def test_torchrun_starts_ranks_and_one_of_them_speaks(tiny_store, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "training.train", "--store", tiny_store, "--no-tracking", "--shard-table", "--epochs", 1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, words), "--checkpoint-dir", str(tmp_path)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^best epoch  1: validation rmse", done.stdout, re.MULTILINE)) == 1
    assert len(re.findall(r"^feed memory", done.stderr, re.MULTILINE)) == 1
    assert (tmp_path / "best.pt").exists()
