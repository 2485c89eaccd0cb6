"""What is made of the rows looked up: by hand, as the layout says it, in every network."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featurestore import signs
from featurestore.hashing import MAX_SLOTS
from featurestore.layouts import unified_narrow
from featurestore.plans import Field
from featurestore.spec import Table, load_spec
from training.combiners import CODE, Concatenation, SignedProjection, _steps, slot_signs
from training.embeddings import UnifiedEmbedding
from training.layout_embeddings import embed
from training.models import MODELS, build_model

KNOWN = [
    [9.182387, -9.202388, -14.839242, 4.99, -4.99, -4.99],
    [14.839242, -14.839242, 9.202388, 0.01, 0.01, 0.01],
]
NARROW = dataclasses.replace(load_spec("article"), table=Table(500, 2, 12))  # lookups 2, 2, 1, 1, 1


def some_slots(rows=64, seed=0, num_slots=500):
    return torch.randint(num_slots, (rows, 7), generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(1, 9).flatmap(
        lambda k: st.lists(st.lists(st.integers(0, MAX_SLOTS - 1), min_size=k, max_size=k), min_size=1)
    ),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_signs_are_those_of_the_layouts(slots, kind):
    factors = torch.tensor(signs.multipliers(len(slots[0])).view(np.int64))
    found = slot_signs(torch.tensor(slots, dtype=kind), factors, torch.from_numpy(_steps(70)))
    assert found.shape == (len(slots), 96)
    assert found.numpy().tolist() == signs.slot_signs(np.array(slots, np.int32), 96).tolist()


def test_a_vector_by_hand():
    table = UnifiedEmbedding(10, 2)
    combiner = SignedProjection([2], 2, 3)
    (vector,) = combiner(table, torch.tensor([[7, 1]])).tolist()
    (sign,) = signs.slot_signs(np.array([[7, 1]], np.int32), 3)
    weight = table.weight.detach().numpy()
    rows = np.concatenate([sign[0] * weight[7], sign[1] * weight[1]])
    expected = rows @ signs.projection_signs(4, 3) / 2 + CODE * sign
    assert vector == pytest.approx(expected.tolist(), rel=1e-5)


def test_known_vectors():
    """A model trained with them must find them again: signs, projection and code never change."""
    table = UnifiedEmbedding(20, 1)
    table.weight.data = torch.arange(20.0)[:, None]
    combiner = SignedProjection([2, 1], 1, 3)
    found = combiner(table, torch.tensor([[17, 4, 5], [4, 17, 0]]))
    np.testing.assert_allclose(found.detach(), KNOWN, rtol=1e-5)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_any_lookups_by_feature(lookups, dim, vector, seed):
    """Feature by feature, in plain numpy."""
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, 50, (4, sum(lookups)), dtype=np.int32)
    table = UnifiedEmbedding(50, dim)
    weight, parts = table.weight.detach().numpy(), []
    for own in np.split(slots, np.cumsum(lookups)[:-1], 1):
        count = own.shape[1]
        sign = signs.slot_signs(own, max(count, vector))
        rows = (sign[:, :count, None] * weight[own]).reshape(4, -1)
        projected = rows @ signs.projection_signs(count * dim, vector) / np.sqrt(count * dim)
        parts.append(projected + CODE * sign[:, :vector])
    found = SignedProjection(lookups, dim, vector)(table, torch.from_numpy(slots)).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate(parts, 1), atol=1e-5)


@pytest.mark.parametrize("small", [4, 2])
def test_a_spec_with_vectors_trains_the_layout_that_was_compared(small):
    """Same table, same values, same code: `unified_narrow` of a comparison gives what a store's slots do."""
    fields = [Field("user_id", tuple(map(str, range(100)))), Field("zip", ("a", "b", "c"))]
    plan = unified_narrow(fields, 12, 31, lookups=4, small=small, code=CODE)
    compared = embed(plan)
    table = UnifiedEmbedding(31, 1)
    table.weight = compared.table
    codes = torch.tensor([[3, 2], [99, 0], [0, 0]])
    slots = np.concatenate([plan.slots[0][codes[:, 0]], plan.slots[1][codes[:, 1]]], 1)
    served = SignedProjection([4, small], 1, 12)(table, torch.from_numpy(slots))
    assert torch.allclose(served, compared(codes), atol=1e-7)


@pytest.mark.parametrize("shape", [(8, 8), (8, 6), (8,), (8, 7, 1)])
def test_slots_of_another_number_are_refused(shape):
    model = build_model("dcn", NARROW)
    with pytest.raises(ValueError, match=r"slots must be \(B, 7\), those of lookups \(2, 2, 1, 1, 1\), got"):
        model(torch.zeros(shape, dtype=torch.int32))


def test_a_model_of_another_precision():
    model = build_model("article", NARROW)
    assert torch.allclose(model(some_slots()).double(), model.double()(some_slots()), atol=1e-5)


def test_rows_that_stay_as_they_are_take_the_embeddings_own_road(monkeypatch):
    """The article's first layer; vectors never take it."""
    taken = []
    road = UnifiedEmbedding.project
    monkeypatch.setattr(UnifiedEmbedding, "project", lambda *args: taken.append(1) or road(*args))
    build_model("article", load_spec("article"))(some_slots())
    assert len(taken) == 1
    build_model("article", NARROW)(some_slots())
    assert len(taken) == 1


@pytest.mark.parametrize("name", MODELS)
def test_every_network_takes_it_and_every_parameter_gets_a_gradient(name):
    model = build_model(name, NARROW, bias=1.5)
    assert isinstance(model.combiner, SignedProjection)
    assert (model.fields, model.dim) == (5, 12)
    scores = model(some_slots(4096))
    assert scores.shape == (4096,)
    scores.sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_without_vectors_rows_are_concatenated(name):
    model = build_model(name, load_spec("article"))
    assert type(model.combiner) is Concatenation
    assert (model.fields, model.dim) == (7, 10)


def test_it_has_no_parameters_and_nothing_of_it_is_in_a_checkpoint():
    model = build_model("article", NARROW)
    assert list(model.combiner.parameters()) == []
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_slots_of_either_type_and_of_no_example():
    model = build_model("dcn", NARROW)
    assert torch.equal(model(some_slots()), model(some_slots().int()))
    assert model(some_slots(0)).shape == (0,)


def test_an_example_has_the_same_score_in_any_batch():
    model = build_model("dcn", NARROW).eval()
    slots = some_slots()
    alone = torch.cat([model(slots[row : row + 1]) for row in range(len(slots))])
    assert torch.allclose(model(slots), alone, atol=1e-6)


def test_vectors_keep_their_bits_where_the_network_computes_in_bf16():
    """As rows do that are concatenated: what is rounded is the input of a layer, not what is added to it."""
    combiner, table = SignedProjection([2, 2, 1, 1, 1], 2, 12), UnifiedEmbedding(500, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = combiner(table, some_slots())
    assert torch.equal(found, combiner(table, some_slots()))


def test_compiled_it_gives_the_same(needs_compiler):
    combiner, table = SignedProjection([2, 2, 1, 1, 1], 2, 12), UnifiedEmbedding(500, 2)
    found = torch.compile(combiner)(table, some_slots())
    assert torch.allclose(found, combiner(table, some_slots()), atol=1e-6)


def test_rows_of_values_that_share_them_are_told_apart():
    """Two values with one row of two in common, and opposite labels: they are learned."""
    torch.manual_seed(0)
    table, combiner, layer = UnifiedEmbedding(3, 1, std=0.01), SignedProjection([2], 1, 8), nn.Linear(8, 1)
    slots, labels = torch.tensor([[0, 1], [0, 2]]), torch.tensor([1.0, -1.0])
    optimizer = torch.optim.Adam([*table.parameters(), *layer.parameters()], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(combiner(table, slots)).squeeze(1) - labels).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_it_describes_itself():
    assert "lookups (2, 1) of 4 -> 12" in repr(SignedProjection([2, 1], 4, 12))
