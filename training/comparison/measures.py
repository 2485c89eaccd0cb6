"""What `training.comparison.interference` measures of a trained network over a shared table, as plain arrays.

Notation: F features, D the width of an embedding, R rows of the table. A *place* is a row as one value holds
it: a distinct pair of value and row, however many of the value's lookups lead there. A *group* is the places
of one feature in one row. Traffic is training examples. Shares are of 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.metrics import Scores

Doubles = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

COLLISIONS = ("clean", "within", "between")
"""Kinds of values. ``clean``: no other value has any of its rows. ``within``: another value of its feature
has one of them. ``between``: it shares rows with values of other features only."""


@dataclass(frozen=True)
class GradientShares:
    """Whose gradients the rows of a feature's values get.

    A place's own gradient is that of a batch's mean loss with respect to what its value has in the row. The
    row gets the sum of all its places: a place's own; ``within``, the sum of the other places of its group;
    ``between``, the sum of all other groups. Their energies are the squared norms, added up over batches,
    those in which the place's value does not occur included. A place's shares are the three energies over
    their sum. A feature's are the means over its places, weighted by traffic: those that an average training
    example meets.

    own, within, between: (F,), adding up to 1. NaN where a feature's rows get no gradient.
    arriving: (F, F). Of the rows of feature i: the energy of the sum of feature j's gradients over the same
        of all features, averaged as above. A row adds up to 1. The diagonal has own and within.
    within_aligned, between_aligned: (F,), what part of the energy within, and between, lies along the
        direction in which the network reads the feature. A random direction has 1 / width of it. NaN where
        there is no such energy. None where that direction is none of the row's: rows of 1 float, products.
    width: floats of a row.
    """

    own: Doubles
    within: Doubles
    between: Doubles
    arriving: Doubles
    within_aligned: Doubles | None
    between_aligned: Doubles | None
    width: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, None for NaN."""
        names = ("own", "within", "between", "arriving", "within_aligned", "between_aligned")
        found: dict[str, Any] = {name: _plain(getattr(self, name)) for name in names}
        return found | {"random_aligned": self.random_aligned}

    @property
    def random_aligned(self) -> float | None:
        """What part of the energy would lie along a random direction; None where there are none."""
        return None if self.within_aligned is None else 1 / self.width


@dataclass(frozen=True)
class Readouts:
    """In which directions the network reads the features.

    directions: (F, D), the mean over training rows of d score / d (the feature's embedding). Of a network
        that is linear in the embeddings these are its weights.
    sharing: bool (F, F), whether two features have a row in common; False on the diagonal.
    """

    directions: Doubles
    sharing: Flags

    @property
    def degrees(self) -> Doubles:
        """Angles (F, F) between the lines on which the directions lie, 0 to 90.

        Lines and not arrows: a row that is pushed back is disturbed as much as one that is pushed on. NaN
        where the score does not depend on a feature.
        """
        norms = np.linalg.norm(self.directions, axis=1, keepdims=True)
        units = np.divide(
            self.directions, norms, out=np.full_like(self.directions, math.nan), where=norms > 0
        )
        degrees: Doubles = np.degrees(np.arccos(np.minimum(np.abs(units @ units.T), 1)))
        np.fill_diagonal(degrees, np.where(norms[:, 0] > 0, 0.0, math.nan))  # not 1e-6 by rounding
        return degrees

    @property
    def random(self) -> tuple[float, float]:
        """Mean and deviation of the angle between two random lines in D dimensions, degrees."""
        return random_degrees(self.directions.shape[1])

    def pairs(self, *, sharing: bool) -> Doubles:
        """Return the angles of pairs i < j, (n,): of those that share a row, or of those that do not.

        NaNs are left out.
        """
        degrees = self.degrees
        chosen: Doubles = degrees[np.triu(self.sharing == sharing, 1) & ~np.isnan(degrees)]
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, None for NaN and for means of nothing."""
        kinds = {"sharing": self.pairs(sharing=True), "apart": self.pairs(sharing=False)}
        mean, deviation = self.random
        return {
            "degrees": _plain(self.degrees),
            "pairs": {
                name: {"pairs": len(found), "mean": float(found.mean()) if len(found) else None}
                for name, found in kinds.items()
            },
            "random": {"mean": mean, "deviation": deviation},
        }


def random_degrees(dim: int) -> tuple[float, float]:
    """Return mean and deviation of the angle between two random lines, degrees in 0 to 90.

    Its density is proportional to sin(angle)**(dim - 2): the ring of a sphere at that angle. Integrated by
    midpoints. In one dimension all lines are the same.
    """
    if dim == 1:
        return 0.0, 0.0
    steps = 20_000
    angles = (np.arange(steps) + 0.5) * (math.pi / 2 / steps)
    density = np.sin(angles) ** (dim - 2)
    mean = float(np.average(angles, weights=density))
    deviation = math.sqrt(float(np.average((angles - mean) ** 2, weights=density)))
    return math.degrees(mean), math.degrees(deviation)


@dataclass(frozen=True)
class RowLoads:
    """The rows of the table, (R,) each.

    norms: L2. loads: values that have the row. traffic: training examples of these values, added up.
    """

    norms: Doubles
    loads: Whole
    traffic: Whole

    def classes(self) -> list[tuple[str, Flags]]:
        """Return the classes of loads that occur, 0, 1, 2, 3, 4-7, 8-15, ..., and their rows, bool (R,)."""
        most = int(self.loads.max(initial=0))
        lows = [0, 1, 2, 3, *(2**power for power in range(2, most.bit_length()))]
        highs = [0, 1, 2, 3, *(2 * low - 1 for low in lows[4:])]
        found = []
        for low, high in zip(lows, highs, strict=True):
            rows = (self.loads >= low) & (self.loads <= high)
            if rows.any():
                found.append((str(low) if low == high else f"{low}-{high}", rows))
        return found

    def to_list(self) -> list[dict[str, Any]]:
        """Return the classes as plain values, means over their rows."""
        return [
            {
                "load": load,
                "rows": int(rows.sum()),
                "mean_norm": float(self.norms[rows].mean()),
                "mean_traffic": float(self.traffic[rows].mean()),
            }
            for load, rows in self.classes()
        ]


@dataclass(frozen=True)
class CollisionScores:
    """How test examples fare whose value of a feature is of one kind of `COLLISIONS`.

    Which values are clean depends on hashes where the layout hashes, and so on nothing that makes them easy;
    where a layout chooses, as `unified_small_exact` does, kinds of values differ in more than collisions.

    values: how many of the feature's are of the kind. examples: of the test split. scores: None of none.
    """

    values: int
    examples: int
    scores: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; an undefined metric is None, and ``undefined`` says why."""
        found: dict[str, Any] = {"values": self.values, "examples": self.examples}
        if self.scores is not None:
            found |= self.scores.to_dict()
            if self.scores.undefined:
                found["undefined"] = dict(self.scores.undefined)
        return found


@dataclass(frozen=True)
class Measures:
    """All measures of a network. collisions: by feature, then by kind of `COLLISIONS`."""

    features: tuple[str, ...]
    gradients: GradientShares
    readouts: Readouts
    rows: RowLoads
    collisions: Mapping[str, Mapping[str, CollisionScores]]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, without what is by row or by value; lists go by ``features``."""
        return {
            "features": list(self.features),
            "gradients": self.gradients.to_dict(),
            "readouts": self.readouts.to_dict(),
            "rows": self.rows.to_list(),
            "collisions": {
                feature: {kind: scores.to_dict() for kind, scores in kinds.items()}
                for feature, kinds in self.collisions.items()
            },
        }


def _plain(numbers: Doubles | None) -> list[Any] | None:
    if numbers is None:
        return None
    if numbers.ndim > 1:
        return [_plain(part) for part in numbers]
    return [None if math.isnan(number) else number for number in numbers.tolist()]
