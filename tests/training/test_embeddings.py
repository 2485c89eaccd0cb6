"""The gradient of the table against torch's own, and that it is the same at every run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from training.embeddings import (
    RADIX_ROWS,
    UnifiedEmbedding,
    dense_gradient,
    projects_table,
    sparse_gradient,
)

MANY = RADIX_ROWS + 1  # lookups that take the other road


def reference(slots, rows, num_slots):
    """Return torch's own gradient of an embedding."""
    weight = torch.zeros(num_slots, rows.shape[1], requires_grad=True)
    functional.embedding(slots, weight).backward(rows)
    return weight.grad


def random_rows(count, dim=3, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def random_slots(count, num_slots, dtype=torch.int32):
    """Most of them small, as where a few values are common."""
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(1)) ** 3 * num_slots
    return drawn.to(dtype)


def check(slots, rows, num_slots):
    expected = reference(slots, rows, num_slots)
    assert torch.equal(dense_gradient(slots, rows, num_slots), expected)
    sparse = sparse_gradient(slots, rows, num_slots)
    assert torch.equal(sparse.to_dense(), expected)
    assert sparse.is_coalesced()
    assert sparse.indices()[0].tolist() == slots.long().unique().tolist()


@given(slots=st.lists(st.integers(0, 9)), wide=st.booleans())
def test_the_gradient_is_torchs_own_bit_for_bit(slots, wide):
    dtype = torch.int64 if wide else torch.int32
    check(torch.tensor(slots, dtype=dtype), random_rows(len(slots)), num_slots=10)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_slots", [1, 1000, 32_768, 32_769, 200_000])
@pytest.mark.parametrize("count", [RADIX_ROWS - 1, MANY])
def test_also_where_the_lookups_are_many(count, num_slots, dtype):
    check(random_slots(count, num_slots, dtype), random_rows(count), num_slots)


@pytest.mark.parametrize("slot", [0, 7, 32_767])
def test_all_lookups_may_be_of_one_slot(slot):
    check(torch.full((MANY,), slot), random_rows(MANY), num_slots=32_768)


def test_slots_may_be_columns_of_a_wider_tensor():
    """A batch's slots are: the last column of its rows is the label."""
    packed = random_slots(4 * MANY, 100).view(-1, 4)
    table = UnifiedEmbedding(num_slots=100, dim=2)
    rows = random_rows(packed.shape[0], dim=6)
    table(packed[:, :-1]).backward(rows)
    expected = reference(packed[:, :-1].reshape(-1), rows.view(-1, 2), 100)
    assert torch.equal(table.weight.grad, expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_empty_batch_gives_a_gradient_of_zeros(sparse):
    table = UnifiedEmbedding(num_slots=5, dim=2, sparse=sparse)
    scores = table(torch.empty(0, 3, dtype=torch.int32))
    assert scores.shape == (0, 6)
    scores.sum().backward()
    assert table.weight.grad.is_sparse == sparse
    assert torch.equal(table.weight.grad.to_dense(), torch.zeros(5, 2))


def test_a_sparse_gradient_has_only_the_rows_looked_up_and_adds_up():
    table = UnifiedEmbedding(num_slots=100, dim=1, sparse=True)
    table(torch.tensor([[7, 7], [3, 7]])).sum().backward()
    assert table.weight.grad._indices().tolist() == [[3, 7]]
    assert table.weight.grad._values().tolist() == [[1.0], [3.0]]
    table(torch.tensor([[4, 7]])).sum().backward()
    assert table.weight.grad.coalesce().indices().tolist() == [[3, 4, 7]]
    assert table.weight.grad.coalesce().values().tolist() == [[1.0], [1.0], [4.0]]
    assert "sparse" in repr(table)


@pytest.mark.parametrize("count", [3000, 3 * MANY])
def test_the_bits_are_the_same_at_every_run_and_number_of_threads(count):
    slots, rows = random_slots(count, 1000), random_rows(count)
    first = dense_gradient(slots, rows, 1000)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            assert all(torch.equal(dense_gradient(slots, rows, 1000), first) for _ in range(3))
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("slot", [-1, 3, 2**31 - 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_slot_outside_the_table_is_an_error(slot, dtype):
    with pytest.raises(IndexError):
        UnifiedEmbedding(num_slots=3, dim=1)(torch.tensor([[0, slot]], dtype=dtype))


def projections(num_slots, count, dtype=torch.int32):
    """Return a table, a layer and slots with which `project` takes its own road where count is large."""
    torch.manual_seed(0)
    table, layer = UnifiedEmbedding(num_slots, dim=4), nn.Linear(12, 8)
    return table, layer, random_slots(3 * count, num_slots, dtype).view(count, 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("count", [5, RADIX_ROWS])
def test_a_projection_is_the_layer_of_the_concatenated_rows(count, dtype):
    table, layer, slots = projections(50, count, dtype)
    upstream = random_rows(count, dim=8)
    found = []
    for compute in (lambda: table.project(slots, layer), lambda: layer(table(slots))):
        table.zero_grad(), layer.zero_grad()
        output = compute()
        output.backward(upstream)
        found.append([output, table.weight.grad, layer.weight.grad, layer.bias.grad])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3 if count > 5 else 1e-6)


def test_large_batches_on_a_small_table_are_projected():
    _, layer, slots = projections(50, RADIX_ROWS)
    assert projects_table(slots, 50)
    assert not projects_table(slots[:100], 50)
    assert not projects_table(slots, RADIX_ROWS)
    sparse = UnifiedEmbedding(50, dim=4, sparse=True)
    assert sparse.project(slots, layer).equal(layer(sparse(slots)))


@pytest.mark.parametrize("slot", [-1, 50])
def test_a_slot_outside_the_table_is_an_error_of_a_projection(slot):
    table, layer, slots = projections(50, RADIX_ROWS)
    slots[7, 1] = slot
    with pytest.raises(IndexError, match="it has 50 rows"):
        table.project(slots, layer)


def test_the_bits_of_a_projection_are_the_same_at_every_run():
    table, layer, slots = projections(50, RADIX_ROWS)
    found = []
    for _ in range(3):
        table.zero_grad()
        output = table.project(slots, layer)
        output.square().sum().backward()
        found.append((output, table.weight.grad.clone()))
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))
