"""The shared table."""

import torch
from torch import nn
from torch.nn import functional


class UnifiedEmbedding(nn.Module):
    """One table that every lookup of every feature reads: Unified Embedding.

    B. Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
    NeurIPS 2023, section 3: features share the table, a feature of k lookups has k hash functions into it,
    and its embedding is the concatenation of the k rows.

        output[b] = concat(weight[slots[b, 0]], ..., weight[slots[b, L - 1]])

    The hashes are not computed here: the store has them as slots.

    Args:
        num_slots: rows of the table.
        dim: D, floats of a row.
        std: standard deviation of the initial weights, drawn from a normal distribution.

    Shapes:
        slots: int32 or int64 (B, L), each in 0..num_slots-1.
        output: float32 (B, L * D), lookup 0 first.

    The one parameter is ``weight``, float32 (num_slots, D).
    """

    def __init__(self, num_slots: int, dim: int, std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_slots, dim))
        nn.init.normal_(self.weight, std=std)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Look up and concatenate: (B, L) -> (B, L * D)."""
        return functional.embedding(slots, self.weight).flatten(1)  # (B, L, D) -> (B, L * D)

    def extra_repr(self) -> str:
        """Describe the table in `repr`."""
        return "{}, {}".format(*self.weight.shape)
