"""What a network makes of the rows that its lookups found: one vector for each field."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from featurestore.signs import STEP, WORD_BITS, multipliers, projection_signs

CODE = 0.01
"""Size of what tells values apart that share rows: that of rows at first, `training.models.TABLE_STD`.

It never changes, like the signs: a model that was trained with it needs it. A larger one would be noise to
values that nobody trained, of which a split by time has many.
"""

_NEGATIVE = -(2**31)
"""The bit that is a float's sign."""


class Combiner(nn.Module):
    """Base: from an embedding and what it takes, (B, L), to the vectors of all fields, float32 (B, F * D)."""

    keeps_rows: ClassVar[bool] = False
    """Whether the vectors are the rows: then an embedding may know a shorter road through the next layer."""


class Concatenation(Combiner):
    """The rows as they are: each lookup is a field.

    Shapes:
        inputs: what the embedding takes, (B, L).
        output: float32 (B, L * D), lookup 0 first.
    """

    keeps_rows = True

    def forward(self, embedding: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Look up: (B, L) -> (B, L * D)."""
        rows: torch.Tensor = embedding(inputs)
        return rows


class SignedProjection(Combiner):
    """One vector for each feature, whose rows are narrow: layout `unified_narrow`.

        vector(v) = concat over l of sign_l(v) * weight[slots[v, l]], times A_k, plus CODE * code(v)

    sign(v) are the first k and code(v) the first D `featurestore.signs.slot_signs` of the feature's slots;
    A_k, (k * dim, D), is `featurestore.signs.projection_signs` over sqrt(k * dim). Nothing here is learned:
    the layers that follow turn the vectors as they need. By its code the network tells a value apart from
    those that share its rows.

    Args:
        lookups: of each feature, k.
        dim: floats of a row of the table.
        vector: D, floats of a feature's vector.

    Shapes:
        inputs: slots, int32 or int64 (B, L), L the sum of all k, feature by feature.
        output: float32 (B, F * D).

    Raises:
        ValueError: in the forward pass, where there are not L slots an example.
    """

    def __init__(self, lookups: Sequence[int], dim: int, vector: int) -> None:
        super().__init__()
        self.lookups, self.dim, self.vector = tuple(lookups), dim, vector
        for count in set(lookups):
            constants = {
                "factors": torch.tensor(multipliers(count).view(np.int64)),
                "steps": torch.from_numpy(_steps(max(count, vector))),
                "projection": torch.tensor(projection_signs(count * dim, vector)) / math.sqrt(count * dim),
            }
            for name, constant in constants.items():
                self.register_buffer(f"{name}_{count}", constant, persistent=False)

    def forward(self, embedding: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Look up, sign, project and add the codes: (B, L) -> (B, F * D)."""
        size, wanted = len(inputs), sum(self.lookups)
        if inputs.dim() != 2 or inputs.shape[1] != wanted:
            raise ValueError(
                f"slots must be (B, {wanted}), those of lookups {self.lookups}, got {inputs.shape}"
            )
        rows, vectors = embedding(inputs).view(size, wanted, self.dim), []
        # Rows that are concatenated keep their bits under autocast, and so do these.
        with torch.autocast(inputs.device.type, enabled=False):
            for first, features, count in self._groups():
                places = slice(first, first + features * count)
                slots = inputs[:, places].reshape(size, features, count)
                vectors.append(self._vectors(rows[:, places].view(size, features, count, self.dim), slots))
        return torch.cat(vectors, 1).flatten(1)  # (B, F, D) -> (B, F * D)

    def _groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield runs of features with equally many lookups: the first lookup, the features, their lookups."""
        first = 0
        for count, run in itertools.groupby(self.lookups):
            features = len(list(run))
            yield first, features, count
            first += features * count

    def _vectors(self, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Return the vectors of f features: (B, f, k, dim), (B, f, k) -> (B, f, D)."""
        count = slots.shape[-1]
        factors, steps = (self.get_buffer(f"{name}_{count}") for name in ("factors", "steps"))
        signs = slot_signs(slots, factors, steps).to(rows.dtype)
        signed = (rows * signs[..., :count, None]).view(-1, count * self.dim)
        code = signs.view(-1, signs.shape[-1])[:, : self.vector]  # (B * f, D)
        vectors = torch.addmm(code, signed, self.get_buffer(f"projection_{count}"), beta=CODE)
        return vectors.view(*slots.shape[:-1], self.vector)

    def extra_repr(self) -> str:
        """Describe it in `repr`."""
        return f"lookups {self.lookups} of {self.dim} -> {self.vector}"


def _steps(signs: int) -> np.ndarray:
    words = np.arange(-(-signs // WORD_BITS), dtype=np.uint32) * np.uint32(STEP)
    return words.view(np.int32)


def slot_signs(slots: torch.Tensor, factors: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return what `featurestore.signs.slot_signs` does, of whole words.

    Torch has no unsigned arithmetic: int64 and int32 wrap to the same bits, and a shift to the right brings
    the sign along, which is masked.

    Shapes:
        slots: int32 or int64 (..., k).
        factors: int64 (k,), the multipliers.
        steps: int32 (W,), of the words.
        result: float32 (..., 32 * W).
    """
    hashes = ((slots * factors).sum(-1) >> 32).int()  # the upper half, which an int32 holds
    words = fmix32(hashes[..., None] + steps)
    shifts = torch.arange(WORD_BITS - 1, -1, -1, dtype=torch.int32, device=slots.device)
    ones = ((words[..., None] << shifts) & _NEGATIVE) | 0x3F800000  # bit j where a float has its sign; 1.0
    return ones.flatten(-2).view(torch.float32)


def fmix32(words: torch.Tensor) -> torch.Tensor:
    """Return `featurestore.signs.fmix32` of int32."""
    words = (words ^ ((words >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    words = (words ^ ((words >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return words ^ ((words >> 16) & 0xFFFF)
