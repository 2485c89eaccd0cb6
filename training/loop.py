"""The training loop: epochs, validation, early stopping. It knows nothing of stores, files or MLflow."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from featurestore.errors import TrainingError
from training.metrics import Metrics, Scores
from training.objective import Objective
from training.stream import Batch

LOOK_STEPS = 50
"""Steps between looks at the losses. A look waits for the device, so there is none at every step."""

Step = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Trains on slots (b, L) and labels (b,), part of a batch of so many rows on all ranks; returns this part's
share of the mean loss, a float32 () still on the device."""


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


@dataclass
class TrainState:
    """How far a training has come: all that a resumed one must know besides the model and its optimizer.

    epoch: the one in progress, from 1.
    rows: of it, how many have been trained on, by all ranks.
    loss: their summed loss, up to the last look.
    seconds: spent on them.
    history: the epochs before.
    recent: losses and rows of the steps since the last look; empty where a state is saved.
    """

    epoch: int = 1
    rows: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    history: list[EpochResult] = field(default_factory=list)
    recent: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The best score so far, infinite before there is one."""
        return min((result.score for result in self.history if result.best), default=math.inf)

    @property
    def without_gain(self) -> int:
        """How many epochs in a row, up to now, were not the best."""
        bests = [index for index, result in enumerate(self.history) if result.best]
        return len(self.history) - 1 - bests[-1] if bests else len(self.history)

    def end_epoch(self, result: EpochResult) -> None:
        """Go on to the next epoch."""
        self.history.append(result)
        self.epoch, self.rows, self.loss, self.seconds = result.epoch + 1, 0, 0.0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the losses must have been looked at."""
        assert not self.recent
        return {**dataclasses.asdict(self), "recent": []}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "TrainState":
        """Return the state that `to_dict` was called on."""
        history = [
            EpochResult(**{**result, **{name: result[name] and Scores(**result[name]) for name in _SCORES}})
            for result in plain["history"]
        ]
        return cls(**{**plain, "history": history})


_SCORES = ("train", "validation")


class Source(Protocol):
    """What is trained on: `training.stream.SplitStream`, or anything that gives batches by epoch."""

    @property
    def rows(self) -> int:
        """Rows of an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterable[Batch]:
        """Return the batches of an epoch from row ``start`` on."""


class Callback(Protocol):
    """Follows a training, to show or to record it."""

    def on_note(self, text: str) -> None:
        """Hear of something a person should know."""

    def on_start(self, rows: int) -> None:
        """Hear that training begins: the rows of an epoch."""

    def on_step(self, epoch: int, rows: int, loss: torch.Tensor) -> None:
        """Hear of a step: the epoch's rows so far, and the batch's loss, still on the device."""

    def on_epoch(self, result: EpochResult) -> None:
        """Hear of an epoch's end."""


class Keeper(Protocol):
    """Keeps states, so that a training can be resumed and its best epoch be used."""

    def due(self, state: TrainState) -> bool:
        """Whether the state of this step should be kept, or the training has been asked to stop."""

    def keep(self, state: TrainState) -> None:
        """Keep the state; it raises `Interrupted` where the training has been asked to stop."""

    def keep_best(self, state: TrainState) -> None:
        """Keep the model of the epoch that has just ended: it is the best so far."""

    def end_epoch(self, state: TrainState, *, last: bool) -> None:
        """Hear of an epoch's end, after it was validated; of the last one, the state must be kept."""


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Trainer:
    """A model with what trains it. Parameters and optimizer state are the only things that change.

    step: trains on a batch.
    sum_over_ranks: adds up a tensor over the processes that train together.
    end_epoch: is called after the last step of an epoch.
    """

    model: nn.Module
    step: Step
    objective: Objective
    callbacks: Sequence[Callback] = ()
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] = _itself
    end_epoch: Callable[[], None] = _nothing


def fit(
    trainer: Trainer,
    source: Source,
    validate: Callable[[], Scores] | None,
    *,
    epochs: int,
    patience: int,
    state: TrainState,
    keeper: Keeper,
) -> list[EpochResult]:
    """Train until ``epochs`` are done or ``patience`` epochs in a row were not the best.

    Args:
        trainer: the model and what trains it, in place.
        source: gives the batches of each epoch.
        validate: evaluates the model after an epoch; None where there is nothing to validate on.
        epochs: how many are to be done in all, those of ``state`` included.
        patience: epochs without improvement that end the training.
        state: where to begin; it is kept up to date.
        keeper: keeps states.

    Raises:
        TrainingError: the loss is not a finite number any more.
    """
    for callback in trainer.callbacks:
        callback.on_start(source.rows)
    ended = False
    while not ended:
        train_epoch(trainer, source, state, keeper)
        result = _result(trainer, state, validate)
        state.end_epoch(result)
        if result.best:
            keeper.keep_best(state)
        for callback in trainer.callbacks:
            callback.on_epoch(result)
        ended = state.epoch > epochs or state.without_gain >= patience
        keeper.end_epoch(state, last=ended)
    return state.history


def _result(trainer: Trainer, state: TrainState, validate: Callable[[], Scores] | None) -> EpochResult:
    trained = trainer.objective.scores(state.loss / state.rows)
    result = EpochResult(
        state.epoch, trained, validate() if validate else None, state.rows, state.seconds, best=False
    )
    if not math.isfinite(result.score):
        raise TrainingError(f"the validation loss of epoch {state.epoch} is {result.score}{_REMEDY}")
    return dataclasses.replace(result, best=result.score < state.best)


def train_epoch(trainer: Trainer, source: Source, state: TrainState, keeper: Keeper | None = None) -> None:
    """Train on each batch that is left of the state's epoch once.

    Raises:
        TrainingError: the loss is not a finite number any more, or there was no batch.
    """
    trainer.model.train()
    started = time.perf_counter() - state.seconds
    for slots, labels, total in source.epoch(state.epoch, state.rows):
        loss = trainer.step(slots, labels, total)
        state.recent.append((loss, total))
        state.rows += total
        if len(state.recent) == LOOK_STEPS:
            look(trainer, state)
        for callback in trainer.callbacks:
            callback.on_step(state.epoch, state.rows, loss)
        if keeper is not None and keeper.due(state):
            look(trainer, state)
            state.seconds = time.perf_counter() - started
            keeper.keep(state)
    if not state.rows:
        raise TrainingError("there are no rows to train on")
    look(trainer, state)
    trainer.end_epoch()
    state.seconds = time.perf_counter() - started


def look(trainer: Trainer, state: TrainState) -> None:
    """Wait for the losses of the last steps and add them up, one by one: when it is done changes no bit.

    Raises:
        TrainingError: one is not a finite number; the message names its batch.
    """
    if not state.recent:
        return
    losses = trainer.sum_over_ranks(torch.stack([loss for loss, _ in state.recent])).tolist()
    first = state.rows - sum(rows for _, rows in state.recent)
    for loss, (_, rows) in zip(losses, state.recent, strict=True):
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in the batch of rows {first:,} to {first + rows - 1:,} "
                f"of the order of epoch {state.epoch}{_REMEDY}"
            )
        state.loss += loss * rows
        first += rows
    state.recent.clear()


_REMEDY = ": lower the learning rate (--lr), or limit gradients (--clip-norm); checkpoints of before are kept"


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    metrics: Metrics,
    gather: Callable[[torch.Tensor], torch.Tensor] = _itself,
) -> Scores:
    """Return the metrics of a model over batches; ValueError where there is none.

    ``gather`` brings together the scores, and the labels, of the processes that evaluate together.
    """
    model.eval()
    for slots, labels, _ in batches:
        metrics.update(gather(model(slots)), gather(labels))
    return metrics.compute()
