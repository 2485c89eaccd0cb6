"""Networks over an embedding: what it takes -> one number an example (B,)."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from training.combiners import Combiner, Concatenation
from training.embeddings import SlotEmbedding


class Network(nn.Module):
    """What the networks have in common: an embedding of some fields, each of one width.

    A field is what there is one vector for: of the shared table a lookup or, where a `SignedProjection` is
    its ``combiner``, a feature.

    Args:
        embedding: from any input of B examples to what ``combiner`` makes float32 (B, fields * dim) of, field
            0 first. It is a `Concatenation` unless another is set.
        fields: F, vectors of an example.
        dim: D, floats of a vector.

    Raises:
        ValueError: no fields, or no dim.
    """

    sizes: ClassVar[tuple[str, ...]] = ()
    """What of ``cross`` and ``deep`` the network has a use for, see `training.models.build_network`."""

    def __init__(self, embedding: nn.Module, fields: int, dim: int) -> None:
        super().__init__()
        if fields < 1 or dim < 1:
            raise ValueError(f"a network needs at least one field and one dim, got {fields} and {dim}")
        self.embedding = embedding
        self.combiner: Combiner = Concatenation()
        self.fields, self.dim, self.width = fields, dim, fields * dim

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the embedding of the inputs, (B, F * D).

        Raises:
            ValueError: it has another width.
        """
        embedded: torch.Tensor = self.combiner(self.embedding, inputs)
        if embedded.dim() != 2 or embedded.shape[1] != self.width:  # (B, F * D)
            raise ValueError(
                f"the embedding gives {tuple(embedded.shape)}, the network takes (B, {self.width}):"
                f" {self.fields} fields of {self.dim}"
            )
        return embedded

    def project(self, inputs: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        """Return ``layer(self.embed(inputs))``, (B, H), by the embedding's own road where there is one."""
        if self.combiner.keeps_rows and isinstance(self.embedding, SlotEmbedding):
            return self.embedding.project(inputs, layer)
        projected: torch.Tensor = layer(self.embed(inputs))
        return projected

    def split(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return the vectors of the fields: (B, F * D) -> (B, F, D)."""
        return embedded.view(-1, self.fields, self.dim)


class ArticleMLP(Network):
    """The network of Mario Filho's article "Unified Embeddings in PyTorch".

        score = linear_64_1(relu(linear_FD_64(embedding(inputs))))

    The score is a rating or, where the spec's label is binary, a logit. Its initial weights are PyTorch's,
    but that the output's bias starts at ``bias``, the mean label: from zero, the mean would be learned into
    the rows of the users and movies trained on, and be missing from the predictions for all others. For what
    that and the small initial table are worth, see `training.models.build_model`.

    Args:
        embedding, fields, dim: as in `Network`.
        bias: the output's bias at first: the score where nothing else is known.
        hidden: width of the hidden layer.
    """

    def __init__(
        self, embedding: nn.Module, fields: int, dim: int, bias: float = 0.0, *, hidden: int = 64
    ) -> None:
        super().__init__(embedding, fields, dim)
        output = output_layer(hidden, bias)  # before the hidden layer: a seed goes on giving what it gave
        self.layers = nn.Sequential(nn.Linear(self.width, hidden), nn.ReLU(), output)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Score examples: of slots, int (B, F) -> float32 (B,)."""
        first, rest = self.layers[0], self.layers[1:]
        assert isinstance(first, nn.Linear)
        hidden = self.project(inputs, first)  # (B, hidden)
        score: torch.Tensor = rest(hidden)  # (B, hidden) -> (B, 1)
        return score.squeeze(1)


class CrossLayer(nn.Module):
    """One full-rank cross layer of DCN-V2.

        output = x0 * linear(x) + x

    Eq. 1, R. Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning
    to Rank Systems", WWW 2021.

    Shapes:
        x0, x, output: float32 (B, width); x0 is what the first cross layer got.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Cross the input with what the layers so far made of it."""
        crossed: torch.Tensor = x0 * self.linear(x) + x
        return crossed


class DCNv2(Network):
    """Deep & Cross Network V2 in the paper's stacked structure: the cross layers feed the deep ones.

        score = linear_deep_1(relu(linear_FD_deep(cross(... cross(x0, x0))))), x0 = embedding(inputs)

    The paper is named at `CrossLayer`. The score and the output's bias are as in `ArticleMLP`.

    Args:
        embedding, fields, dim: as in `Network`.
        bias: the output's bias at first: the score where nothing else is known.
        cross: number of cross layers, each with a weight of (F * D, F * D).
        deep: widths of the deep layers.
    """

    sizes = ("cross", "deep")

    def __init__(
        self,
        embedding: nn.Module,
        fields: int,
        dim: int,
        bias: float = 0.0,
        *,
        cross: int = 1,
        deep: Sequence[int] = (192,),
    ) -> None:
        super().__init__(embedding, fields, dim)
        self.cross = nn.ModuleList(CrossLayer(self.width) for _ in range(cross))
        self.layers = perceptron(self.width, deep, bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Score examples: of slots, int (B, F) -> float32 (B,)."""
        x0 = x = self.embed(inputs)  # (B, F * D)
        for layer in self.cross:
            x = layer(x0, x)
        score: torch.Tensor = self.layers(x).squeeze(1)  # (B, F * D) -> (B, 1) -> (B,)
        return score


def perceptron(width: int, hidden: Sequence[int], bias: float) -> nn.Sequential:
    """Return hidden layers, each with a ReLU, and an output layer: (B, width) -> (B, 1)."""
    widths = [width, *hidden]
    layers = [(nn.Linear(one, next_), nn.ReLU()) for one, next_ in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain.from_iterable(layers), output_layer(widths[-1], bias))


def output_layer(width: int, bias: float) -> nn.Linear:
    """Return the layer that makes one number, starting at ``bias``."""
    layer = nn.Linear(width, 1)
    nn.init.constant_(layer.bias, bias)
    return layer
