"""Counters that every step keeps: rows out, rows rejected, bytes, milliseconds."""

import time
from types import TracebackType
from typing import Self

from apache_beam.metrics import Metrics

NAMESPACE = "slotstore"


class StepCounters:
    """Counts one bundle element's work of a step; use as a context manager around the work."""

    def __init__(self, step: str) -> None:
        self.step = step
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._add("milliseconds", round((time.perf_counter() - self._started) * 1000))

    def __call__(self, *, rows: int = 0, rejected: int = 0, nbytes: int = 0) -> None:
        """Add to the step's counters."""
        self._add("rows", rows)
        self._add("rejected", rejected)
        self._add("bytes", nbytes)

    def _add(self, name: str, amount: int) -> None:
        add_to(f"{self.step}_{name}", amount)


def add_to(counter: str, amount: int = 1) -> None:
    """Add to one of the pipeline's counters."""
    Metrics.counter(NAMESPACE, counter).inc(amount)
