"""What a network makes of the rows that its lookups found: one vector for each field."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from featurestore.signs import STEP, WORD_BITS, multipliers, projection_signs

CODE = 0.01
"""Size of what tells values apart that share rows: that of rows at first, `training.models.TABLE_STD`.

Test AUC on ml-100k cut at random, the six features of the paper in 10,512 floats, DCN-V2, means of two seeds:
.8509 with 0.05, .8506 with 0.01, .8499 without. Cut by time most later users are new, and what nobody trained
is noise: the best validation RMSE there, of a large and a small table, 1.0214 and 1.0328, 1.0183 and 1.0314,
1.0176 and 1.0323 (the article's network and DCN-V2).
"""

_NEGATIVE = -(2**31)
"""The bit that is a float's sign."""


class Concatenation(nn.Module):
    """The rows as they are: each lookup is a field.

    Shapes:
        inputs: what the embedding takes, (B, L).
        output: float32 (B, L * D), lookup 0 first.
    """

    def forward(self, embedding: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Look up: (B, L) -> (B, L * D)."""
        rows: torch.Tensor = embedding(inputs)
        return rows


class SignedProjection(Concatenation):
    """One vector for each feature, whose rows are narrow: layout `unified_narrow`.

        vector(v) = concat over l of sign_l(v) * weight[slots[v, l]], times A_k, plus CODE * code(v)

    sign(v) are the first k and code(v) the first D `featurestore.signs.slot_signs` of the feature's slots;
    A_k, (k * dim, D), is `featurestore.signs.projection_signs` over sqrt(k * dim). Nothing here is learned:
    the layers that follow turn the vectors as they need. By its code the network tells a value apart from
    those that share its rows.

    Args:
        lookups: of each feature, k.
        dim: floats of a row of the table.
        width: D, floats of a feature's vector.

    Shapes:
        inputs: slots, int32 or int64 (B, L), L the sum of all k, feature by feature.
        output: float32 (B, F * D).
    """

    def __init__(self, lookups: Sequence[int], dim: int, width: int) -> None:
        super().__init__()
        self.lookups, self.dim, self.width = tuple(lookups), dim, width
        for count in set(lookups):
            constants = {
                "factors": torch.from_numpy(multipliers(count).view(np.int64)),
                "steps": torch.from_numpy(_steps(max(count, width))),
                "projection": torch.from_numpy(projection_signs(count * dim, width)) / math.sqrt(count * dim),
            }
            for name, constant in constants.items():
                self.register_buffer(f"{name}_{count}", constant, persistent=False)

    def forward(self, embedding: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Look up, sign, project and add the codes: (B, L) -> (B, F * D)."""
        size, vectors = len(inputs), []
        rows = embedding(inputs).view(*inputs.shape, self.dim)  # (B, L, dim)
        with torch.autocast(
            inputs.device.type, enabled=False
        ):  # rows that are concatenated keep their bits too
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
        signs = slot_signs(slots, self.get_buffer(f"factors_{count}"), self.get_buffer(f"steps_{count}"))
        signed = (rows * signs[..., :count, None]).view(-1, count * self.dim)
        code = signs.view(-1, signs.shape[-1])[:, : self.width]  # (B * f, D)
        vectors = torch.addmm(code, signed, self.get_buffer(f"projection_{count}"), beta=CODE)
        return vectors.view(*slots.shape[:-1], self.width)

    def extra_repr(self) -> str:
        """Describe it in `repr`."""
        return f"lookups {self.lookups} of {self.dim} -> {self.width}"


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
    hashes = ((slots * factors).sum(-1) >> 32).int()  # int() keeps the low 32 bits
    words = fmix32(hashes[..., None] + steps)
    shifts = torch.arange(WORD_BITS - 1, -1, -1, dtype=torch.int32, device=slots.device)
    ones = ((words[..., None] << shifts) & _NEGATIVE) | 0x3F800000  # bit j where a float has its sign; 1.0
    return ones.flatten(-2).view(torch.float32)


def fmix32(words: torch.Tensor) -> torch.Tensor:
    """Return `featurestore.signs.fmix32` of int32."""
    words = (words ^ ((words >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    words = (words ^ ((words >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return words ^ ((words >> 16) & 0xFFFF)
