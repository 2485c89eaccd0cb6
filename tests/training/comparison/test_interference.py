"""Measures of interference: by hand in linear networks, by brute force over every value in others."""

import copy
import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from featurestore.layouts import make_plan
from featurestore.plans import Field, Products, Projected, Rows, Sums
from featurestore.spec import Label
from training.comparison.data import Coded
from training.comparison.figures import figures
from training.comparison.interference import (
    collision_scores,
    count_traffic,
    find_places,
    gradient_shares,
    is_measurable,
    measure,
    readout_directions,
    row_directions,
    value_collisions,
)
from training.comparison.measures import CollisionScores, Readouts, RowLoads, random_degrees
from training.comparison.setup import Setup
from training.layout_embeddings import embed
from training.models import build_network
from training.networks import Network
from training.objective import BINARY

SIZES = (3, 5)
FIELDS = (Field("colour", ("red", "green", "blue")), Field("id", tuple(map(str, range(40)))))
FLOATS = 20 * 6


class Linear(Network):
    """score = <weights, embedding>."""

    def __init__(self, embedding, fields, dim, weights):
        super().__init__(embedding, fields, dim)
        self.layer = nn.Linear(self.width, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.as_tensor(weights).flatten())

    def forward(self, inputs):
        return self.layer(self.embed(inputs)).squeeze(1)


def coded_of(fields, rows=300, seed=0, binary=True):
    """Random codes, whose labels depend on them."""
    rng = np.random.default_rng(seed)
    codes, labels = {}, {}
    for split in ("train", "validation", "test"):
        codes[split] = np.stack([rng.integers(len(field), size=rows) for field in fields], 1).astype(np.int32)
        wanted = np.sin(codes[split].sum(1)) + rng.normal(size=rows)
        labels[split] = ((wanted > 0) if binary else wanted).astype(np.float32)
    return Coded(fields, codes, labels)


def network_of(plan, model="dcn", dim=6):
    torch.manual_seed(0)
    return build_network(model, embed(plan), 2, dim)


def shares_of(model, plan, batches, directions=None):
    traffic = count_traffic(torch.cat([codes for codes, _ in batches]).numpy(), plan.slots)
    loss = functional.mse_loss
    return gradient_shares(model, plan, batches, loss, traffic, directions)


def test_gradient_shares_by_hand():
    """Values a0, a1 and b0 in one row, b1 in another; scores of 0: d loss / d score = -2 label / B."""
    plan = Rows(2, 2, (np.array([[0], [0]]), np.array([[0], [1]])))
    weights = np.array([[1.0, 0.0], [3.0, 4.0]])
    model = Linear(embed(plan), 2, 2, weights)
    nn.init.zeros_(model.embedding.table)
    # In the first batch a0 sends -(1, 0), b0 -(3, 4), a1 -2 (1, 0), b1 -2 (3, 4).
    # In the second a0 sends -(1, 0), b1 -(3, 4).
    batches = [
        (torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0])),
        (torch.tensor([[0, 1]]), torch.tensor([0.5])),
    ]
    directions = readout_directions(model, batches[0][0])
    assert directions.tolist() == weights.tolist()
    found = shares_of(model, plan, batches, row_directions(model, plan, directions))
    # a0, seen twice: own 1 + 1, within 4 + 0, between 25 + 0. a1, seen once: 4, 1 + 1 (without a1), 25.
    # b0, seen once: 25, 0, 9 + 1. b1, seen twice, is alone.
    assert found.own == pytest.approx([(2 * 2 + 4) / 31 / 3, (25 / 35 + 2) / 3])
    assert found.within == pytest.approx([(2 * 4 + 2) / 31 / 3, 0])
    assert found.between == pytest.approx([25 / 31, 10 / 35 / 3])
    # The cosine is 0.6: of a gradient of the other feature 0.36 lies along the line.
    assert found.within_aligned == pytest.approx([1, math.nan], nan_ok=True)
    assert found.between_aligned == pytest.approx([0.36, 0.36])
    # In the first row a has 9 + 1 and b 25; b's other row, with two thirds of its traffic, is b's alone.
    assert found.arriving.ravel() == pytest.approx([10 / 35, 25 / 35, 10 / 105, 25 / 105 + 2 / 3])


def own_rows(plan):
    """A plan with a row of its own for each lookup of each value, and where these rows are copied from."""
    sizes = [slots.size for slots in plan.slots]
    starts = np.cumsum([0, *sizes])
    slots = tuple(
        start + np.arange(each.size).reshape(each.shape)
        for start, each in zip(starts[:-1], plan.slots, strict=True)
    )
    return dataclasses.replace(plan, num_rows=sum(sizes), slots=slots), np.concatenate(
        [each.ravel() for each in plan.slots]
    )


def brute_force(model, plan, batches, directions):
    """The definition: every value in every batch, one after the other; energies of places and groups."""
    own_plan, source = own_rows(plan)
    own = copy.deepcopy(model)
    own.embedding = embed(own_plan).double()
    state = model.embedding.state_dict()
    own.embedding.load_state_dict({**state, "table": state["table"][source]})
    firsts = np.cumsum([0, *(slots.shape[1] for slots in plan.slots)])
    holders = {}  # (feature, value, row) -> its lookups' rows in the table of its own, and its first lookup
    for f, slots in enumerate(plan.slots):
        for (value, lookup), row in np.ndenumerate(slots):
            rows, _ = holders.setdefault((f, value, row), ([], firsts[f] + lookup))
            rows.append(own_plan.slots[f][value, lookup])
    energies = {key: np.zeros((3, 2)) for key in holders}
    arrived = {}
    for codes, labels in batches:
        own.zero_grad()
        functional.mse_loss(own(codes), labels).backward()
        table = own.embedding.table.grad.numpy()
        sent = {key: table[rows].sum(0) for key, (rows, _) in holders.items()}
        for (f, value, row), (_, lookup) in holders.items():
            of_row = {key: each for key, each in sent.items() if key[2] == row}
            zero = np.zeros(table.shape[1])
            within = sum((each for key, each in of_row.items() if key[0] == f and key[1] != value), zero)
            between = sum((each for key, each in of_row.items() if key[0] != f), zero)
            for part, each in enumerate((sent[f, value, row], within, between)):
                line = 0 if directions is None else each @ directions[lookup]
                energies[f, value, row][part] += each @ each, line**2
        for row in {key[2] for key in holders}:
            for f in range(len(plan.slots)):
                whole = sum((each for key, each in sent.items() if key[0] == f and key[2] == row), 0)
                arrived[row, f] = arrived.get((row, f), 0) + np.sum(np.square(whole))
    return energies, arrived


def expected_shares(plan, batches, energies, arrived):
    """Average what `brute_force` found over places, weighted by traffic."""
    codes = torch.cat([codes for codes, _ in batches]).numpy()
    features = len(plan.slots)
    sums, along, arriving = np.zeros((features, 3)), np.zeros((features, 3)), np.zeros((features, features))
    weights = np.zeros(features)
    for (f, value, row), energy in energies.items():
        total, traffic = energy[:, 0].sum(), (codes[:, f] == value).sum()
        if total > 0 and traffic:
            weights[f] += traffic
            sums[f] += traffic * energy[:, 0] / total
            along[f] += traffic * energy[:, 1] / total
            parts = np.array([arrived[row, other] for other in range(features)])
            arriving[f] += traffic * parts / parts.sum()
    return sums / weights[:, None], along / weights[:, None], arriving / weights[:, None]


def random_plan(kind, rng):
    """A plan of two features whose values share few rows, some lookups of a value the same."""
    rows, lookups = int(rng.integers(2, 8)), 2 if kind in ("sums", "products") else int(rng.integers(1, 3))
    slots = tuple(rng.integers(rows, size=(size, lookups)) for size in SIZES)
    if kind == "rows":
        return Rows(rows, 6 // lookups, slots)
    if kind == "sums":
        return Sums(rows, 6, slots, 2, tuple(rng.integers(2, size=size) for size in SIZES))
    if kind == "products":
        return Products(rows, 6, slots)
    signs = tuple(rng.choice([-1.0, 1.0], size=each.shape).astype(np.float32) for each in slots)
    fixed = tuple(rng.normal(size=(2 * lookups, 6)).astype(np.float32) for _ in SIZES)
    codes = tuple(rng.normal(size=(size, 6)).astype(np.float32) for size in SIZES)
    return Projected(rows, 2, 6, slots, signs, *((fixed, codes) if kind == "projected" else ()))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["rows", "sums", "products", "projected", "learned"]),
    st.sampled_from(["dcn", "article", "fm"]),
    st.integers(0, 2**16),
)
def test_the_sums_are_those_of_every_value_in_every_batch(kind, name, seed):
    rng = np.random.default_rng(seed)
    plan = random_plan(kind, rng)
    model = network_of(plan, name).double()
    with torch.no_grad():
        for parameter in model.parameters():  # weights of 1 are no test
            parameter.add_(torch.from_numpy(rng.normal(size=parameter.shape)))
    codes = torch.from_numpy(np.stack([rng.integers(size, size=9) for size in SIZES], 1))
    batches = list(zip(codes.split(4), torch.from_numpy(rng.normal(size=9)).split(4), strict=True))
    directions = row_directions(model, plan, readout_directions(model, codes))
    found = shares_of(model, plan, batches, directions)
    sums, along, arriving = expected_shares(plan, batches, *brute_force(model, plan, batches, directions))
    assert np.stack([found.own, found.within, found.between], 1) == pytest.approx(sums, abs=1e-9)
    assert found.own + found.within + found.between == pytest.approx(1)
    assert found.arriving == pytest.approx(arriving, abs=1e-9)
    assert found.arriving.sum(1) == pytest.approx(1)
    if kind == "products":
        assert found.within_aligned is found.between_aligned is found.random_aligned is None
        return
    assert found.random_aligned == 1 / found.width
    for aligned, part in ((found.within_aligned, 1), (found.between_aligned, 2)):
        there = sums[:, part] > 1e-6
        assert (aligned * sums[:, part])[there] == pytest.approx(along[there, part], abs=1e-9)


@pytest.mark.parametrize(
    "plan",
    [
        Rows(2, 6, (np.array([[0], [0], [1]]), np.array([[0], [0], [1], [1], [1]]))),
        Rows(4, 3, (np.array([[0, 2], [0, 3], [1, 3]]), np.array([[0, 2]] * 5))),
        random_plan("sums", np.random.default_rng(3)),
        Projected(
            2,
            2,
            6,
            (np.array([[0]] * 3), np.array([[0], [1], [1], [0], [0]])),
            (np.array([[1.0], [-1.0], [1.0]]), np.array([[-1.0], [1.0], [-1.0], [1.0], [1.0]])),
        ),
    ],
)
def test_a_linear_network_pulls_a_feature_along_one_line(plan):
    """Within a feature all energy lies along the readout, whatever signs and weights do; between, cos^2."""
    torch.manual_seed(0)
    weights = torch.randn(2, 6)
    model = Linear(embed(plan), 2, 6, weights)
    codes = torch.randint(3, (20, 2))
    batches = list(zip(codes.split(8), torch.randn(20).split(8), strict=True))
    directions = readout_directions(model, codes)
    assert directions == pytest.approx(weights.numpy())
    lines = row_directions(model, plan, directions)
    assert np.linalg.norm(lines, axis=1) == pytest.approx(1)
    found = shares_of(model, plan, batches, lines)
    assert found.within_aligned == pytest.approx([1, 1])
    if len(lines) == 2:
        assert found.between_aligned == pytest.approx([(lines[0] @ lines[1]) ** 2] * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("layout", "parts"), [("exact", ("within", "between")), ("per_feature", ("between",))]
)
def test_layouts_that_share_nothing_show_nothing(layout, parts):
    plan = make_plan(layout, FIELDS, 6, FLOATS if layout != "exact" else 10_000)
    found = measure(network_of(plan), plan, coded_of(FIELDS), Setup(dim=6, batch_size=32))
    for part in parts:
        assert getattr(found.gradients, part).tolist() == [0, 0]
    assert found.gradients.arriving == pytest.approx(np.eye(2))
    assert not found.readouts.sharing.any()
    if layout == "exact":
        assert found.gradients.own == pytest.approx([1, 1])
        assert set(found.rows.loads) == {1}
        assert all(kinds["clean"].examples == 300 for kinds in found.collisions.values())
    else:
        assert (found.gradients.within[1]) > 0.1


def test_features_without_gradients_have_no_shares():
    plan = Rows(2, 2, (np.array([[0], [0]]), np.array([[1], [1]])))
    model = Linear(embed(plan), 2, 2, [[1.0, 0.0], [0.0, 0.0]])
    batches = [(torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]))]
    found = shares_of(
        model, plan, batches, row_directions(model, plan, readout_directions(model, batches[0][0]))
    )
    assert found.to_dict() == {
        "own": [pytest.approx(0.5), None],
        "within": [pytest.approx(0.5), None],
        "between": [0, None],
        "arriving": [[1, 0], [None, None]],
        "within_aligned": [pytest.approx(1), None],
        "between_aligned": [None, None],
        "random_aligned": 0.5,
    }


def test_readouts_of_a_network_are_its_mean_slopes():
    """Against central differences: the score's change along each float of an embedding."""
    plan = Rows(8, 6, (np.array([[0], [1], [2]]), np.array([[3], [4], [5], [6], [7]])))
    model = network_of(plan).double()
    codes = torch.tensor([[0, 0], [1, 3], [2, 4], [0, 3]])
    table, step = model.embedding.table, 1e-6
    expected = np.zeros((2, 6))
    with torch.no_grad():
        for feature, rows in ((0, slice(0, 3)), (1, slice(3, 8))):
            for column in range(6):
                table[rows, column] += step
                above = model(codes).mean()
                table[rows, column] -= 2 * step
                expected[feature, column] = (above - model(codes).mean()) / (2 * step)
                table[rows, column] += step
    assert readout_directions(model, codes) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_angles_between_lines():
    directions = np.array([[2.0, 0.0], [0.1, 0.0], [-3.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    sharing = np.zeros((6, 6), dtype=bool)
    sharing[0, 3] = sharing[3, 0] = sharing[4, 5] = sharing[5, 4] = True
    found = Readouts(directions, sharing)
    assert found.degrees[0, :5] == pytest.approx([0, 0, 0, 90, 45], abs=1e-6)
    assert np.isnan(found.degrees[5]).all()
    assert found.pairs(sharing=True) == pytest.approx([90])
    assert len(found.pairs(sharing=False)) == 9  # of 10 defined pairs
    assert found.to_dict()["degrees"][0][5] is None
    assert found.to_dict()["pairs"]["sharing"] == {"pairs": 1, "mean": pytest.approx(90)}
    assert Readouts(directions[:1], sharing[:1, :1]).to_dict()["pairs"]["apart"] == {"pairs": 0, "mean": None}


def test_random_lines():
    assert random_degrees(1) == (0, 0)
    assert random_degrees(2) == pytest.approx((45, 90 / math.sqrt(12)))  # uniform
    assert random_degrees(3)[0] == pytest.approx(math.degrees(1), rel=1e-6)  # integral of x sin x
    one, other = np.random.default_rng(0).normal(size=(2, 20_000, 30))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    drawn = np.degrees(np.arccos(np.abs(cosines)))
    assert random_degrees(30) == pytest.approx((drawn.mean(), drawn.std()), abs=0.2)


def test_rows_by_load():
    loads = np.array([0, 1, 1, 3, 4, 7, 8, 15, 16])
    rows = RowLoads(np.arange(9.0), loads, 10 * loads)
    assert [
        (each["load"], each["rows"], each["mean_norm"], each["mean_traffic"]) for each in rows.to_list()
    ] == [
        ("0", 1, 0, 0),
        ("1", 2, 1.5, 10),
        ("3", 1, 3, 30),
        ("4-7", 2, 4.5, 55),
        ("8-15", 2, 6.5, 115),
        ("16-31", 1, 8, 160),
    ]
    assert [load for load, _ in RowLoads(np.ones(2), np.array([0, 3]), loads[:2]).classes()] == ["0", "3"]


def test_norms_loads_and_traffic_of_rows():
    """Two lookups of a value may lead to one row, which then holds the value once."""
    fields = (Field("a", ("x", "y")), Field("b", ("z",)))
    plan = Sums(3, 2, (np.array([[0, 0], [0, 1]]), np.array([[1, 1]])))
    coded = coded_of(fields, rows=10)
    coded.codes["train"][:, 0] = [0] * 7 + [1] * 3
    model = network_of(plan, dim=2)
    with torch.no_grad():
        model.embedding.table.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]))
    rows = measure(model, plan, coded, Setup(dim=2)).rows
    assert rows.norms.tolist() == [5, 1, 0]
    assert rows.loads.tolist() == [2, 2, 0]
    assert rows.traffic.tolist() == [10, 13, 0]


def test_kinds_of_values():
    # x shares a row with y, of its feature, and with z; w only with v, of the other feature; u with nobody.
    plan = Rows(6, 1, (np.array([[0, 1], [1, 2], [3, 3], [4, 4]]), np.array([[0, 0], [5, 3]])))
    assert value_collisions(find_places(plan)).tolist() == [1, 1, 2, 0, 2, 2]


def test_metrics_of_kinds_by_hand():
    fields = (Field("a", ("x", "y", "z")), Field("b", ("w",)))
    plan = Rows(3, 1, (np.array([[0], [0], [1]]), np.array([[2]])))
    model = Linear(embed(plan), 2, 1, [[1.0], [0.0]])
    with torch.no_grad():
        model.embedding.table.copy_(torch.tensor([[2.0], [-1.0], [0.0]]))
    codes = np.array([[0, 0], [1, 0], [2, 0], [2, 0]], dtype=np.int32)
    coded = Coded(fields, {"test": codes}, {"test": np.array([1, 0, 0, 0], dtype=np.float32)})
    a, b = collision_scores(model, coded, BINARY, find_places(plan))
    within = (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2  # both score 2, one is positive
    assert a["within"].to_dict() == {
        "values": 2,
        "examples": 2,
        "log_loss": pytest.approx(within),
        "auc": 0.5,
    }
    assert a["clean"].to_dict() == {
        "values": 1,
        "examples": 2,
        "log_loss": pytest.approx(math.log1p(math.exp(-1))),
        "auc": None,
        "undefined": {"auc": "all 2 labels are 0"},
    }
    assert a["between"] == CollisionScores(0, 0, None)
    assert a["between"].to_dict() == {"values": 0, "examples": 0}
    assert (b["clean"].values, b["clean"].examples) == (1, 4)


@pytest.mark.parametrize("layout", ["unified", "unified_narrow", "hash_embedding", "quotient_remainder"])
def test_measuring_leaves_everything_as_it_was(layout):
    plan = make_plan(layout, FIELDS, 6, FLOATS)
    model, coded = network_of(plan), coded_of(FIELDS)
    codes = torch.from_numpy(coded.codes["train"])
    model(codes).sum().backward()
    first = next(iter(model.parameters()))
    first.grad = None
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each is not first}
    scores, random = model(codes), torch.get_rng_state()
    with torch.no_grad():
        one = measure(model, plan, coded, Setup(dim=6, batch_size=32))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[name], each) for name, each in before.items())
    assert first.grad is None
    assert all(torch.equal(model.get_parameter(name).grad, each) for name, each in gradients.items())
    assert torch.equal(model(codes), scores)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.embedding._forward_hooks
    assert measure(model, plan, coded, Setup(dim=6, batch_size=32)).to_dict() == one.to_dict()


@pytest.mark.parametrize("layout", ["robe", "hashed_net", "tensor_train", "dhe"])
def test_other_plans_cannot_be_measured(layout):
    plan = make_plan(layout, FIELDS, 6, 20 * 6)
    assert not is_measurable(plan)
    assert measure(network_of(plan), plan, coded_of(FIELDS), Setup(dim=6)) is None


@pytest.mark.parametrize("layout", ["unified", "unified_narrow", "exact", "double", "quotient_remainder"])
@pytest.mark.parametrize("binary", [True, False])
def test_measures_are_plain_and_drawn(layout, binary):
    plan = make_plan(layout, FIELDS, 6, 10_000 if layout == "exact" else FLOATS)
    setup = Setup(Label("rating", 4.0) if binary else Label("rating"), dim=6, batch_size=64)
    found = measure(network_of(plan), plan, coded_of(FIELDS, binary=binary), setup)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain == found.to_dict()
    assert ("log_loss" if binary else "rmse") in next(
        kind for kind in plain["collisions"]["id"].values() if kind["examples"]
    )
    drawn = figures(found)
    assert list(drawn) == ["gradient_shares", "readout_angles", "norms_and_load", "collided_and_clean"]
    is_aligned = layout not in ("unified_narrow", "quotient_remainder")
    assert len(drawn["gradient_shares"].axes) == (3 if is_aligned else 2)
    for figure in drawn.values():
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=30)
        assert buffer.getvalue().startswith(b"\x89PNG")
    bars = drawn["gradient_shares"].axes[0].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(2)  # one of each feature
