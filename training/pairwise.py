"""Networks that multiply each field of an embedding with each other: FM, DeepFM and DLRM."""

from collections.abc import Sequence

import torch
from torch import nn

from training.networks import Network, output_layer, perceptron


def factorized(fields: torch.Tensor) -> torch.Tensor:
    """Add up the products of all pairs of fields, in time linear in their number.

        sum over i < j of <fields[b, i], fields[b, j]>
            = 1/2 * sum over f of ((sum over i of fields[b, i, f])^2 - sum over i of fields[b, i, f]^2)

    Lemma 3.1, S. Rendle, "Factorization Machines", ICDM 2010, where every x_i is 0 or 1: the fields are the
    vectors v_i of the values that an example has.

    Shapes:
        fields: float (B, F, D).
        result: float (B,).
    """
    square_of_sum, sum_of_squares = fields.sum(1).square(), fields.square().sum(1)  # both (B, D)
    return 0.5 * (square_of_sum - sum_of_squares).sum(1)


class PairwiseDots(nn.Module):
    """The product of every pair of fields, a number each.

        output[b] = <fields[b, 0], fields[b, 1]>, <fields[b, 0], fields[b, 2]>, ..., <.., fields[b, F - 1]>

    Args:
        fields: F.

    Shapes:
        fields: float (B, F, D).
        output: float (B, F * (F - 1) / 2), pairs i < j in the order of i, then j.
    """

    def __init__(self, fields: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(fields, fields, offset=1)
        self.pairs: torch.Tensor  # of all F * F products those above the diagonal
        self.register_buffer("pairs", first * fields + second, persistent=False)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """Multiply all with all and keep each pair once: (B, F, D) -> (B, F * (F - 1) / 2)."""
        products = torch.bmm(fields, fields.transpose(1, 2))  # (B, F, F)
        # With its backward a third less on a CPU than indexing by two tensors, for 8 fields and for 30.
        return products.flatten(1).index_select(1, self.pairs)


class FM(Network):
    """Factorization machine of degree 2.

        score = linear_FD_1(embedding(inputs)) + sum over i < j of <v_i, v_j>,
        v = embedding(inputs) as (F, D)

    Eq. 1 of the paper named at `factorized`: w_0 + sum over i of w_i + the pairs. The paper learns a number
    w_i for each value beside its vector v_i. Here it is made of the vector, so that there is one table only:
    the part of the linear layer's weight that meets field l, a_l, gives w_i = <a_l, v_i>. That is a linear
    model over the embedding; a vector of D floats has to serve w_i and the pairs. w_0 is the layer's bias.

    Where rows are concatenated each lookup is a field, so that two lookups of one feature are a pair as well.

    Args:
        embedding, fields, dim: as in `Network`.
        bias: w_0 at first: the score where nothing else is known.
    """

    def __init__(self, embedding: nn.Module, fields: int, dim: int, bias: float = 0.0) -> None:
        super().__init__(embedding, fields, dim)
        self.first_order = output_layer(self.width, bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Score examples: of slots, int (B, F) -> float32 (B,)."""
        x = self.embed(inputs)  # (B, F * D)
        first_order: torch.Tensor = self.first_order(x).squeeze(1)  # (B,)
        return first_order + factorized(self.split(x))


class DeepFM(Network):
    """A factorization machine and a deep network that share their embedding.

        score = fm + deep
        fm    = linear_FD_1(x) + sum over i < j of <v_i, v_j>, x = embedding(inputs), v = x as (F, D)
        deep  = linear_deep_1(relu(linear_FD_deep(x)))

    Eq. 1 to 4, H. Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction",
    IJCAI 2017. The sigmoid of Eq. 1 is left to the objective: the score is a rating or a logit. The deep
    part's output has no activation of its own, which would bound what it can add. The linear part of ``fm``
    is that of `FM`, made of the embedding; it has no bias, as in Eq. 2, the deep part's output has.

    Args:
        embedding, fields, dim: as in `Network`.
        bias: the deep output's bias at first: the score where nothing else is known.
        deep: widths of the deep layers.
    """

    sizes = ("deep",)

    def __init__(
        self, embedding: nn.Module, fields: int, dim: int, bias: float = 0.0, *, deep: Sequence[int] = (192,)
    ) -> None:
        super().__init__(embedding, fields, dim)
        self.first_order = nn.Linear(self.width, 1, bias=False)
        self.layers = perceptron(self.width, deep, bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Score examples: of slots, int (B, F) -> float32 (B,)."""
        x = self.embed(inputs)  # (B, F * D)
        linear: torch.Tensor = (self.first_order(x) + self.layers(x)).squeeze(1)  # (B, 1) -> (B,)
        return linear + factorized(self.split(x))


class DLRM(Network):
    """Deep Learning Recommendation Model, for examples that have no dense features.

        score = linear_deep_1(relu(linear_deep(concat(x, dots(v))))), x = embedding(inputs), v = x as (F, D)

    M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
    arXiv 1906.00091, 2019. The paper's top network takes the products of all pairs and, beside them, the
    dense features as the bottom network made them. There are no dense features here and so no bottom
    network; the embedding itself takes that place. With the products alone nothing could be said of one field
    by itself, as that a movie is liked by all, and in a table that starts small they start near zero, as do
    their gradients.

    Args:
        embedding, fields, dim: as in `Network`.
        bias: the output's bias at first: the score where nothing else is known.
        deep: widths of the top network's layers.
    """

    sizes = ("deep",)

    def __init__(
        self, embedding: nn.Module, fields: int, dim: int, bias: float = 0.0, *, deep: Sequence[int] = (192,)
    ) -> None:
        super().__init__(embedding, fields, dim)
        self.dots = PairwiseDots(fields)
        self.layers = perceptron(self.width + fields * (fields - 1) // 2, deep, bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Score examples: of slots, int (B, F) -> float32 (B,)."""
        x = self.embed(inputs)  # (B, F * D)
        top = torch.cat([x, self.dots(self.split(x))], dim=1)  # (B, F * D + F * (F - 1) / 2)
        score: torch.Tensor = self.layers(top).squeeze(1)  # (B, 1) -> (B,)
        return score
