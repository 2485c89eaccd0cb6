import gzip
import json

import pytest
import torch
from click.testing import CliRunner

from training.job import train
from training.loop import Trainer, TrainState, train_epoch
from training.objective import RATING
from training.profiling import PHASES, TRACED_STEPS, Profile
from training.stream import Batch
from training.train import command


def test_every_second_is_in_one_phase(config):
    profile = train(config(epochs=2, batch_size=500, profile=True)).profile
    assert tuple(profile.shares) == PHASES
    assert sum(profile.shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in profile.shares.values())
    assert profile.copy_share is None  # nothing is copied to a CPU


def test_the_trace_has_the_phases_of_some_steps(config):
    profile = train(config(epochs=1, batch_size=500, profile=True)).profile
    events = json.loads(gzip.decompress(profile.trace.read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    for phase in ("feed", "step", "optimizer"):
        assert names.count(f"slotstore.{phase}") == TRACED_STEPS


def test_a_training_of_few_steps_has_no_trace(config):
    profile = train(config(epochs=1, batch_size=10_000, profile=True)).profile
    assert profile.trace is None
    assert sum(profile.shares.values()) == pytest.approx(1.0)


def test_a_profile_changes_no_number(config, trained):
    result = train(config(profile=True))
    assert [epoch.train.loss for epoch in result.epochs] == [epoch.train.loss for epoch in trained.epochs]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def pass_by(self, seconds):
        self.now += seconds


class Slow:
    """Two batches, each after a while."""

    rows = 2

    def __init__(self, clock):
        self.clock = clock

    def epoch(self, number, start=0):
        for _ in range(2):
            self.clock.pass_by(2.0)
            yield Batch(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1), 1)


class Updates:
    def __init__(self, clock):
        self.clock = clock

    def step(self):
        self.clock.pass_by(3.0)


def test_time_is_counted_where_it_is_spent(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("training.profiling.time.perf_counter", lambda: clock.now)
    profile = Profile(torch.device("cpu"), tmp_path)
    updates = profile.optimizer(Updates(clock))

    def step(slots, labels, total):
        clock.pass_by(5.0)
        updates.step()
        return torch.zeros(())

    with profile.running():
        trainer = Trainer(torch.nn.Linear(1, 1), profile.step(step), RATING)
        train_epoch(trainer, profile.source(Slow(clock)), TrainState())
        profile.call("validation", lambda: clock.pass_by(7.0))()
        clock.pass_by(3.0)
    found = profile.result()
    seconds = {name: share * found.seconds for name, share in found.shares.items()}
    assert seconds == pytest.approx(
        {"feed": 4.0, "step": 10.0, "optimizer": 6.0, "validation": 7.0, "other": 3.0}
    )


def test_the_command_shows_it(tiny_store, tmp_path):
    words = ["--store", tiny_store, "--no-tracking", "--epochs", 1, "--batch-size", 500, "--profile"]
    shown = CliRunner().invoke(command, [*map(str, words), "--checkpoint-dir", str(tmp_path)]).stdout
    assert "time        feed " in shown
    assert f"trace       {tmp_path / 'trace.json.gz'}" in shown
