"""Quality against bytes as a curve with three numbers, and how far to trust it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_POINTS = 3
_POWERS = np.linspace(0.05, 2.0, 40)


@dataclass(frozen=True)
class Curve:
    """quality(P) = limit - gain * P^-power, of P bytes; what a table without end would reach is ``limit``.

    gain is below 0 where less is better, as of a loss. spread: the largest error with which the curve,
    fitted to all sizes but one, foretells that one; it is refitted with the same power.
    """

    limit: float
    gain: float
    power: float
    spread: float

    def at(self, size: float) -> float:
        """Return the quality at so many bytes."""
        return float(self.limit - self.gain * size**-self.power)

    def size_for(self, quality: float) -> float | None:
        """Return the bytes at which the curve has a quality; None where it never does."""
        left = (self.limit - quality) / self.gain if self.gain else 0.0
        return float(left ** (-1 / self.power)) if left > 0 else None


def fit_curve(sizes: Sequence[float], qualities: Sequence[float]) -> Curve:
    """Fit by least squares, over a grid of powers.

    Args:
        sizes: bytes, above 0, at least `LEAST_POINTS` different ones.
        qualities: the measured quality of each.

    Raises:
        ValueError: there are too few sizes.
    """
    if len(set(sizes)) < LEAST_POINTS:
        raise ValueError(f"a curve needs {LEAST_POINTS} different sizes, got {len(set(sizes))}")
    x, y = np.asarray(sizes, np.float64), np.asarray(qualities, np.float64)
    unit = x.min()  # numbers near 1 keep the least squares well conditioned
    power = min(_POWERS, key=lambda each: _fit(x / unit, y, each)[2])
    limit, gain, _ = _fit(x / unit, y, power)
    left_out = [_miss(x / unit, y, power, one) for one in range(len(x))]
    return Curve(limit, gain * unit**power, float(power), max(left_out))


def _fit(x: np.ndarray, y: np.ndarray, power: float) -> tuple[float, float, float]:
    """Return limit, gain and the sum of squared errors."""
    columns = np.stack([np.ones_like(x), -(x**-power)], 1)
    solution, *_ = np.linalg.lstsq(columns, y, rcond=None)
    return float(solution[0]), float(solution[1]), float(((columns @ solution - y) ** 2).sum())


def _miss(x: np.ndarray, y: np.ndarray, power: float, one: int) -> float:
    others = np.arange(len(x)) != one
    limit, gain, _ = _fit(x[others], y[others], power)
    return float(abs(limit - gain * x[one] ** -power - y[one]))
