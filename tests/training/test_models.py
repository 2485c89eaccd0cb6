import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from featurestore.spec import load_spec
from training.embeddings import UnifiedEmbedding
from training.models import MODELS, build_model, build_network
from training.networks import CrossLayer
from training.stream import SplitStream


def test_unified_embedding_concatenates_the_rows_of_its_slots():
    table = UnifiedEmbedding(num_slots=4, dim=2)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0], [30.0, 31.0]]))
    slots = torch.tensor([[3, 0, 3], [1, 2, 0]], dtype=torch.int32)
    expected = [[30.0, 31.0, 0.0, 1.0, 30.0, 31.0], [10.0, 11.0, 20.0, 21.0, 0.0, 1.0]]
    assert table(slots).tolist() == expected
    assert table(slots.long()).tolist() == expected


def test_a_row_that_two_lookups_share_gets_the_sum_of_their_gradients():
    table = UnifiedEmbedding(num_slots=3, dim=1)
    weights = torch.tensor([[2.0, 5.0]])
    (table(torch.tensor([[1, 1]])) * weights).sum().backward()
    assert table.weight.grad.tolist() == [[0.0], [7.0], [0.0]]


def test_the_table_starts_with_the_spread_asked_for():
    torch.manual_seed(0)
    assert UnifiedEmbedding(1000, 10, std=0.5).weight.std().item() == pytest.approx(0.5, rel=0.05)


def test_the_articles_network_by_hand():
    model = build_model("article", load_spec("article"), bias=3.5)
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [
        (1000, 10),
        (64, 70),
        (64,),
        (1, 64),
        (1,),
    ]
    slots = torch.randint(1000, (5, 7))
    first, _, second = model.layers
    rows = model.embedding.weight[slots].reshape(5, 70)
    expected = functional.relu(rows @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert torch.allclose(model(slots), expected.squeeze(1))
    assert second.bias.tolist() == [3.5]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    model = build_model(name, load_spec("article"))
    slots = torch.randint(1000, (4096, 7), generator=torch.Generator().manual_seed(0))
    model(slots).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert (model.embedding.weight.grad.abs().sum(1) > 0).all()  # 28,672 lookups reach all 1,000 rows


@pytest.mark.parametrize("name", MODELS)
def test_it_overfits_32_rows(name, tiny):
    batch = next(iter(SplitStream(tiny, "train", 32, shuffle=True).epoch(0)))
    torch.manual_seed(0)
    model = build_model(name, tiny.spec, bias=3.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(batch.slots), batch.labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_a_seed_gives_the_table_then_the_output_then_the_hidden_layer():
    """In the order they always had, so that a seed goes on giving the same training."""
    torch.manual_seed(0)
    model = build_model("article", load_spec("article"))
    torch.manual_seed(0)
    table, output, hidden = UnifiedEmbedding(1000, 10, std=0.01), nn.Linear(64, 1), nn.Linear(70, 64)
    assert torch.equal(model.embedding.weight, table.weight)
    assert torch.equal(model.layers[2].weight, output.weight)
    assert torch.equal(model.layers[0].weight, hidden.weight)


def test_a_cross_layer_by_hand():
    layer = CrossLayer(2)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.linear.bias.copy_(torch.tensor([0.5, -1.0]))
    x0, x = torch.tensor([[2.0, 10.0]]), torch.tensor([[1.0, -1.0]])
    # W x + b = (1 - 2 + 0.5, 3 - 4 - 1) = (-0.5, -2); times x0 = (-1, -20); plus x = (0, -21)
    assert layer(x0, x).tolist() == [[0.0, -21.0]]


def test_dcn_by_hand():
    table = UnifiedEmbedding(1000, 10)
    model = build_network("dcn", table, 7, 10, bias=3.5, cross=2, deep=(5, 3))
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [
        (1000, 10),
        *[(70, 70), (70,)] * 2,
        *[(5, 70), (5,), (3, 5), (3,), (1, 3), (1,)],
    ]
    slots = torch.randint(1000, (5, 7))
    x0 = model.embedding.weight[slots].reshape(5, 70)
    first, second = (layer.linear for layer in model.cross)
    x1 = x0 * (x0 @ first.weight.T + first.bias) + x0
    x2 = x0 * (x1 @ second.weight.T + second.bias) + x1
    one, two, out = (layer for layer in model.layers if isinstance(layer, nn.Linear))
    hidden = functional.relu(x2 @ one.weight.T + one.bias)
    hidden = functional.relu(hidden @ two.weight.T + two.bias)
    expected = hidden @ out.weight.T + out.bias
    assert torch.allclose(model(slots), expected.squeeze(1))
    assert out.bias.tolist() == [3.5]


def test_dcns_default_is_one_cross_layer_and_one_deep_layer_of_192():
    model = build_model("dcn", load_spec("article"))
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(1000, 10), (70, 70), (70,), (192, 70), (192,), (1, 192), (1,)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_by_name(name):
    model = build_model(
        name, load_spec("article"), bias=2.5, table=functools.partial(UnifiedEmbedding, sparse=True)
    )
    assert type(model) is MODELS[name]
    assert isinstance(model.embedding, UnifiedEmbedding)
    (bias,) = (parameter for parameter in model.parameters() if parameter.shape == (1,))
    assert bias.tolist() == [2.5]
    model(torch.zeros(4, 7, dtype=torch.int32)).sum().backward()
    assert model.embedding.weight.grad.is_sparse


class Places(nn.Module):
    """An embedding of something else than slots: two fields of width 3 from a place on a map."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 6)

    def forward(self, places):
        return self.linear(places)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_takes_any_embedding_and_what_that_takes(name):
    model = build_network(name, Places(), fields=2, dim=3, bias=2.5)
    assert type(model) is MODELS[name]
    scores = model(torch.randn(5, 2))
    assert scores.shape == (5,)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model(torch.empty(0, 2)).shape == (0,)


def test_the_article_scores_an_embedding_like_the_same_table():
    table = UnifiedEmbedding(20, 3)
    model = build_network("article", table, fields=4, dim=3)
    other = build_network("article", nn.Sequential(nn.Embedding(20, 3), nn.Flatten()), fields=4, dim=3)
    other.load_state_dict(
        {name.replace("embedding.", "embedding.0."): weight for name, weight in model.state_dict().items()}
    )
    slots = torch.randint(20, (6, 4))
    assert torch.equal(model(slots), other(slots))


@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_of_another_width_is_refused(name):
    model = build_network(name, Places(), fields=2, dim=4)
    with pytest.raises(ValueError, match=r"gives \(5, 6\), the network takes \(B, 8\): 2 fields of 4"):
        model(torch.randn(5, 2))
    model = build_network(name, nn.Embedding(20, 3), fields=2, dim=3)
    with pytest.raises(ValueError, match=r"gives \(5, 2, 3\), the network takes \(B, 6\)"):
        model(torch.randint(20, (5, 2)))


@pytest.mark.parametrize(("fields", "dim"), [(0, 3), (2, 0), (-1, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_nothing_is_refused(name, fields, dim):
    with pytest.raises(ValueError, match="at least one field and one dim"):
        build_network(name, Places(), fields, dim)


def test_an_unknown_model_is_named_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"no model 'artikle' \(did you mean 'article'\?\)"):
        build_model("artikle", load_spec("article"))
    with pytest.raises(ValueError, match="no model 'artikle'"):
        build_network("artikle", Places(), fields=2, dim=3)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_saved_and_loaded_scores_the_same(name, tmp_path):
    spec, slots = load_spec("article"), torch.randint(1000, (50, 7))
    model = build_model(name, spec, bias=3.5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = build_model(name, spec)
    loaded.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(loaded(slots), model(slots))
