"""The training loop: epochs, validation, early stopping. It knows nothing of stores, files or MLflow."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from featurestore.errors import TrainingError
from training.metrics import Metrics, Scores
from training.objective import Objective
from training.stream import Batch

CHECK_STEPS = 200
"""Steps between looks at the loss. A look waits for the device, so there is none at every step."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did."""

    epoch: int  # from 1
    train: Scores  # mean over the epoch's batches, each before its step
    validation: Scores | None  # None where the validation split is empty
    rows: int
    seconds: float  # of the training alone
    best: bool  # the best epoch so far

    @property
    def score(self) -> float:
        """What decides the best epoch, lower being better: validation, or training where there is none."""
        return (self.validation or self.train).loss

    @property
    def rows_per_second(self) -> float:
        """Training rows a second."""
        return self.rows / self.seconds

    def to_dict(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "epoch": self.epoch,
            "train": self.train.to_dict(),
            "validation": self.validation and self.validation.to_dict(),
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second,
            "best": self.best,
        }


class Source(Protocol):
    """What is trained on: `training.stream.SplitStream`, or anything that gives batches by epoch."""

    @property
    def rows(self) -> int:
        """Rows of an epoch."""

    def epoch(self, number: int) -> Iterable[Batch]:
        """Return the batches of an epoch."""


class Callback(Protocol):
    """Follows a training, to show or to record it."""

    def on_start(self, rows: int) -> None:
        """Hear that training begins: the rows of an epoch."""

    def on_step(self, epoch: int, rows: int, loss: torch.Tensor) -> None:
        """Hear of a step: the epoch's rows so far, and the batch's loss, still on the device."""

    def on_epoch(self, result: EpochResult) -> None:
        """Hear of an epoch's end."""


@dataclass(frozen=True)
class Trainer:
    """A model with what trains it. Parameters and optimizer state are the only things that change."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    callbacks: Sequence[Callback] = ()


def fit(
    trainer: Trainer,
    source: Source,
    validate: Callable[[], Scores] | None,
    *,
    epochs: range,
    patience: int,
    best: float = math.inf,
    save: Callable[[EpochResult], None],
) -> list[EpochResult]:
    """Train until ``epochs`` are done or ``patience`` epochs in a row were not the best.

    Args:
        trainer: the model and its optimizer, trained in place.
        source: gives the batches of each epoch.
        validate: evaluates the model after an epoch; None where there is nothing to validate on.
        epochs: the numbers of the epochs to train.
        patience: epochs without improvement that end the training.
        best: the score to beat, where a training is resumed.
        save: called with each epoch that is the best so far, while the model is in its state.

    Raises:
        TrainingError: the loss is not a finite number any more.
    """
    results: list[EpochResult] = []
    without_gain = 0
    for callback in trainer.callbacks:
        callback.on_start(source.rows)
    for epoch in epochs:
        result = _train_and_validate(trainer, source, validate, epoch)
        result = dataclasses.replace(result, best=result.score < best)
        results.append(result)
        if result.best:
            best, without_gain = result.score, 0
            save(result)
        else:
            without_gain += 1
        for callback in trainer.callbacks:
            callback.on_epoch(result)
        if without_gain >= patience:
            break
    return results


def _train_and_validate(
    trainer: Trainer, source: Source, validate: Callable[[], Scores] | None, epoch: int
) -> EpochResult:
    started = time.perf_counter()
    trained, rows = train_epoch(trainer, source.epoch(epoch), epoch)
    seconds = time.perf_counter() - started
    result = EpochResult(epoch, trained, validate() if validate else None, rows, seconds, best=False)
    _check_finite(result.score, epoch, rows)
    return result


def train_epoch(trainer: Trainer, batches: Iterable[Batch], epoch: int) -> tuple[Scores, int]:
    """Train on each batch once; return the scores of the mean loss over the rows, and their number.

    Raises:
        TrainingError: the loss is not a finite number any more, or there was no batch.
    """
    trainer.model.train()
    total, rows = torch.zeros((), dtype=torch.float64), 0
    for step, batch in enumerate(batches, start=1):
        loss = _step(trainer, batch)
        total = total.to(loss.device) + loss.double() * len(batch.labels)
        rows += len(batch.labels)
        if step % CHECK_STEPS == 0:
            _check_finite(float(total), epoch, rows)
        for callback in trainer.callbacks:
            callback.on_step(epoch, rows, loss)
    if not rows:
        raise TrainingError("there are no rows to train on")
    _check_finite(float(total), epoch, rows)
    return trainer.objective.scores(float(total) / rows), rows


def _step(trainer: Trainer, batch: Batch) -> torch.Tensor:
    trainer.optimizer.zero_grad()
    loss = trainer.objective.loss(trainer.model(batch.slots), batch.labels)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    trainer.optimizer.step()
    return loss.detach()


def _check_finite(loss: float, epoch: int, rows: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} within {rows:,} rows of epoch {epoch}: lower the learning rate (--lr)"
        )


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], metrics: Metrics) -> Scores:
    """Return the metrics of a model over batches; ValueError where there is none."""
    model.eval()
    for batch in batches:
        metrics.update(model(batch.slots), batch.labels)
    return metrics.compute()
