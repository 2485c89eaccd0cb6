import os
import signal

import pytest
import torch
from torch import nn

from featurestore.errors import TrainingError
from training.embeddings import UnifiedEmbedding
from training.optimizers import build_optimizer, clip_gradients
from training.sharded import ShardedEmbedding, full_table, load_rows
from training.world import World, broadcast_parameters, reduce_gradients

SLOTS, DIM, LOOKUPS, BATCH = 23, 4, 3, 10  # 23 rows: of 4 ranks the last has 5
WIDTHS = {1: [10], 2: [3, 7], 3: [0, 4, 6], 4: [2, 0, 7, 1]}  # rows of a global batch by rank: some have none


class Model(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.embedding = table
        self.layers = nn.Sequential(nn.Linear(LOOKUPS * DIM, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, slots):
        return self.layers(self.embedding(slots)).squeeze(1)


def plain(sparse):
    torch.manual_seed(3)
    return Model(UnifiedEmbedding(SLOTS, DIM, 0.5, sparse=sparse))


def sharded(world, sparse):
    torch.manual_seed(3)
    return Model(ShardedEmbedding(SLOTS, DIM, 0.5, world, sparse=sparse))


def batches(first, last):
    """Slots of the global batches; a slot often comes twice, and some never do."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        yield torch.randint(SLOTS, (BATCH, LOOKUPS), generator=generator).square() // SLOTS


def rank_part(slots, world):
    return slots.split(WIDTHS[world.size])[world.rank]


def optimizer_of(model, sparse):
    kind = "rowwise_adagrad" if sparse else "adam"
    return build_optimizer(model, kind, lr=0.02, weight_decay=0.1)


def train(model, optimizer, world, first, last):
    for slots in batches(first, last):
        mine = rank_part(slots, world)
        optimizer.catch_up(mine)
        optimizer.zero_grad()
        ((model(mine) - 1).square().sum() / BATCH).backward()
        reduce_gradients(model, world)
        clip_gradients(model.parameters(), 0.5)
        optimizer.step()


def forward_and_backward(world, sparse):
    model = sharded(world, sparse)
    slots = next(batches(0, 1))
    output = model.embedding(rank_part(slots, world).int())
    (output.square().sum() / BATCH).backward()
    gradient = model.embedding.weight.grad.to_dense()
    return full_table(model.embedding), world.gather_rows(output), world.gather_rows(gradient)


@pytest.mark.parametrize(("size", "sparse"), [(1, False), (2, True), (3, False), (4, True)])
def test_outputs_and_gradients_are_the_unsharded_tables(run_world, size, sparse):
    model = plain(sparse)
    slots = next(batches(0, 1))
    output = model.embedding(slots)
    (output.square().sum() / BATCH).backward()
    for rank, (table, outputs, gradient) in enumerate(run_world(size, forward_and_backward, sparse)):
        assert rank > 0 or table.equal(model.embedding.weight)
        assert rank == 0 or table is None
        assert outputs.equal(output)
        torch.testing.assert_close(gradient, model.embedding.weight.grad.to_dense())


def train_all(world, sparse):
    model = sharded(world, sparse)
    broadcast_parameters(model, world)
    optimizer = optimizer_of(model, sparse)
    train(model, optimizer, world, 0, 6)
    optimizer.flush()
    return full_table(model.embedding), model.layers.state_dict()


@pytest.mark.parametrize(("size", "sparse"), [(2, False), (4, False), (3, True), (4, True)])
def test_steps_are_those_of_one_process_at_the_same_global_batch(run_world, size, sparse):
    model = plain(sparse)
    optimizer = optimizer_of(model, sparse)
    train(model, optimizer, World(), 0, 6)
    optimizer.flush()
    results = run_world(size, train_all, sparse)
    torch.testing.assert_close(results[0][0], model.embedding.weight.data)
    for _, layers in results:
        for name, value in model.layers.state_dict().items():
            torch.testing.assert_close(layers[name], value)
            assert layers[name].equal(results[0][1][name])


def save_after_three(world, sparse, path):
    model = sharded(world, sparse)
    optimizer = optimizer_of(model, sparse)
    train(model, optimizer, world, 0, 3)
    optimizer.flush()
    table, state = full_table(model.embedding), optimizer.full_state_dict()
    if world.rank == 0:
        torch.save({"table": table, "layers": model.layers.state_dict(), "optimizer": state}, path)


def load_and_train_three(world, sparse, path):
    model = sharded(world, sparse)
    saved = torch.load(path, weights_only=True, mmap=True)
    load_rows(model.embedding, saved["table"])
    model.layers.load_state_dict(saved["layers"])
    optimizer = optimizer_of(model, sparse)
    optimizer.load_full_state_dict(saved["optimizer"])
    train(model, optimizer, world, 3, 6)
    optimizer.flush()
    return full_table(model.embedding)


@pytest.mark.parametrize("sparse", [False, True])
def test_what_four_ranks_save_one_two_or_no_world_load(run_world, tmp_path, sparse):
    path = tmp_path / "saved.pt"
    run_world(4, save_after_three, sparse, path)
    model = plain(sparse)
    optimizer = optimizer_of(model, sparse)
    train(model, optimizer, World(), 0, 3)
    optimizer.flush()
    train(model, optimizer, World(), 3, 6)
    optimizer.flush()
    for size in (1, 2):
        table, *_ = run_world(size, load_and_train_three, sparse, path)
        torch.testing.assert_close(table, model.embedding.weight.data)

    saved = torch.load(path, weights_only=True)
    unsharded = plain(sparse)
    unsharded.load_state_dict(
        {"embedding.weight": saved["table"]}
        | {f"layers.{name}": value for name, value in saved["layers"].items()}
    )
    other = optimizer_of(unsharded, sparse)
    other.load_state_dict(saved["optimizer"])
    train(unsharded, other, World(), 3, 6)
    other.flush()
    torch.testing.assert_close(unsharded.embedding.weight, model.embedding.weight)


@pytest.mark.parametrize("shape", [(3, 1), (100, 4), (1001, 7), (4099, 3), (24, 2)])
def test_a_table_made_in_chunks_is_the_one_made_at_once(monkeypatch, shape):
    """Whatever the last chunk's size, and leaving the generator where it would be."""
    monkeypatch.setattr("training.sharded.CHUNK_FLOATS", 32)
    torch.manual_seed(0)
    whole, after = nn.init.normal_(torch.empty(shape), std=0.3), torch.randn(5)
    for size in (1, 3, 5):
        parts = []
        for rank in range(size):
            torch.manual_seed(0)
            parts.append(ShardedEmbedding(*shape, 0.3, World(rank, size)).weight)
            assert torch.randn(5).equal(after)
        assert torch.cat(parts).equal(whole)
        assert len(parts[0]) == -(-shape[0] // size)


def test_a_large_table_is_made_the_same_in_chunks():
    torch.manual_seed(0)
    whole = nn.init.normal_(torch.empty(1_000_003, 17))
    torch.manual_seed(0)
    assert ShardedEmbedding(1_000_003, 17).weight.equal(whole)


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_outside_the_table_is_an_error(slot):
    with pytest.raises(IndexError, match=r"not in 0\.\.22"):
        ShardedEmbedding(SLOTS, DIM)(torch.tensor([[0, slot]]))


def test_a_table_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(23, 4\), this one \(22, 4\)"):
        load_rows(ShardedEmbedding(SLOTS, DIM), torch.zeros(22, DIM))


def lose_one_between_forward_and_backward(world):
    loss = sharded(world, sparse=True)(rank_part(next(batches(0, 1)), world)).sum()
    if world.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    loss.backward()


def test_a_worker_killed_in_a_step_ends_the_others(run_world):
    results = run_world(3, lose_one_between_forward_and_backward, errors=True)
    assert results[2] is None
    for rank in (0, 1):
        assert isinstance(results[rank], TrainingError), results[rank]
        assert f"rank {rank} of 3 lost another worker" in str(results[rank])
