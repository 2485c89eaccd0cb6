"""Plans: what a memory layout makes of the values of some features, as plain arrays.

A plan says which parameters each value has. How many floats it has, of 4 bytes each, is counted here; the
embeddings that hold and train them are those of `training.layout_embeddings`.

Notation: F features, V_f values of feature f, D the width of an embedding, k lookups.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.hashing import default_seed, hash_values, slots_of
from featurestore.signs import signs_of

Integers = npt.NDArray[Any]
"""int32 where hashes give the rows, int64 where codes do."""
Floats = npt.NDArray[np.float32]

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Field:
    """A feature and its distinct values, in the order of their codes 0..V_f-1.

    counts: how many training examples have each; None where nobody counted, which is as if all had the same.
    """

    name: str
    values: tuple[str, ...]
    counts: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def hashes(self, lookups: int, purpose: str = "") -> npt.NDArray[np.uint32]:
        """Return a hash of each value for each lookup, uint32 (V_f, lookups); another ``purpose``, others.

        Without a purpose the seeds are those that a spec's ``lookups = k`` gives.
        """
        seeds = [default_seed(self.name + purpose, lookup) for lookup in range(lookups)]
        return hash_values(pa.array(self.values, pa.string()), seeds).T

    def slots(self, lookups: int, rows: int) -> Integers:
        """Return each value's rows in a table of so many, int32 (V_f, lookups)."""
        return slots_of(self.hashes(lookups), rows)

    def signs(self, lookups: int) -> Floats:
        """Return -1 or 1 for each value and lookup, float32 (V_f, lookups), by hashes of their own."""
        return signs_of(self.hashes(lookups, "/sign"))


class TooSmall(ValueError):
    """A budget holds no table of this layout. ``smallest`` floats would."""

    def __init__(self, layout: str, floats: int, smallest: int) -> None:
        self.layout, self.floats, self.smallest = layout, floats, smallest
        super().__init__(
            f"layout {layout} does not fit {floats * FLOAT_BYTES:,} bytes: the smallest that works is "
            f"{smallest * FLOAT_BYTES:,} bytes"
        )


@dataclass(frozen=True)
class Rows:
    """Rows of a table, concatenated: embedding(v) = concat over l of table[slots_f[v, l]].

    slots: for each feature int (V_f, k); k * width = D.
    """

    num_rows: int
    width: int
    slots: tuple[Integers, ...]

    @property
    def floats(self) -> int:
        """Parameters: num_rows * width."""
        return self.num_rows * self.width


@dataclass(frozen=True)
class Projected:
    """Narrow rows, concatenated and projected.

        embedding(v) = concat over l of sign_f[v, l] * table[slots_f[v, l]], times A_f, plus codes_f[v]

    slots: for each feature int (V_f, k_f). signs: float32 of the same shapes, 0 where a value has fewer rows
    than others, or None for ones. projections: the A_f, float32 (k_f * width, dim), where a hash fixes them;
    None where they are learned. codes: float32 (V_f, dim), which nobody learns; None for zeros.
    """

    num_rows: int
    width: int
    dim: int
    slots: tuple[Integers, ...]
    signs: tuple[Floats, ...] | None = None
    projections: tuple[Floats, ...] | None = None
    codes: tuple[Floats, ...] | None = None

    @property
    def floats(self) -> int:
        """Parameters: num_rows * width, and k_f * width * dim of each learned projection."""
        learned = (
            0 if self.projections else sum(slots.shape[1] for slots in self.slots) * self.width * self.dim
        )
        return self.num_rows * self.width + learned


@dataclass(frozen=True)
class Sums:
    """Sums of k rows: embedding(v) = sum over l of weight[weight_slots_f[v], l] * table[slots_f[v, l]].

    slots: for each feature int (V_f, k). weight_slots: int (V_f,), or None for weights of 1.
    """

    num_rows: int
    dim: int
    slots: tuple[Integers, ...]
    num_weights: int = 0
    weight_slots: tuple[Integers, ...] | None = None

    @property
    def floats(self) -> int:
        """Parameters: num_rows * dim, and num_weights * k weights."""
        lookups: int = self.slots[0].shape[1]
        return self.num_rows * self.dim + self.num_weights * lookups


@dataclass(frozen=True)
class Products:
    """Products of two rows, element by element: embedding(v) = table[slots_f[v, 0]] * table[slots_f[v, 1]].

    slots: for each feature int (V_f, 2), the row of the remainder and that of the quotient.
    """

    num_rows: int
    dim: int
    slots: tuple[Integers, ...]

    @property
    def floats(self) -> int:
        """Parameters: num_rows * dim."""
        return self.num_rows * self.dim


@dataclass(frozen=True)
class Elements:
    """Single floats of one array: embedding(v)[j] = sign_f[v, j] * array[places_f[v, j]].

    places: for each feature int (V_f, dim). signs: float32 of the same shapes, or None for ones.
    """

    floats: int
    places: tuple[Integers, ...]
    signs: tuple[Floats, ...] | None = None


@dataclass(frozen=True)
class TensorTrain:
    """Products of three cores.

        element of row (i1, i2, i3), column (j1, j2, j3) = G1[i1, j1] @ G2[i2, :, j2] @ G3[i3, :, j3]

    rows, columns: how row and column numbers are split, mixed radix. ranks: (R1, R2). slots: for each
    feature int (V_f,), rows of one virtual table of all values.
    """

    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    ranks: tuple[int, int]
    slots: tuple[Integers, ...]

    @property
    def floats(self) -> int:
        """Parameters: n1 d1 R1 + R1 n2 d2 R2 + R2 n3 d3."""
        return tensor_train_floats(self.rows, self.columns, self.ranks)


@dataclass(frozen=True)
class DeepHash:
    """A network over hashes in -1..1: embedding(v) = W3 mish(W2 mish(W1 codes_f[v] + b1) + b2) + b3.

    codes: for each feature float32 (V_f, hashes).
    """

    hashes: int
    hidden: int
    dim: int
    codes: tuple[Floats, ...]

    @property
    def floats(self) -> int:
        """Parameters: hidden (hashes + hidden + dim) + 2 hidden + dim."""
        return deep_hash_floats(self.hashes, self.hidden, self.dim)


Plan = Rows | Projected | Sums | Products | Elements | TensorTrain | DeepHash


def tensor_train_floats(
    rows: tuple[int, int, int], columns: tuple[int, int, int], ranks: tuple[int, int]
) -> int:
    """Return the floats of a tensor train, see `TensorTrain`."""
    (n1, n2, n3), (d1, d2, d3), (r1, r2) = rows, columns, ranks
    return n1 * d1 * r1 + r1 * n2 * d2 * r2 + r2 * n3 * d3


def deep_hash_floats(hashes: int, hidden: int, dim: int) -> int:
    """Return the floats of a network over hashes, see `DeepHash`."""
    return hidden * (hashes + hidden + dim) + 2 * hidden + dim
