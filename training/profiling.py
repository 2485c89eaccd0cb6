"""Where the time of a training goes: shares of its phases, and a trace of some steps."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function

from training.loop import Source, Step
from training.stream import Batch

T = TypeVar("T")

PHASES = ("feed", "step", "optimizer", "validation", "other")
"""Waiting for a batch, which includes the copy to a device; forward and backward; the update; validation; the
rest: callbacks, checkpoints, looks at the loss."""

WAIT_STEPS, WARM_UP_STEPS, TRACED_STEPS = 4, 2, 16
TRACE = "trace.json.gz"


@dataclass(frozen=True)
class ProfileResult:
    """What a profile found.

    shares: of the time, by phase, adding up to 1.
    seconds: of the whole.
    trace: a Chrome trace of `TRACED_STEPS` steps; None where the training had too few.
    copy_share: of the traced time, what copies to the device took there; None on a CPU, which needs none.
    """

    shares: Mapping[str, float]
    seconds: float
    trace: Path | None
    copy_share: float | None

    def __str__(self) -> str:
        shares = "  ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        copy = "" if self.copy_share is None else f"; copies to the device {self.copy_share:.1%} of the trace"
        return f"{shares} of {self.seconds:.1f} s{copy}"


class Profile:
    """Measures a training from outside: wraps what the loop is given.

    Every phase waits for the device where it begins and ends, so that its work is counted where it belongs;
    a training on a CUDA device is slower for that.

    Args:
        device: what is trained on.
        folder: where the trace goes.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self._device, self._path = device, folder / TRACE
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps, self._traced = 0, False
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._tracer = profile(
            activities=activities, schedule=_schedule, on_trace_ready=self._export, acc_events=True
        )
        self._copy_share: float | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator["Profile"]:
        """Measure for the time of a with statement."""
        started = time.perf_counter()
        self._tracer.start()
        try:
            yield self
        finally:
            self._tracer.stop()
            self._total = time.perf_counter() - started

    def result(self) -> ProfileResult:
        """Return what was found, once it has run."""
        known = sum(self._seconds.values())
        seconds = {**self._seconds, "other": max(self._total - known, 0.0)}
        shares = {name: spent / self._total for name, spent in seconds.items()}
        return ProfileResult(shares, self._total, self._path if self._traced else None, self._copy_share)

    def source(self, source: Source) -> Source:
        """Return a source that measures the waiting for its batches."""
        return _TimedSource(source, self)

    def step(self, step: Step) -> Step:
        """Return a step that is measured; the optimizer's part is its own."""

        def timed(slots: torch.Tensor, labels: torch.Tensor, total: int) -> torch.Tensor:
            before = self._seconds["optimizer"]
            with self.phase("step"):
                loss = step(slots, labels, total)
            self._seconds["step"] -= self._seconds["optimizer"] - before
            self._steps += 1
            self._tracer.step()
            return loss

        return timed

    def optimizer(self, optimizer: Any) -> Any:  # noqa: ANN401 - whatever has step(), and more that the step uses
        """Return an optimizer whose updates are measured."""
        return _TimedOptimizer(optimizer, self)

    def call(self, name: str, function: Callable[[], T]) -> Callable[[], T]:
        """Return a function that is measured as a phase."""

        def timed() -> T:
            with self.phase(name):
                return function()

        return timed

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase."""
        self._wait()
        started = time.perf_counter()
        with record_function(f"slotstore.{name}"):
            try:
                yield
            finally:
                self._wait()
                self._seconds[name] += time.perf_counter() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _export(self, tracer: profile) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        tracer.export_chrome_trace(str(self._path))
        self._traced = True
        if self._device.type == "cuda":
            events = tracer.key_averages()
            copies = sum(one.self_device_time_total for one in events if "Memcpy HtoD" in one.key)
            everything = sum(one.self_device_time_total for one in events)
            self._copy_share = copies / everything if everything else 0.0


def _schedule(step: int) -> ProfilerAction:
    """Trace some steps once, after the first ones, which are not like the others."""
    if step < WAIT_STEPS:
        return ProfilerAction.NONE
    if step < WAIT_STEPS + WARM_UP_STEPS:
        return ProfilerAction.WARMUP
    last = WAIT_STEPS + WARM_UP_STEPS + TRACED_STEPS - 1
    if step < last:
        return ProfilerAction.RECORD
    return ProfilerAction.RECORD_AND_SAVE if step == last else ProfilerAction.NONE


class _TimedSource:
    """A source, with the waiting for each of its batches measured."""

    def __init__(self, source: Source, profile: Profile) -> None:
        self._source, self._profile = source, profile

    @property
    def rows(self) -> int:
        return self._source.rows

    def epoch(self, number: int, start: int = 0) -> Iterable[Batch]:
        batches = iter(self._source.epoch(number, start))
        while True:
            with self._profile.phase("feed"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class _TimedOptimizer:
    """An optimizer, with its updates measured."""

    def __init__(self, optimizer: Any, profile: Profile) -> None:  # noqa: ANN401
        self._optimizer, self._profile = optimizer, profile

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._optimizer, name)

    def step(self) -> None:
        with self._profile.phase("optimizer"):
            self._optimizer.step()
