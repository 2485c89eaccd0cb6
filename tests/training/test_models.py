import pytest
import torch
from torch.nn import functional

from featurestore.spec import load_spec
from training.embeddings import UnifiedEmbedding
from training.models import ArticleMLP
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


def test_a_slot_outside_the_table_is_an_error():
    with pytest.raises(IndexError):
        UnifiedEmbedding(num_slots=3, dim=1)(torch.tensor([[3]]))


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


def test_every_parameter_gets_a_gradient():
    spec = load_spec("article")
    model = ArticleMLP(spec)
    slots = torch.randint(1000, (4096, 7), generator=torch.Generator().manual_seed(0))
    model(slots).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert (model.embedding.weight.grad.abs().sum(1) > 0).all()  # 28,672 lookups reach all 1,000 rows


def test_it_overfits_32_rows(tiny):
    batch = next(iter(SplitStream(tiny, "train", 32, shuffle=True).epoch(0)))
    torch.manual_seed(0)
    model = ArticleMLP(tiny.spec, bias=3.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(batch.slots), batch.labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
