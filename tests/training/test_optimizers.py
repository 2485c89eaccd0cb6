import pytest
import torch
from torch import nn
from torch.nn import functional

from training.optimizers import (
    TABLE_LR,
    Optimizers,
    RowwiseAdagrad,
    build_optimizer,
    clip_gradients,
    coalesced,
)


class SparseTable(nn.Module):
    def __init__(self, num_slots=50, dim=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_slots, dim))

    def forward(self, slots):
        return functional.embedding(slots, self.weight, sparse=True).flatten(1)


class Model(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.embedding = table
        self.output = nn.Linear(2 * 4, 1)

    def forward(self, slots):
        return self.output(self.embedding(slots)).squeeze(1)


def model(sparse=True):
    torch.manual_seed(0)
    table = SparseTable()
    if sparse:
        return Model(table)
    dense = nn.Embedding(50, 4, _weight=table.weight.detach().clone())
    return Model(nn.Sequential(dense, nn.Flatten(1)))


def sparse_gradient(rows, values, num_rows):
    shape = num_rows, len(values[0])
    return torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(values), shape, check_invariants=True)


def reference_step(weight, sums, gradient, lr, weight_decay, eps=1e-8):
    """Row-wise Adagrad with every row decayed in every step, for a dense gradient (N, D)."""
    weight *= 1 - lr * weight_decay
    touched = gradient.abs().sum(1) > 0
    sums += gradient.square().mean(1)
    weight[touched] -= lr * gradient[touched] / (sums[touched].sqrt() + eps).unsqueeze(1)


def test_coalescing_sums_what_is_for_the_same_row():
    gradient = sparse_gradient([3, 0, 3, 7], [[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [5.0, 6.0]], 9)
    summed = coalesced(gradient)
    assert summed.is_coalesced()
    assert summed.indices().tolist() == [[0, 3, 7]]
    assert summed.values().tolist() == [[3.0, 4.0], [11.0, 22.0], [5.0, 6.0]]
    assert coalesced(summed) is summed


def test_coalescing_nothing():
    assert (
        coalesced(torch.sparse_coo_tensor(size=(9, 2), check_invariants=True))
        .to_dense()
        .equal(torch.zeros(9, 2))
    )


@pytest.mark.parametrize("dim", [1, 3, 16])
def test_coalescing_is_torchs(dim):
    rows = torch.randint(40, (1, 300))
    gradient = torch.sparse_coo_tensor(rows, torch.randn(300, dim), (50, dim), check_invariants=True)
    expected, found = gradient.coalesce(), coalesced(gradient)
    assert found.indices().equal(expected.indices())
    torch.testing.assert_close(found.values(), expected.values())


def test_a_step_by_hand():
    """Gradients of row 1 sum to (3, 4): mean square 12.5, so it moves by 0.1 * (3, 4) / sqrt(12.5)."""
    table = nn.Parameter(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    optimizer = RowwiseAdagrad([table], lr=0.1)
    table.grad = sparse_gradient([1, 1], [[1.0, 4.0], [2.0, 0.0]], 2)
    optimizer.step()
    step = 0.1 / 12.5**0.5
    torch.testing.assert_close(table.data, torch.tensor([[1.0, 1.0], [1 - 3 * step, 1 - 4 * step]]))
    assert optimizer.state[table]["sum"].tolist() == [0.0, 12.5]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_random_steps_are_those_of_a_dense_reference_that_decays_every_row(weight_decay):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(30, 4, generator=generator)
    sums, table = torch.zeros(30), nn.Parameter(weight.clone())
    optimizer = RowwiseAdagrad([table], lr=0.1, weight_decay=weight_decay)
    for number in range(60):
        lr = 0.1 / (1 + number % 7)  # a schedule
        optimizer.param_groups[0]["lr"] = lr
        slots = torch.randint(6 if number % 2 else 30, (5, 2), generator=generator)
        optimizer.catch_up(slots)
        torch.testing.assert_close(table.data[slots], weight[slots])  # what the forward sees
        optimizer.zero_grad()
        wanted = torch.randn(5, 2, 4, generator=generator)
        (functional.embedding(slots, table, sparse=True) * wanted).sum().backward()
        reference_step(weight, sums, table.grad.to_dense(), lr, weight_decay)
        optimizer.step()
        if number == 40:
            optimizer.flush()
    optimizer.flush()
    torch.testing.assert_close(table.data, weight)
    torch.testing.assert_close(optimizer.state[table]["sum"], sums)


def test_a_flush_in_parts_reaches_every_row(monkeypatch):
    monkeypatch.setattr("training.optimizers.FLUSH_ROWS", 3)
    table = nn.Parameter(torch.ones(8, 1))
    optimizer = RowwiseAdagrad([table], lr=0.5, weight_decay=1.0)
    table.grad = sparse_gradient([0], [[0.0]], 8)
    for _ in range(2):
        optimizer.step()
    assert table.data.flatten().tolist() == [0.25] + [1.0] * 7
    optimizer.flush()
    optimizer.flush()  # nothing is owed any more
    assert table.data.flatten().tolist() == [0.25] * 8


def test_without_decay_nothing_is_kept_for_it():
    table = nn.Parameter(torch.ones(8, 1))
    optimizer = RowwiseAdagrad([table], lr=0.5)
    optimizer.catch_up(torch.tensor([[1]]))
    table.grad = sparse_gradient([0], [[1.0]], 8)
    optimizer.step()
    assert set(optimizer.state[table]) == {"sum"}


def test_a_dense_gradient_is_refused():
    table = nn.Parameter(torch.ones(2, 1))
    table.grad = torch.ones(2, 1)
    with pytest.raises(ValueError, match="sparse=True"):
        RowwiseAdagrad([table]).step()


@pytest.mark.parametrize(("lr", "weight_decay"), [(0.0, 0.0), (0.1, -1.0), (0.1, 10.0)])
def test_numbers_out_of_range_are_refused(lr, weight_decay):
    with pytest.raises(ValueError, match="must be positive"):
        RowwiseAdagrad([nn.Parameter(torch.ones(2, 1))], lr, weight_decay=weight_decay)


def train(learner, optimizer, steps, seed, max_norm=None):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        slots = torch.randint(50, (6, 2), generator=generator)
        optimizer.catch_up(slots)
        optimizer.zero_grad()
        (learner(slots) - 1).square().mean().backward()
        if max_norm is not None:
            clip_gradients(learner.parameters(), max_norm)
        optimizer.step()


@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_a_saved_state_goes_on_exactly(kind, tmp_path):
    """Also one saved while rows owe decay, which torch's load_state_dict would round."""

    def fresh():
        learner = model(sparse=kind != "adam")
        if kind == "adam":
            learner.embedding.weight = learner.embedding[0].weight
        return learner, build_optimizer(learner, kind, lr=0.01, weight_decay=1e-3)

    learner, optimizer = fresh()
    train(learner, optimizer, 7, seed=0)
    torch.save([learner.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    train(learner, optimizer, 7, seed=1)
    optimizer.flush()

    resumed, other = fresh()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    train(resumed, other, 7, seed=1)
    other.flush()
    for name, value in learner.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name


def test_clipping_is_torchs_on_dense_gradients():
    sparse, dense = model(), model(sparse=False)
    slots = torch.randint(50, (20, 2))
    for max_norm in (0.05, 1e9):
        for learner in (sparse, dense):
            learner.zero_grad()
            learner(slots).square().sum().backward()
        norm = clip_gradients(sparse.parameters(), max_norm)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(dense.parameters(), max_norm))
        for ours, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(ours.grad.to_dense(), theirs.grad)


def test_clipping_nothing():
    assert clip_gradients(model().parameters(), 1.0) == 0


def test_adam_is_one_fused_adam_over_everything():
    ours, plain = model(sparse=False), model(sparse=False)
    ours.embedding.weight = ours.embedding[0].weight
    optimizer = build_optimizer(ours, "adam", lr=0.01, weight_decay=1e-3)
    reference = torch.optim.Adam(plain.parameters(), lr=0.01, weight_decay=1e-3, fused=True)
    train(ours, optimizer, 5, seed=0)
    adam = Optimizers(reference, None, plain.embedding)
    train(plain, adam, 5, seed=0)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert mine.equal(theirs)
    assert optimizer.state_dict().keys() == reference.state_dict().keys()  # a checkpoint of plain Adam loads


def test_rowwise_adagrad_has_the_table_and_adam_the_rest():
    learner = model()
    optimizer = build_optimizer(learner, "rowwise_adagrad", lr=0.01, weight_decay=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, TABLE_LR]
    assert optimizer.param_groups[1]["params"] == [learner.embedding.weight]
    before = [parameter.detach().clone() for parameter in learner.parameters()]
    train(learner, optimizer, 1, seed=0, max_norm=1.0)
    assert all((now != old).any() for now, old in zip(learner.parameters(), before, strict=True))
    assert optimizer.full_state_dict().keys() == {"dense", "table"}


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("adagrad", {}, "unknown optimizer 'adagrad', expected adam, rowwise_adagrad"),
        ("adam", {"table_lr": 0.1}, "one learning rate"),
        ("rowwise_adagrad", {"capturable": True}, "cannot be captured"),
    ],
)
def test_what_does_not_go_together_is_refused(kind, options, said):
    with pytest.raises(ValueError, match=said):
        build_optimizer(model(), kind, lr=0.1, weight_decay=0.0, **options)


@pytest.mark.parametrize(("saved", "loading"), [("adam", "rowwise_adagrad"), ("rowwise_adagrad", "adam")])
def test_the_state_of_another_kind_is_refused(saved, loading):
    states = build_optimizer(model(), saved, lr=0.1, weight_decay=0.0).state_dict()
    with pytest.raises(ValueError, match="another kind of optimizer"):
        build_optimizer(model(), loading, lr=0.1, weight_decay=0.0).load_full_state_dict(states)
