"""Why layouts do as they do: the measures of a comparison's cells as one table."""

import statistics
from collections.abc import Iterable, Sequence

from training.comparison.setup import CellResult

EXPLAINED_COLUMNS = [
    "budget", "layout", "own", "within", "between", "within along", "between along", "random", "angle",
    "used",
]  # fmt: skip

LEGEND = """\
Whose gradients a row gets that an average example meets, in energy: its value's own, those of other values
within its feature, those between features. Along: how much of either lies in the direction in which the
network reads the feature, beside a random direction. Angle: between the readouts of features that share
rows, degrees. Used: rows that have a value. Means over features; the first seed.
"""


def explained_rows(results: Iterable[CellResult]) -> list[tuple[object, ...]]:
    """Return a row of `EXPLAINED_COLUMNS` for each cell that has measures."""
    measured = [result for result in results if result.measures]
    return [_row(result) for result in sorted(measured, key=lambda each: -each.budget)]


def _row(result: CellResult) -> tuple[object, ...]:
    assert result.measures is not None  # of those that have some
    gradients, rows = result.measures["gradients"], result.measures["rows"]
    names = ("own", "within", "between", "within_aligned", "between_aligned")
    angle = result.measures["readouts"]["pairs"]["sharing"]["mean"]
    empty = sum(each["rows"] for each in rows if each["load"] == "0")
    used = 1 - empty / sum(each["rows"] for each in rows)
    return (
        f"{result.budget:,}",
        result.layout,
        *(_share(_mean(gradients[name])) for name in names),
        _share(gradients["random_aligned"]),
        "" if angle is None else f"{angle:.1f}",
        _share(used),
    )


def _mean(values: Sequence[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return statistics.fmean(known) if known else None


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
