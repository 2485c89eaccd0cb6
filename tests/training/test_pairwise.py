"""FM, DeepFM and DLRM against numbers made by hand and against their formulas, pair by pair."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from featurestore.spec import load_spec
from training.embeddings import UnifiedEmbedding
from training.models import MODELS, build_model, build_network
from training.pairwise import PairwiseDots, factorized

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**16))


def random_fields(shape):
    *sizes, seed = shape
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(fields):
    """All products, in the order of i, then j: (B, F, D) -> (B, F * (F - 1) / 2)."""
    products = [
        (fields[:, i] * fields[:, j]).sum(1) for i, j in itertools.combinations(range(fields.shape[1]), 2)
    ]
    return torch.stack([fields.new_zeros(len(fields)), *products], dim=1)[:, 1:]


@given(SHAPES)
def test_the_linear_time_form_is_the_sum_over_all_pairs(shape):
    fields = random_fields(shape)
    assert torch.allclose(factorized(fields), pairs(fields).sum(1))


@given(SHAPES)
def test_the_dots_are_those_of_all_pairs_in_order(shape):
    fields = random_fields(shape)
    dots = PairwiseDots(shape[1])(fields)
    assert dots.shape == (shape[0], shape[1] * (shape[1] - 1) // 2)
    assert torch.allclose(dots, pairs(fields))


def test_pairs_by_hand():
    fields = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [-1.0, 5.0]]])
    # <1, 2> = 3 + 8, <1, 3> = -1 + 10, <2, 3> = -3 + 20
    assert PairwiseDots(3)(fields).tolist() == [[11.0, 9.0, 17.0]]
    assert factorized(fields).tolist() == [37.0]


def by_hand(name, fields=2, **options):
    """A network over the rows (1, 2), (3, 4), (-1, 5), whose own weights are all 0."""
    table = UnifiedEmbedding(3, 2)
    model = build_network(name, table, fields, 2, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        table.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [-1.0, 5.0]]))
    return model


def fill(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.tensor(values))


def test_fm_by_hand():
    model = by_hand("fm")
    slots = torch.tensor([[0, 1], [2, 2]])
    assert model(slots).tolist() == [11.0, 26.0]  # <(1, 2), (3, 4)>; a row by itself: 1 + 25
    fill(model.first_order.weight, [[1.0, 10.0, 100.0, 1000.0]])
    fill(model.first_order.bias, [0.5])
    # first order (1 + 20) + (300 + 4000) and (-1 + 50) + (-100 + 5000)
    assert model(slots).tolist() == [0.5 + 4321 + 11, 0.5 + 4949 + 26]


def test_deepfm_by_hand():
    model = by_hand("deepfm", deep=(2,))
    slots = torch.tensor([[0, 1]])
    fill(model.first_order.weight, [[1.0, 10.0, 100.0, 1000.0]])
    hidden, _, output = model.layers
    fill(hidden.weight, [[1.0, 1.0, 1.0, 1.0], [-1.0, 0.0, 0.0, 0.0]])
    fill(hidden.bias, [0.5, 0.0])
    fill(output.weight, [[2.0, 1000.0]])
    fill(output.bias, [-3.0])
    # FM 4321 + 11; deep: relu(10.5, -1) = (10.5, 0), 2 * 10.5 - 3
    assert model(slots).tolist() == [4332.0 + 18.0]


def test_dlrm_by_hand():
    model = by_hand("dlrm", fields=3, deep=(1,))
    hidden, _, output = model.layers
    fill(hidden.weight, [[1.0, 0.0, 0.0, 0.0, 0.0, 10.0, 100.0, 1000.0, 10000.0]])
    fill(output.weight, [[2.0]])
    fill(output.bias, [0.5])
    # the rows (1, 2), (3, 4), (-1, 5), then their products 11, 9, 17
    assert model(torch.tensor([[0, 1, 2]])).tolist() == [2 * (1 + 50 + 1100 + 9000 + 170_000) + 0.5]


def test_fm_is_its_formula():
    model = build_model("fm", load_spec("article"), bias=3.5)
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(1000, 10), (1, 70), (1,)]
    nn.init.normal_(model.embedding.weight)
    slots = torch.randint(1000, (5, 7))
    rows = model.embedding.weight[slots]
    weight = model.first_order.weight.view(7, 10)
    for score, vectors in zip(model(slots), rows, strict=True):
        expected = model.first_order.bias[0]
        for i in range(7):
            expected = expected + weight[i] @ vectors[i]
            for j in range(i + 1, 7):
                expected = expected + vectors[i] @ vectors[j]
        assert torch.allclose(score, expected, rtol=1e-4)


def deep(layers, x):
    one, two, out = (layer for layer in layers if isinstance(layer, nn.Linear))
    hidden = functional.relu(functional.linear(x, one.weight, one.bias))
    hidden = functional.relu(functional.linear(hidden, two.weight, two.bias))
    return functional.linear(hidden, out.weight, out.bias).squeeze(1)


def test_deepfm_is_fm_without_its_bias_and_a_deep_network_on_one_embedding():
    table = UnifiedEmbedding(50, 3)
    model = build_network("deepfm", table, 4, 3, bias=3.5, deep=(5, 2))
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(50, 3), (1, 12), (5, 12), (5,), (2, 5), (2,), (1, 2), (1,)]
    assert model.layers[-1].bias.tolist() == [3.5]
    fm = build_network("fm", table, 4, 3)
    fm.first_order.weight = model.first_order.weight
    slots = torch.randint(50, (6, 4))
    assert torch.allclose(model(slots), fm(slots) + deep(model.layers, table(slots)))


def test_dlrm_is_a_network_over_the_embedding_and_its_pairs():
    table = UnifiedEmbedding(50, 3)
    model = build_network("dlrm", table, 4, 3, bias=3.5, deep=(5, 2))
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(50, 3), (5, 12 + 6), (5,), (2, 5), (2,), (1, 2), (1,)]
    assert model.layers[-1].bias.tolist() == [3.5]
    slots = torch.randint(50, (6, 4))
    x = table(slots)
    expected = deep(model.layers, torch.cat([x, pairs(x.view(6, 4, 3))], dim=1))
    assert torch.allclose(model(slots), expected)


@pytest.mark.parametrize(("name", "widths"), [("deepfm", [70, 192, 1]), ("dlrm", [70 + 21, 192, 1])])
def test_the_default_is_one_deep_layer_of_192(name, widths):
    linear = [layer for layer in build_model(name, load_spec("article")).layers if hasattr(layer, "weight")]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths


@pytest.mark.parametrize("name", ["fm", "deepfm", "dlrm"])
def test_one_field_has_no_pairs(name):
    model = by_hand(name, fields=1)
    assert model(torch.tensor([[0], [2]])).tolist() == [0.0, 0.0]


def test_what_a_model_saves_is_its_parameters():
    for name in MODELS:
        model = build_model(name, load_spec("article"))
        assert set(model.state_dict()) == {key for key, _ in model.named_parameters()}, name
