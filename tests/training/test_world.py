import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn import functional

from featurestore.errors import TrainingError
from training.optimizers import clip_gradients
from training.world import World, broadcast_parameters, join_world, reduce_gradients


def say_everything(world):
    """Every kind of call; what it returns is checked by the test."""
    received = torch.full((2,), float(world.rank))
    world.broadcast(received)
    sent = torch.arange(3) + 10 * world.rank  # rank 0 gets one, rank 1 two
    chunk = torch.full((2, 2), float(world.rank))
    world.to_first(chunk, source=1)
    world.barrier()
    return {
        "rank": world.rank,
        "sum": world.sum_over_ranks(torch.tensor([1.0, world.rank])).tolist(),
        "rows": world.gather_rows(torch.full((2 * world.rank, 2), float(world.rank))).tolist(),
        "no rows": world.gather_rows(torch.empty(0, 3)).shape,
        "counts": world.counts(5 + world.rank),
        "broadcast": received.tolist(),
        "exchanged": world.exchange(sent, [1, 2], [1, 1] if world.rank == 0 else [2, 2]).tolist(),
        "to first": chunk[0, 0].item(),
        "text": [world.share_text(text if world.rank == 0 else "mine") for text in ("né", "")],
    }


def test_what_ranks_tell_each_other(run_world):
    first, second = run_world(2, say_everything)
    for result in (first, second):
        assert result["sum"] == [2.0, 1.0]
        assert result["rows"] == [[1.0, 1.0]] * 2
        assert result["no rows"] == (0, 3)
        assert result["counts"] == [5, 6]
        assert result["broadcast"] == [0.0, 0.0]
        assert result["text"] == ["né", ""]
    assert (first["exchanged"], second["exchanged"]) == ([0, 10], [1, 2, 11, 12])
    assert (first["to first"], second["to first"]) == (1.0, 1.0)


def test_alone_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_world(torch.device("cpu")) as (world, device):
        assert (world, device) == (World(0, 1), torch.device("cpu"))
        assert world == World.current()
        tensor = torch.arange(4)
        for same in (
            world.sum_over_ranks(tensor),
            world.gather_rows(tensor),
            world.exchange(tensor, [4], [4]),
        ):
            assert same.equal(tensor)
        assert world.counts(3) == [3]
        world.barrier()
        world.broadcast(tensor)
        learner = nn.Linear(2, 1)
        reduce_gradients(learner, world)
        assert learner.weight.grad is None


def test_a_rank_outside_its_world_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.1, got 2"):
        World(2, 2)


class Model(nn.Module):
    """A table with sparse gradients, a layer, and one that is not always used."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 3))
        self.layer, self.spare = nn.Linear(6, 1), nn.Linear(1, 1)

    def forward(self, slots, *, spare=False):
        score = self.layer(functional.embedding(slots, self.table, sparse=True).flatten(1))
        return self.spare(score) if spare else score


def global_batch():
    return torch.randint(20, (9, 2), generator=torch.Generator().manual_seed(5))


def gradients(model):
    return {name: one.grad.to_dense() for name, one in model.named_parameters() if one.grad is not None}


def reduced(world):
    """Gradients of a global batch of 9 rows: rank 0 has 2 of them, rank 1 has 7, rank 2 none."""
    torch.manual_seed(world.rank)  # what was not broadcast would differ
    model = Model()
    broadcast_parameters(model, world)
    slots = global_batch().tensor_split([2, 9])[world.rank]
    (model(slots, spare=world.rank == 1).square().sum() / 9).backward()
    reduce_gradients(model, world)
    norm = clip_gradients(model.parameters(), 1e9, world)
    return gradients(model), norm


def test_reduced_gradients_are_those_of_the_global_batch(run_world):
    results = run_world(3, reduced)
    torch.manual_seed(0)
    model = Model()
    parts = global_batch().tensor_split([2, 9])
    (sum(model(part, spare=rank == 1).square().sum() for rank, part in enumerate(parts)) / 9).backward()
    expected = gradients(model)
    norm = clip_gradients(model.parameters(), 1e9)
    for found, found_norm in results:
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient)
            assert found[name].equal(results[0][0][name])  # replicas stay equal to the last bit
        torch.testing.assert_close(found_norm, norm)


def lose_one(world):
    """Sum until rank 1 dies in the third round."""
    for _ in range(5):
        if world.rank == 1 and _ == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        world.sum_over_ranks(torch.zeros(1))


def test_a_killed_worker_ends_the_others_with_an_error_that_says_so(run_world):
    started = time.monotonic()
    results = run_world(3, lose_one, errors=True)
    assert time.monotonic() - started < 15
    assert results[1] is None
    for rank in (0, 2):
        assert isinstance(results[rank], TrainingError)
        assert f"rank {rank} of 3 lost another worker" in str(results[rank])
        assert "--resume" in str(results[rank])


def test_workers_that_do_not_come_are_an_error(monkeypatch):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(TrainingError, match="waited 1 s for the 2 workers"),
        join_world(torch.device("cpu"), timeout=1),
    ):
        pass


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x", "RANK": "0"}])
def test_an_environment_that_names_no_rank_is_an_error(monkeypatch, environment):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(TrainingError, match="names no rank of a training"),
        join_world(torch.device("cpu")),
    ):
        pass


SCRIPT = """
import sys
from pathlib import Path
import torch
from training.world import join_world
with join_world(torch.device("cpu")) as (world, device):
    said = f"{world} {device} {world.sum_over_ranks(torch.ones(1)).item()}"
    Path(sys.argv[1], f"{world.rank}.txt").write_text(said)
"""


def test_torchrun_starts_a_world(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path / "script.py"), str(tmp_path)]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said == [f"World(rank={rank}, size=2) cpu 2.0" for rank in (0, 1)]
