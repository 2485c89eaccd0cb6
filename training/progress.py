"""A training as a person follows it: a bar on stderr while it runs, a line an epoch, a table at the end."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import rich.progress
import torch
from rich.console import Console

from featurestore.output import table_text
from training.loop import EpochResult

REDRAW_SECONDS = 0.25
"""Time between looks at the loss, each of which waits for the device."""


class Progress:
    """A callback that shows rows, rows/s and loss on stderr; the bar only where that is a terminal."""

    def __init__(self, epochs: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._epochs = epochs
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[facts]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("reading", total=None, facts="")
        self._started, self._drawn = 0.0, 0.0
        self._epoch, self._rows, self._first = 0, 0, 0  # the epoch shown, its rows, those before we looked

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_note(self, text: str) -> None:
        """Print what a person should know."""
        self._console.print(text, markup=False)

    def on_start(self, rows: int) -> None:
        """Note how long the bar is: all epochs, though the training may end before."""
        self._rows = rows
        self._bar.update(self._task, total=rows * self._epochs)

    def on_step(self, epoch: int, rows: int, loss: torch.Tensor) -> None:
        """Redraw the bar, a few times a second."""
        now = time.perf_counter()
        if epoch != self._epoch:
            self._epoch, self._started, self._first = epoch, now, rows
        if now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        speed = (rows - self._first) / max(now - self._started, 1e-9)
        self._bar.update(
            self._task,
            description=f"epoch {epoch}/{self._epochs}",
            completed=(epoch - 1) * self._rows + rows,
            facts=f"{rows:,} rows  {speed:,.0f} rows/s  loss {float(loss):.4f}",
        )

    def on_epoch(self, result: EpochResult) -> None:
        """Print the epoch's line."""
        validation = f"  validation {result.validation}" if result.validation else ""
        self._console.print(
            f"epoch {result.epoch}/{self._epochs}  train {result.train}{validation}  "
            f"{result.rows_per_second:,.0f} rows/s{'  best so far' if result.best else ''}"
        )


def epoch_table(epochs: Sequence[EpochResult]) -> str:
    """Return a table with a row an epoch."""
    train = list(epochs[0].train.values)
    validation = list(epochs[0].validation.values) if epochs[0].validation else []
    names = ["epoch", *(f"train {name}" for name in train), *(f"validation {name}" for name in validation)]
    rows = [
        [
            str(epoch.epoch),
            *(f"{epoch.train.values[name]:.4f}" for name in train),
            *(f"{epoch.validation.values[name]:.4f}" for name in validation if epoch.validation),
            f"{epoch.rows_per_second:,.0f}",
            "best so far" if epoch.best else "",
        ]
        for epoch in epochs
    ]
    return table_text([*names, "rows/s", ""], rows)
