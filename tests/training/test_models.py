import pytest
import torch
from torch import nn
from torch.nn import functional

from featurestore.spec import load_spec
from training.embeddings import UnifiedEmbedding
from training.models import MODELS, ArticleMLP, CrossLayer, DCNv2, build_model
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
    spec = load_spec("article")
    model = ArticleMLP(spec, bias=3.5)
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


@pytest.mark.parametrize("network", MODELS.values())
def test_every_parameter_gets_a_gradient(network):
    model = network(load_spec("article"))
    slots = torch.randint(1000, (4096, 7), generator=torch.Generator().manual_seed(0))
    model(slots).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert (model.embedding.weight.grad.abs().sum(1) > 0).all()  # 28,672 lookups reach all 1,000 rows


@pytest.mark.parametrize("network", MODELS.values())
def test_it_overfits_32_rows(network, tiny):
    batch = next(iter(SplitStream(tiny, "train", 32, shuffle=True).epoch(0)))
    torch.manual_seed(0)
    model = network(tiny.spec, bias=3.5)
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
    model = ArticleMLP(load_spec("article"))
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
    spec = load_spec("article")
    model = DCNv2(spec, bias=3.5, cross=2, deep=(5, 3))
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
    shapes = [tuple(parameter.shape) for parameter in DCNv2(load_spec("article")).parameters()]
    assert shapes == [(1000, 10), (70, 70), (70,), (192, 70), (192,), (1, 192), (1,)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_by_name(name):
    model = build_model(name, load_spec("article"), bias=2.5, sparse=True)
    assert type(model) is MODELS[name]
    assert isinstance(model.embedding, UnifiedEmbedding)
    assert model.layers[-1].bias.tolist() == [2.5]
    model(torch.zeros(4, 7, dtype=torch.int32)).sum().backward()
    assert model.embedding.weight.grad.is_sparse


def test_an_unknown_model_is_named_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"no model 'artikle' \(did you mean 'article'\?\)"):
        build_model("artikle", load_spec("article"))
