"""The embeddings of `featurestore.plans`: codes (B, F) of values -> float32 (B, F * D).

Each module holds one plan. Its parameters are the plan's floats and nothing else; what hashes decide lies in
buffers. Parameters start uniform in +-``scale`` unless the class says otherwise.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from featurestore.plans import DeepHash, Elements, Plan, Products, Projected, Rows, Sums, TensorTrain
from training.embeddings import SlotEmbedding, look_up

SCALE = 0.05
"""Of initial parameters, unless told otherwise."""


class LayoutEmbedding(SlotEmbedding):
    """Base: codes, int (B, F), each the number of a value within its feature, -> float32 (B, F * D)."""

    def _keep(self, name: str, parts: Sequence[npt.NDArray[Any]]) -> None:
        """Hold an array a feature, (V_f, ...), in buffers that no checkpoint keeps."""
        for feature, part in enumerate(parts):
            whole = np.issubdtype(part.dtype, np.integer)
            tensor = torch.from_numpy(part.astype(np.int64 if whole else np.float32))
            self.register_buffer(f"{name}_{feature}", tensor, persistent=False)

    def _of(self, name: str, codes: torch.Tensor) -> list[torch.Tensor]:
        """Return each feature's entries for a batch: F tensors (B, ...)."""
        return [self.get_buffer(f"{name}_{feature}")[codes[:, feature]] for feature in range(codes.shape[1])]


def _uniform(*shape: int, scale: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).uniform_(-scale, scale))


class RowsEmbedding(LayoutEmbedding):
    """`Rows`: concatenated rows of ``table`` (num_rows, width)."""

    def __init__(self, plan: Rows, scale: float) -> None:
        super().__init__()
        self.table = _uniform(plan.num_rows, plan.width, scale=scale)
        self._keep("slots", plan.slots)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Look up and concatenate."""
        slots = torch.cat(self._of("slots", codes), 1)  # (B, F * k)
        return look_up(self.table, slots).flatten(1)


class ProjectedEmbedding(LayoutEmbedding):
    """`Projected`: rows of ``table`` (num_rows, width), times the feature's projection, and its code.

    Learned projections (k_f * width, D) start uniform in +-1 / sqrt(k_f * width).
    """

    def __init__(self, plan: Projected, scale: float) -> None:
        super().__init__()
        self.table = _uniform(plan.num_rows, plan.width, scale=scale)
        self._keep("slots", plan.slots)
        self.has_signs, self.is_learned = plan.signs is not None, plan.projections is None
        if plan.signs is not None:
            self._keep("signs", plan.signs)
        self.has_codes = plan.codes is not None
        if plan.codes is not None:
            self._keep("code", plan.codes)
        inputs = [slots.shape[1] * plan.width for slots in plan.slots]
        if plan.projections is None:
            made = [_uniform(size, plan.dim, scale=1 / math.sqrt(size)) for size in inputs]
            self.projections = nn.ParameterList(made)
        else:
            self._keep("projection", plan.projections)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Look up, sign, concatenate and project, feature by feature, and add the codes."""
        slots = self._of("slots", codes)
        rows = look_up(self.table, torch.cat(slots, 1))  # (B, sum of k_f, width)
        if self.has_signs:
            rows = rows * torch.cat(self._of("signs", codes), 1)[:, :, None]
        parts = torch.split(rows, [each.shape[1] for each in slots], 1)
        embedded = torch.cat([part.flatten(1) @ self._projection(f) for f, part in enumerate(parts)], 1)
        return embedded + torch.cat(self._of("code", codes), 1) if self.has_codes else embedded

    def _projection(self, feature: int) -> torch.Tensor:
        if self.is_learned:
            learned: torch.Tensor = self.projections[feature]
            return learned
        return self.get_buffer(f"projection_{feature}")


class SumsEmbedding(LayoutEmbedding):
    """`Sums`: rows of ``table`` (num_rows, D), added up; ``weights`` (num_weights, k) start at 1."""

    def __init__(self, plan: Sums, scale: float) -> None:
        super().__init__()
        self.table = _uniform(plan.num_rows, plan.dim, scale=scale)
        self._keep("slots", plan.slots)
        self.weights = None
        if plan.weight_slots is not None:
            self.weights = nn.Parameter(torch.ones(plan.num_weights, plan.slots[0].shape[1]))
            self._keep("weight_slots", plan.weight_slots)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Look up and add."""
        rows = look_up(self.table, torch.stack(self._of("slots", codes), 1))  # (B, F, k, D)
        if self.weights is not None:
            weights = look_up(self.weights, torch.stack(self._of("weight_slots", codes), 1))  # (B, F, k)
            rows = rows * weights[:, :, :, None]
        return rows.sum(2).flatten(1)


class ProductsEmbedding(LayoutEmbedding):
    """`Products`: two rows of ``table`` (num_rows, D), multiplied; those of quotients start around 1."""

    def __init__(self, plan: Products, scale: float) -> None:
        super().__init__()
        self.table = _uniform(plan.num_rows, plan.dim, scale=scale)
        quotients = np.unique(np.concatenate([slots[:, 1] for slots in plan.slots]))
        with torch.no_grad():
            self.table[torch.from_numpy(quotients)] += 1
        self._keep("slots", plan.slots)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Look up and multiply."""
        rows = look_up(self.table, torch.stack(self._of("slots", codes), 1))  # (B, F, 2, D)
        return (rows[:, :, 0] * rows[:, :, 1]).flatten(1)


class ElementsEmbedding(LayoutEmbedding):
    """`Elements`: single floats of ``array`` (P, 1)."""

    def __init__(self, plan: Elements, scale: float) -> None:
        super().__init__()
        self.array = _uniform(plan.floats, 1, scale=scale)
        self._keep("places", plan.places)
        self.has_signs = plan.signs is not None
        if plan.signs is not None:
            self._keep("signs", plan.signs)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Pick, and sign."""
        values = look_up(self.array, torch.cat(self._of("places", codes), 1)).squeeze(2)  # (B, F * D)
        return values * torch.cat(self._of("signs", codes), 1) if self.has_signs else values


class TensorTrainEmbedding(LayoutEmbedding):
    """`TensorTrain`: cores (n1, d1 R1), (n2, R1 d2 R2) and (n3, R2 d3).

    They start normal, with the deviation that gives the table's elements that of uniform +-``scale``.
    """

    def __init__(self, plan: TensorTrain, scale: float) -> None:
        super().__init__()
        self.plan = plan
        (n1, n2, n3), (d1, d2, d3), (r1, r2) = plan.rows, plan.columns, plan.ranks
        deviation = (scale / math.sqrt(3) / math.sqrt(r1 * r2)) ** (1 / 3)
        shapes = [(n1, d1 * r1), (n2, r1 * d2 * r2), (n3, r2 * d3)]
        self.cores = nn.ParameterList(torch.empty(shape).normal_(std=deviation) for shape in shapes)
        self._keep("slots", plan.slots)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Multiply the cores' slices."""
        (_, n2, n3), (d1, d2, d3), (r1, r2) = self.plan.rows, self.plan.columns, self.plan.ranks
        every = torch.stack(self._of("slots", codes), 1)
        slots, places = torch.unique(every, return_inverse=True)  # (N,): each value of the batch once
        first = look_up(self.cores[0], slots // (n2 * n3)).view(-1, d1, r1)
        second = look_up(self.cores[1], slots // n3 % n2).view(-1, r1, d2 * r2)
        third = look_up(self.cores[2], slots % n3).view(-1, r2, d3)
        left = torch.bmm(first, second).view(-1, d1 * d2, r2)
        return look_up(torch.bmm(left, third).flatten(1), places).flatten(1)


class DeepHashEmbedding(LayoutEmbedding):
    """`DeepHash`: ``layers``, linear with PyTorch's own start, mish between."""

    def __init__(self, plan: DeepHash) -> None:
        super().__init__()
        hidden = plan.hidden
        sizes = [(plan.hashes, hidden), (hidden, hidden), (hidden, plan.dim)]
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        starts = np.cumsum([0, *(len(codes) for codes in plan.codes)])[:-1]
        self.register_buffer("starts", torch.from_numpy(starts), persistent=False)
        self.register_buffer("hashes", torch.from_numpy(np.concatenate(plan.codes)), persistent=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Pass the hashes through the network."""
        every = codes + self.get_buffer("starts")  # (B, F), numbers of values of all features
        values, places = torch.unique(every, return_inverse=True)  # (N,): each value of the batch once
        x = self.get_buffer("hashes")[values]  # (N, hashes)
        x = functional.mish(self.layers[0](x))
        x = functional.mish(self.layers[1](x))
        return look_up(self.layers[2](x), places).flatten(1)


def embed(plan: Plan, scale: float = SCALE) -> LayoutEmbedding:
    """Return the embedding of a plan; its parameters are random, by torch's global generator.

    Args:
        plan: says what there is.
        scale: parameters start uniform in +-scale, but where a class says otherwise.
    """
    match plan:
        case Rows():
            return RowsEmbedding(plan, scale)
        case Projected():
            return ProjectedEmbedding(plan, scale)
        case Sums():
            return SumsEmbedding(plan, scale)
        case Products():
            return ProductsEmbedding(plan, scale)
        case Elements():
            return ElementsEmbedding(plan, scale)
        case TensorTrain():
            return TensorTrainEmbedding(plan, scale)
        case DeepHash():
            return DeepHashEmbedding(plan)
