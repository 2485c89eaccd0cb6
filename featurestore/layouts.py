"""Memory layouts: rules from (feature, value) to parameters, each made for a number of floats.

`unified` is the layout whose slots the store precomputes. The others are there to be compared with it at
equal bytes, without another ingestion: all are functions of the vocabulary, and of the values' hashes.

    unified, per_feature, exact, unified_small_exact   rows of a table                          `Rows`
    unified_narrow, exact_lowdim, mixed_dim            narrow rows and a projection a feature   `Projected`
    double, hash_embedding                             sums of rows, weighted or not            `Sums`
    quotient_remainder                                 products of two rows                     `Products`
    robe, hashed_net                                   single floats of one array               `Elements`
    tensor_train                                       products of three small matrices         `TensorTrain`
    dhe                                                a small network over many hashes         `DeepHash`

Every float that stands in for the table counts, projections included; what a hash decides (slots, signs,
fixed projections) is computed from the value and costs none. A plan says how many ``floats`` it has, of 4
bytes each.

Notation: F features, V_f values of feature f, V their sum, D the width of an embedding, P floats to spend.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.errors import SpecError, did_you_mean
from featurestore.hashing import slots_of
from featurestore.plans import (
    DeepHash,
    Elements,
    Field,
    Floats,
    Integers,
    Plan,
    Products,
    Projected,
    Rows,
    Sums,
    TensorTrain,
    TooSmall,
    deep_hash_floats,
    tensor_train_floats,
)
from featurestore.signs import projection_signs, slot_signs

MOST_ALPHA = 4
MOST = 4096
"""Of lookups, floats of a row or of a block: more would be a slip of the finger."""
SMALL_VALUES = 100
"""Features of fewer values need few floats to tell them apart."""


def unified(fields: Sequence[Field], dim: int, floats: int, *, lookups: int = 1) -> Rows:
    """All features share one table: slot = hash(v, seed_f,l) mod M, M = floor(P k / D) rows of D / k floats.

    B. Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
    NeurIPS 2023, section 3.
    """
    if dim % lookups:
        raise SpecError("layout unified", [f"lookups must divide the width {dim}, got {lookups}"])
    width = dim // lookups
    rows = _rows("unified", floats, width, 1)
    return Rows(rows, width, tuple(field.slots(lookups, rows) for field in fields))


def unified_small_exact(fields: Sequence[Field], dim: int, floats: int) -> Rows:
    """Rows of their own for the smallest features, while those take a quarter of all; the others share.

    Coleman et al. 2023 (see `unified`) leave vocabularies that are small out of the shared table.
    """
    rows = _rows("unified_small_exact", floats, dim, 2)
    small: dict[str, int] = {}
    for field in sorted(fields, key=len)[:-1]:
        if sum(small.values()) + len(field) <= rows // 4:
            small[field.name] = len(field)
    first = dict(zip(small, _starts(list(small.values())), strict=True))
    taken = sum(small.values())
    slots = tuple(
        first[field.name] + np.arange(len(field))[:, None]
        if field.name in small
        else taken + field.slots(1, rows - taken)
        for field in fields
    )
    return Rows(rows, dim, slots)


def per_feature(fields: Sequence[Field], dim: int, floats: int) -> Rows:
    """Each feature hashes into a range of its own: slot = start_f + hash(v) mod M_f.

    K. Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009, a table a feature.

    M_f is proportional to V_f, but at least min(V_f, M / 2F): a small feature is never squeezed to a row or
    two while others have many.
    """
    total = _rows("per_feature", floats, dim, len(fields))
    sizes = _shares([len(field) for field in fields], total)
    starts = _starts(sizes)
    slots = [start + field.slots(1, size) for field, start, size in zip(fields, starts, sizes, strict=True)]
    return Rows(total, dim, tuple(slots))


def exact(fields: Sequence[Field], dim: int, floats: int) -> Rows:
    """A row of its own for each value: V D floats, whatever more there is to spend."""
    total = sum(map(len, fields))
    if floats < total * dim:
        raise TooSmall("exact", floats, total * dim)
    return Rows(total, dim, _own_rows(fields))


def exact_lowdim(fields: Sequence[Field], dim: int, floats: int) -> Projected:
    """Each value's own d_f < D floats, and a learned projection (d_f, D) a feature: mixed dimensions.

    A. Ginart et al., "Mixed Dimension Embeddings with Application to Memory-Efficient Recommendation
    Systems", ISIT 2021. Dimensions are dealt out one by one, to the feature that has fewest and still fits,
    at most min(D, V_f). Parameters: sum over f of d_f (V_f + D).
    """
    smallest = sum(len(field) + dim for field in fields)
    if floats < smallest:
        raise TooSmall("exact_lowdim", floats, smallest)
    dims = [1] * len(fields)
    left = floats - smallest
    while open_ := [
        f for f, field in enumerate(fields) if dims[f] < min(dim, len(field)) and len(field) + dim <= left
    ]:
        chosen = min(open_, key=lambda f: dims[f])
        dims[chosen] += 1
        left -= len(fields[chosen]) + dim
    sizes = [len(field) * d for field, d in zip(fields, dims, strict=True)]
    slots = tuple(
        start + np.arange(len(field) * d).reshape(len(field), d)
        for field, start, d in zip(fields, _starts(sizes), dims, strict=True)
    )
    return Projected(sum(sizes), 1, dim, slots)


def mixed_dim(
    fields: Sequence[Field],
    dim: int,
    floats: int,
    *,
    alpha: float = 0.5,
    most: int | None = None,
    tail: float = 0.05,
    lookups: int = 2,
) -> Projected:
    """Floats of its own for a value as its count deserves; values that get none hash into a shared tail.

        d(v) = min(most, floor(t count(v)^alpha)), t as large as (1 - tail) P floats allow
        embedding(v) = concat of its d(v) floats, times A_f (d, D)

    After A. Ginart et al. (see `exact_lowdim`), whose dimensions follow popularity, by blocks of values. A
    value with d(v) = 0, as any that was never seen, has k floats of the tail, each with a sign and over
    sqrt(k). The A_f are fixed signs, as in `unified_narrow`, and cost no bytes. most is D unless given.
    Parameters: P.
    """
    dims = mixed_dims(fields, dim, floats, alpha=alpha, most=most, tail=tail)
    taken = np.cumsum(np.concatenate(dims))
    own, widest = int(taken[-1]), max(lookups, *(int(each.max()) for each in dims))
    ends = np.split(taken, np.cumsum([len(field) for field in fields])[:-1])
    parts = [
        _own_or_hashed(field, each, end - each, own, floats - own, lookups, widest)
        for field, each, end in zip(fields, dims, ends, strict=True)
    ]
    projections = (projection_signs(widest, dim),) * len(fields)
    return Projected(floats, 1, dim, tuple(s for s, _ in parts), tuple(g for _, g in parts), projections)


def mixed_dims(
    fields: Sequence[Field],
    dim: int,
    floats: int,
    *,
    alpha: float = 0.5,
    most: int | None = None,
    tail: float = 0.05,
) -> list[npt.NDArray[np.int64]]:
    """Return the floats that `mixed_dim` gives each feature's values, int64 (V_f,); 0 where it hashes."""
    if not 0 < tail <= 1 or alpha > MOST_ALPHA:
        expected = f"tail must be a share above 0 and at most 1, and alpha at most {MOST_ALPHA}"
        raise SpecError("layout mixed_dim", [f"{expected}; got {tail:g} and {alpha:g}"])
    counts = np.concatenate([field.counts or np.ones(len(field)) for field in fields]).astype(np.float64)
    dims = _dims_by_count(counts**alpha, min(most or dim, dim), int((1 - tail) * floats))
    return np.split(dims, np.cumsum([len(field) for field in fields])[:-1])


def _dims_by_count(weights: npt.NDArray[np.float64], most: int, floats: int) -> npt.NDArray[np.int64]:
    """Return min(most, floor(t weight)) for the largest t whose sum is not over ``floats``."""

    def dims(t: float) -> npt.NDArray[np.int64]:
        return np.minimum(most, np.floor(t * weights)).astype(np.int64)

    low, high = 0.0, (most + 1) / max(float(weights.min()), 1e-9)
    if dims(high).sum() <= floats:
        return dims(high)
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if dims(middle).sum() <= floats else (low, middle)
    return dims(low)


def _own_or_hashed(
    field: Field,
    dims: Integers,
    first: Integers,
    own: int,
    tail: int,
    lookups: int,
    widest: int,
) -> tuple[Integers, Floats]:
    """Return slots and signs of `mixed_dim`, (V_f, widest); signs are 0 where a value has no more floats.

    The slot there is the value's first once more, so that nobody takes it for one that shares a row.
    """
    place = np.arange(widest)
    has = place < dims[:, None]
    slots = first[:, None] + np.where(has, place, 0)
    signs = has.astype(np.float32)
    hashed = dims == 0
    if hashed.any():
        found = own + field.slots(lookups, tail)[hashed]
        slots[hashed] = found[:, :1]
        slots[hashed, :lookups] = found
        signs[hashed, :lookups] = field.signs(lookups)[hashed] / np.float32(math.sqrt(lookups))
    return slots, signs


def unified_narrow(
    fields: Sequence[Field],
    dim: int,
    floats: int,
    *,
    width: int = 1,
    lookups: int = 6,
    small: int = MOST,
    learned: bool = False,
    signs: bool = True,
    code: float = 0.05,
) -> Projected:
    """One shared table of narrow rows: k lookups a feature, concatenated, and projected to D. No vocabulary.

        embedding(v) = concat over l of sign(v, l) * table[hash(v, seed_f,l) mod M], times A_f (k_f width, D),
                       plus code * (sign(v, 0), ..., sign(v, D - 1))

    k_f is ``lookups``, but at most ``small`` for features of fewer than `SMALL_VALUES` values.
    With ``learned`` the A_f are parameters. Without, they are one fixed matrix of hashed signs. It costs no
    bytes, and the network's first layers, which are linear, can turn it as they need. ``signs`` keep two
    values that share a row from pulling it the same way. They are hashes of the value's slots, so that
    nothing but slots has to be stored: `featurestore.signs`. Times ``code``, which is about as large as what
    a table starts with, they are a vector that nobody learns: by it the network tells values apart that share
    rows. ``small`` needs the sizes of the vocabularies, and nothing else of them. A spec whose table has a
    ``vector`` trains and serves this layout, with a smaller start and code: `training.combiners`.
    Parameters: M width, and the sum of all k_f width D where the projections are learned.
    """
    if lookups * width > MOST:
        raise SpecError("layout unified_narrow", [f"lookups times width must be at most {MOST:,}"])
    counts = [min(lookups, small) if len(field) < SMALL_VALUES else lookups for field in fields]
    projections = sum(counts) * width * dim if learned else 0
    if floats < projections + width:
        raise TooSmall("unified_narrow", floats, projections + width)
    rows = (floats - projections) // width
    slots = [field.slots(count, rows) for field, count in zip(fields, counts, strict=True)]
    found = [slot_signs(each, max(lookups, dim)) for each in slots]
    signed = zip(found, counts, strict=True)
    return Projected(
        rows,
        width,
        dim,
        slots=tuple(slots),
        signs=tuple(each[:, :count] for each, count in signed) if signs else None,
        projections=None if learned else tuple(_projection(count * width, dim) for count in counts),
        codes=tuple(np.float32(code) * each[:, :dim] for each in found) if code else None,
    )


def _projection(inputs: int, dim: int) -> Floats:
    return projection_signs(inputs, dim) / np.float32(math.sqrt(inputs))


def double(fields: Sequence[Field], dim: int, floats: int, *, lookups: int = 2) -> Sums:
    """The sum of k rows of one shared table of M = floor(P / D) rows: Bloom embeddings, double hashing.

    J. Serra, A. Karatzoglou, "Getting Deep Recommenders Fit: Bloom Embeddings for Sparse Binary Input/Output
    Networks", RecSys 2017; C. Zhang et al., "Model Size Reduction Using Frequency Based Double Hashing for
    Recommender Systems", RecSys 2020.
    """
    rows = _rows("double", floats, dim, 1)
    return Sums(rows, dim, tuple(field.slots(lookups, rows) for field in fields))


def hash_embedding(fields: Sequence[Field], dim: int, floats: int, *, lookups: int = 2) -> Sums:
    """The sum of k rows with learned weights, which a hash of the value finds: K = min(V, P / 4k) sets of k.

    D. Svenstrup, J. Hansen, O. Winther, "Hash Embeddings for Efficient Word Representations", NIPS 2017.
    Parameters: M D + K k.
    """
    _rows("hash_embedding", floats - lookups, dim, 1, extra=lookups)
    most = max(1, min(sum(map(len, fields)), floats // (4 * lookups)))
    rows = max(1, (floats - most * lookups) // dim)
    weights = min(most, (floats - rows * dim) // lookups)
    weight_slots = tuple(slots_of(field.hashes(1, "/weight")[:, 0], weights) for field in fields)
    return Sums(rows, dim, tuple(field.slots(lookups, rows) for field in fields), weights, weight_slots)


def quotient_remainder(fields: Sequence[Field], dim: int, floats: int) -> Products:
    """The product of a row for code mod m_f and one for floor(code / m_f): no two values have both.

    H.-J. M. Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
    Recommendation Systems", KDD 2020, section 4. Rows: m_f + ceil(V_f / m_f), with the largest m_f whose rows
    fit the feature's share. Parameters: D times all rows.
    """
    sizes = [len(field) for field in fields]
    smallest = [min(_compositional_rows(size, m) for m in range(1, size + 1)) for size in sizes]
    total = _rows("quotient_remainder", floats, dim, sum(smallest))
    left = total - sum(smallest)
    wanted = [size + 1 - low for size, low in zip(sizes, smallest, strict=True)]
    part = min(1.0, left / max(1, sum(wanted)))
    shares = [low + math.floor(want * part) for low, want in zip(smallest, wanted, strict=True)]
    remainders = [
        max(m for m in range(1, size + 1) if _compositional_rows(size, m) <= share)
        for size, share in zip(sizes, shares, strict=True)
    ]
    rows = [_compositional_rows(size, m) for size, m in zip(sizes, remainders, strict=True)]
    slots = tuple(
        start + np.stack([np.arange(size) % m, m + np.arange(size) // m], 1)
        for size, m, start in zip(sizes, remainders, _starts(rows), strict=True)
    )
    return Products(sum(rows), dim, slots)


def _compositional_rows(values: int, remainders: int) -> int:
    return remainders + -(-values // remainders)


def robe(fields: Sequence[Field], dim: int, floats: int, *, block: int | None = None) -> Elements:
    """Blocks of Z floats of one circular array: embedding(v)[b Z + i] = array[(hash(v, b) + i) mod P].

    A. Desai, L. Chou, A. Shrivastava, "Random Offset Block Embedding (ROBE) for Compressed Embedding Tables
    in Deep Learning Recommendation Systems", MLSys 2022. Z is the largest divisor of D up to 8 unless given.
    Parameters: P.
    """
    block = block or max(size for size in range(1, 9) if dim % size == 0)
    if dim % block:
        raise SpecError("layout robe", [f"block must divide the width {dim}, got {block}"])
    _rows("robe", floats, 1, block)
    inside = np.arange(block)
    places = tuple(
        ((field.slots(dim // block, floats)[:, :, None] + inside) % floats).reshape(len(field), dim)
        for field in fields
    )
    return Elements(floats, places)


def hashed_net(fields: Sequence[Field], dim: int, floats: int) -> Elements:
    """A float and a sign of its own for each element: embedding(v)[j] = sign(v, j) array[hash(v, j) mod P].

    W. Chen et al., "Compressing Neural Networks with the Hashing Trick", ICML 2015, Eq. 7, applied to the
    table. Parameters: P.
    """
    _rows("hashed_net", floats, 1, 1)
    places = tuple(field.slots(dim, floats) for field in fields)
    return Elements(floats, places, tuple(field.signs(dim) for field in fields))


def tensor_train(fields: Sequence[Field], dim: int, floats: int) -> TensorTrain:
    """One virtual (V, D) table as a tensor train of three cores, with the ranks that fill P best.

    C. Yin et al., "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models", MLSys 2021.
    """
    sizes = [len(field) for field in fields]
    first = math.ceil(sum(sizes) ** (1 / 3))
    second = math.ceil(math.sqrt(sum(sizes) / first))
    rows = (first, second, -(-sum(sizes) // (first * second)))
    columns = _three_factors(dim)
    smallest = tensor_train_floats(rows, columns, (1, 1))
    if floats < smallest:
        raise TooSmall("tensor_train", floats, smallest)
    ranks = max(_fitting_ranks(rows, columns, floats), key=lambda pair: _fill(rows, columns, floats, pair))
    slots = tuple(start + np.arange(size) for size, start in zip(sizes, _starts(sizes), strict=True))
    return TensorTrain(rows, columns, ranks, slots)


def _fitting_ranks(
    rows: tuple[int, int, int], columns: tuple[int, int, int], floats: int
) -> list[tuple[int, int]]:
    """Return, for each first rank, the largest second one that fits."""
    pairs = []
    for r1 in range(1, rows[0] * columns[0] + 1):
        base = rows[0] * columns[0] * r1
        r2 = min((floats - base) // (r1 * rows[1] * columns[1] + rows[2] * columns[2]), rows[2] * columns[2])
        if r2 >= 1:
            pairs.append((r1, r2))
    return pairs


def _fill(
    rows: tuple[int, int, int], columns: tuple[int, int, int], floats: int, ranks: tuple[int, int]
) -> tuple[bool, int, int]:
    """Order ranks: those that fill 99 % before others, then the most even ones, then the fullest."""
    used = tensor_train_floats(rows, columns, ranks)
    return used >= 0.99 * floats, -abs(ranks[0] - ranks[1]), used


def _three_factors(number: int) -> tuple[int, int, int]:
    """Return three factors of a number, as even as they get, the smallest first."""
    found = [
        (one, two, number // (one * two))
        for one in range(1, number + 1)
        for two in range(one, number + 1)
        if number % (one * two) == 0 and two <= number // (one * two)
    ]
    return min(found, key=sum)


def dhe(fields: Sequence[Field], dim: int, floats: int) -> DeepHash:
    """Deep hash embedding: hashes of a value, as numbers in -1..1, through two hidden layers of h units.

    W.-C. Kang et al., "Learning to Embed Categorical Features without Embedding Tables for Recommendation",
    KDD 2021, section 3. The hashes of another feature have other seeds; the network is shared. h is the
    largest for which 2 h^2 + 2 h + h D + D <= P, and what is left goes into more hashes than h.
    """
    smallest = deep_hash_floats(1, 1, dim)
    if floats < smallest:
        raise TooSmall("dhe", floats, smallest)
    hidden = int((-(2 + dim) + math.sqrt((2 + dim) ** 2 + 8 * (floats - dim))) / 4)
    hashes = hidden + (floats - deep_hash_floats(hidden, hidden, dim)) // hidden
    codes = tuple(
        (field.hashes(hashes, "/dhe") / np.float32(2**31) - np.float32(1)).astype(np.float32)
        for field in fields
    )
    return DeepHash(hashes, hidden, dim, codes)


def _rows(layout: str, floats: int, width: int, least: int, *, extra: int = 0) -> int:
    """Return how many rows fit; TooSmall where those are fewer than ``least``."""
    rows = floats // width
    if rows < least:
        raise TooSmall(layout, floats + extra, least * width + extra)
    return rows


def _own_rows(fields: Sequence[Field]) -> tuple[Integers, ...]:
    sizes = [len(field) for field in fields]
    return tuple(start + np.arange(size)[:, None] for size, start in zip(sizes, _starts(sizes), strict=True))


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each of several ranges begins that lie one after the other."""
    return [0, *itertools.accumulate(sizes)][: len(sizes)]


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Divide rows among features by their sizes, each having at least min(size, total / 2F), and 1."""
    least = [max(1, min(size, total // (2 * len(sizes)))) for size in sizes]
    shares = least
    for _ in sizes:  # a feature at its least is left out, and the others divide what is left
        fixed = {f for f, (share, low) in enumerate(zip(shares, least, strict=True)) if share <= low}
        open_ = [f for f in range(len(sizes)) if shares is least or f not in fixed]
        left = total - sum(least[f] for f in range(len(sizes)) if f not in open_)
        weight = sum(sizes[f] for f in open_)
        shares = [
            max(least[f], left * sizes[f] // weight) if f in open_ else least[f] for f in range(len(sizes))
        ]
    largest = max(range(len(sizes)), key=lambda f: sizes[f])
    shares[largest] += total - sum(shares)
    return shares


LAYOUTS: Mapping[str, Callable[..., Plan]] = {
    function.__name__: function
    for function in (
        unified,
        unified_small_exact,
        unified_narrow,
        per_feature,
        exact,
        exact_lowdim,
        mixed_dim,
        hash_embedding,
        double,
        quotient_remainder,
        robe,
        hashed_net,
        tensor_train,
        dhe,
    )
}
"""The layouts by name."""

NEED_NO_VOCABULARY = frozenset(
    {"unified", "unified_narrow", "hash_embedding", "double", "robe", "hashed_net", "dhe"}
)
"""Layouts that find a value's parameters by its hashes alone, those of values never seen as well."""
NEED_DICTIONARY = frozenset({"exact", "exact_lowdim", "mixed_dim", "quotient_remainder", "tensor_train"})
"""Layouts that find a value's parameters by its number, which a dictionary of all values has to tell."""


@dataclass(frozen=True)
class Layout:
    """A layout and the parameters that it is not to have its own defaults for."""

    name: str
    parameters: Mapping[str, float]

    def __str__(self) -> str:
        told = (f"{key}={_told(value)}" for key, value in sorted(self.parameters.items()))
        return ":".join([self.name, *told])

    def plain(self) -> "Layout":
        """Return the same layout without the parameters that are its defaults: one layout has one name."""
        defaults = _defaults(self.name)
        kept = {key: value for key, value in self.parameters.items() if value != defaults[key]}
        return Layout(self.name, kept)


def _told(value: float) -> str:
    """Return a number as it is typed, in as few digits as tell it from all others."""
    return repr(float(value)).removesuffix(".0")


def parse_layout(text: str) -> Layout:
    """Read ``name`` or ``name:parameter=number:...``, as in ``unified_narrow:lookups=6:signs=0``.

    Parameters that are the layout's defaults are left out.

    Raises:
        SpecError: there is no such layout or parameter, it is given twice, or its number is none; with every
            problem.
    """
    name, *words = text.split(":")
    if name not in LAYOUTS:
        raise SpecError("layout", [f"unknown layout {name!r}{did_you_mean(name, LAYOUTS)}"])
    known = _parameters(name)
    problems: list[str] = []
    parameters: dict[str, float] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            problems.append(
                f"{name} has no parameter {key!r}" + (did_you_mean(key, known) or ": it takes none")
            )
            continue
        if key in parameters:
            problems.append(f"{name}: {key} is given twice")
            continue
        try:
            parameters[key] = _number(value, known[key])
        except ValueError as error:
            problems.append(f"{name}: {key} must be {error}, got {value!r}")
    if problems:
        raise SpecError("layout", problems)
    return Layout(name, parameters).plain()


def _defaults(name: str) -> dict[str, float]:
    """Return the defaults of what a layout takes by keyword."""
    given = inspect.signature(LAYOUTS[name]).parameters.values()
    return {each.name: each.default for each in given if each.kind is each.KEYWORD_ONLY}


def _parameters(name: str) -> dict[str, object]:
    """Return the types of what a layout takes by keyword."""
    given = inspect.signature(LAYOUTS[name]).parameters.values()
    return {each.name: each.annotation for each in given if each.kind is each.KEYWORD_ONLY}


def _number(text: str, type_: object) -> float:
    """Read a parameter; ValueError says what was expected."""
    if type_ is bool:
        if text not in ("0", "1"):
            raise ValueError("0 or 1")
        return text == "1"
    if type_ is float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise ValueError("a number of at least 0")
        return abs(number)  # -0 is 0, and would be told as another
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST):
        raise ValueError(f"a whole number from 1 to {MOST:,}")
    return int(text)


def make_plan(layout: str, fields: Sequence[Field], dim: int, floats: int) -> Plan:
    """Lay out the values of ``fields`` with at most ``floats`` parameters.

    Args:
        layout: as `parse_layout` reads it. Parameters that are not given have the layout's defaults.
        fields: the features, each with at least one value.
        dim: D, the width of an embedding.
        floats: P, parameters to spend, of 4 bytes.

    Raises:
        SpecError: there is no such layout, or a parameter cannot be.
        TooSmall: not even the smallest table of this layout fits.
    """
    read = parse_layout(layout)
    return LAYOUTS[read.name](fields, dim, floats, **read.parameters)
