"""Cells of a comparison as a table: means, deviations, and a test of each layout against `unified`."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.errors import TrainingError
from featurestore.plans import FLOAT_BYTES, TooSmall
from featurestore.spec import Label
from training.comparison.setup import CellResult, watched

REFERENCE = "unified"


@dataclass(frozen=True)
class Welch:
    """Welch's t-test of two samples with unequal variances: B. L. Welch, Biometrika 34, 1947.

    p is None where scipy, which knows the distribution, is not installed.
    """

    t: float
    degrees: float
    p: float | None


@dataclass(frozen=True)
class Standing:
    """A layout at a budget, over seeds.

    values: the test metric of each seed. quality, loss: mean and sample deviation (0 of one).
    """

    layout: str
    budget: int
    bytes: int
    values: tuple[float, ...]
    quality: tuple[float, float]
    loss: tuple[float, float] | None
    best_epoch: float
    seconds: float
    against: Welch | None

    @property
    def seeds(self) -> int:
        """How many trainings."""
        return len(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "seeds": self.seeds}


def welch(one: Sequence[float], other: Sequence[float]) -> Welch | None:
    """Test whether two samples have the same mean; None where that is undefined.

    It needs two values of each, and some spread.
    """
    if min(len(one), len(other)) < 2:
        return None
    parts = [statistics.variance(values) / len(values) for values in (one, other)]
    if not sum(parts):
        return None
    t = (statistics.fmean(one) - statistics.fmean(other)) / math.sqrt(sum(parts))
    shares = zip(parts, (one, other), strict=True)
    degrees = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in shares)
    return Welch(t, degrees, _two_sided(t, degrees))


def _two_sided(t: float, degrees: float) -> float | None:
    try:
        from scipy.stats import t as distribution
    except ModuleNotFoundError:
        return None
    return float(2 * distribution.sf(abs(t), degrees))


def standings(results: Iterable[CellResult], label: Label) -> list[Standing]:
    """Group cells by budget and layout: the largest budget first, the best layout of each first."""
    groups: dict[tuple[int, str], list[CellResult]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        groups.setdefault((result.budget, result.layout), []).append(result)
    found = [
        _standing(cells, groups.get((budget, REFERENCE)), label) for (budget, _), cells in groups.items()
    ]
    sign = -1 if label.is_binary else 1
    return sorted(found, key=lambda each: (-each.budget, sign * each.quality[0], each.layout))


def _standing(cells: Sequence[CellResult], reference: Sequence[CellResult] | None, label: Label) -> Standing:
    quality, loss = watched(label), "log_loss" if label.is_binary else None
    values = [cell.test[quality] for cell in cells]
    tested = reference is not None and cells[0].layout != REFERENCE
    return Standing(
        layout=cells[0].layout,
        budget=cells[0].budget,
        bytes=cells[0].bytes,
        values=tuple(values),
        quality=_mean_and_deviation(values),
        loss=_mean_and_deviation([cell.test[loss] for cell in cells]) if loss else None,
        best_epoch=statistics.fmean(cell.best_epoch for cell in cells),
        seconds=statistics.fmean(cell.seconds for cell in cells),
        against=welch(values, [cell.test[quality] for cell in reference]) if tested and reference else None,
    )


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def check_fair(results: Iterable[CellResult]) -> list[str]:
    """Return what readers must know: layouts that leave more than 1 % of their budget unused.

    Raises:
        TrainingError: a cell has more bytes than its budget. That would be an error of ours.
    """
    notes = {}
    for result in results:
        if result.bytes > result.budget:
            raise TrainingError(
                f"{result.layout} has {result.bytes:,} bytes, its budget is {result.budget:,}"
            )
        if 100 * result.bytes < 99 * result.budget:
            used = f"{result.bytes / result.budget:.1%} of {result.budget:,} bytes"
            notes[result.budget, result.layout] = (
                f"{result.layout} uses {used}: it comes in steps, or needs no more"
            )
    return [notes[key] for key in sorted(notes, reverse=True)]


def columns(label: Label) -> list[str]:
    """Return the names of the table's columns."""
    quality = watched(label)
    loss = ["log loss", "sd"] if label.is_binary else []
    return ["budget", "layout", "bytes", "seeds", quality, "sd", *loss, "p", "best epoch", "seconds"]


def rows(standings_: Iterable[Standing], misfits: Iterable[TooSmall]) -> list[tuple[object, ...]]:
    """Return the table's rows; layouts that do not fit come last, with the smallest budget that would."""
    told = [
        (
            f"{each.budget:,}",
            each.layout,
            f"{each.bytes:,}",
            each.seeds,
            *told_quality(each, each.quality),
            *(told_quality(each, each.loss) if each.loss else ()),
            _told(each.against),
            f"{each.best_epoch:.1f}",
            f"{each.seconds:.1f}",
        )
        for each in standings_
    ]
    return [*told, *(_misfit_row(misfit, len(told[0]) if told else 4) for misfit in misfits)]


def told_quality(each: Standing, quality: tuple[float, float]) -> tuple[str, str]:
    """Return mean and deviation as text; one seed has no deviation."""
    mean, deviation = quality
    return f"{mean:.4f}", f"{deviation:.4f}" if each.seeds > 1 else ""


def _misfit_row(misfit: TooSmall, width: int) -> tuple[object, ...]:
    budget, smallest = misfit.floats * FLOAT_BYTES, misfit.smallest * FLOAT_BYTES
    return (f"{budget:,}", misfit.layout, f"needs {smallest:,}", 0, *[""] * (width - 4))


def _told(test: Welch | None) -> str:
    if test is None:
        return ""
    return f"t={test.t:.1f}, df={test.degrees:.1f}" if test.p is None else f"{test.p:.2g}"
