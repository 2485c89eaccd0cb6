"""A training from end to end: wires store, stream, model, loop, checkpoint and tracking."""

import contextlib
import dataclasses
import datetime
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.database import identifier
from featurestore.errors import SpecError, TrainingError
from featurestore.store import FeatureStore
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import TrainConfig
from training.loop import Callback, EpochResult, Trainer, evaluate, fit
from training.metrics import Scores
from training.models import ArticleMLP
from training.objective import Objective, objective_for
from training.stream import SplitStream
from training.tracking import TrackedRun, track

EVAL_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class TrainResult:
    """What a training did and where it left its model."""

    snapshot: str
    fingerprint: str
    device: str
    epochs: Sequence[EpochResult]
    best_epoch: int
    test: Scores | None  # of the best epoch; None where the test split is empty
    checkpoint: Path
    tracked: TrackedRun | None
    example: Mapping[str, str]  # raw values of one example, by column

    @property
    def rows_per_second(self) -> float:
        """Training rows a second over all epochs, validation not counted."""
        return sum(epoch.rows for epoch in self.epochs) / sum(epoch.seconds for epoch in self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "snapshot": self.snapshot,
            "fingerprint": self.fingerprint,
            "device": self.device,
            "epochs": [epoch.to_dict() for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "test": self.test and self.test.to_dict(),
            "rows_per_second": self.rows_per_second,
            "checkpoint": str(self.checkpoint),
            "tracked": self.tracked and dataclasses.asdict(self.tracked),
        }


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train a model on a snapshot, keep its best epoch, and evaluate that one on the test split.

    The same config on the same snapshot gives the same losses on a CPU, also where a training resumes.

    Raises:
        NotFound: there is no such store, snapshot or checkpoint.
        ArtifactError: the snapshot or the checkpoint to resume is damaged.
        FingerprintError: the checkpoint to resume was made with another spec than the snapshot.
        TrainingError: the train split is empty, the loss stopped being a number, or MLflow failed.
    """
    with FeatureStore(config.store, config.snapshot) as store, _threads(config.threads):
        session = _Session(config, store)
        if not config.tracking:
            return session.result(session.fit(callbacks), None)
        with track(store, config) as tracker:
            result = session.result(session.fit([*callbacks, tracker]), tracker.run)
            tracker.finish(result.epochs, result.test, result.checkpoint, result.example)
            return result


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Session:
    """A model, what trains it and what it is trained on."""

    def __init__(self, config: TrainConfig, store: FeatureStore) -> None:
        if not store.splits.rows["train"]:
            raise TrainingError(f"the train split of {store!r} is empty: `slotstore splits` shows its rule")
        self.config, self.store, self.device = config, store, config.torch_device()
        self.objective = objective_for(store.spec.label)
        self.model = _seeded_model(store, self.objective, config.seed).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.resumed = self._resume(config.resume) if config.resume else None
        folder = config.checkpoint_dir or config.folder / "checkpoints" / _folder_name(config)
        self.path = folder / "best.pt"

    def _resume(self, path: Path) -> Checkpoint:
        checkpoint = load_checkpoint(path, self.device)
        checkpoint.check_fits(self.store.snapshot)
        if checkpoint.epoch >= self.config.epochs:
            raise SpecError("train", [f"--epochs must be above the {checkpoint.epoch} that {path} has had"])
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        for group in self.optimizer.param_groups:  # what was asked for now, not then
            group.update(lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        return checkpoint

    def fit(self, callbacks: Sequence[Callback]) -> list[EpochResult]:
        """Train all epochs."""
        batches = self._stream("train", self.config.batch_size, shuffle=True)
        validation = self._stream("validation", EVAL_BATCH_ROWS)
        return fit(
            Trainer(self.model, self.optimizer, self.objective, callbacks),
            batches,
            (lambda: self._evaluate(validation)) if validation.rows else None,
            epochs=range(self.resumed.epoch + 1 if self.resumed else 1, self.config.epochs + 1),
            patience=self.config.patience,
            best=self.resumed.score if self.resumed else math.inf,
            save=self._save,
        )

    def _stream(self, split: str, batch_size: int, *, shuffle: bool = False) -> SplitStream:
        config = self.config
        return SplitStream(
            self.store,
            split,
            batch_size,
            seed=config.seed,
            shuffle=shuffle,
            buffer_rows=config.buffer_rows,
            device=self.device,
        )

    def _evaluate(self, stream: SplitStream) -> Scores:
        return evaluate(self.model, stream.epoch(0), self.objective.metrics())

    def _save(self, result: EpochResult) -> None:
        manifest = self.store.snapshot.manifest
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            epoch=result.epoch,
            score=result.score,
            config=self.config.to_dict(),
            spec=self.store.spec.to_dict(),
            fingerprint=manifest.fingerprint,
            snapshot=manifest.id,
        )
        save_checkpoint(self.path, checkpoint)

    def result(self, epochs: list[EpochResult], tracked: TrackedRun | None) -> TrainResult:
        """Evaluate the best epoch, which may be the one resumed from, and sum up."""
        improved = any(epoch.best for epoch in epochs)
        path = self.path if improved or not self.config.resume else self.config.resume
        best = load_checkpoint(path, self.device)
        self.model.load_state_dict(best.model)
        test = self._stream("test", EVAL_BATCH_ROWS)
        return TrainResult(
            snapshot=self.store.snapshot.manifest.id,
            fingerprint=best.fingerprint,
            device=str(self.device),
            epochs=epochs,
            best_epoch=best.epoch,
            test=self._evaluate(test) if test.rows else None,
            checkpoint=path,
            tracked=tracked,
            example=_example(self.store),
        )


def _seeded_model(store: FeatureStore, objective: Objective, seed: int) -> ArticleMLP:
    """Build the model on the CPU, so that a seed gives the same one on every device."""
    bias = objective.constant(_mean_label(store))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ArticleMLP(store.spec, bias)


def _mean_label(store: FeatureStore) -> float:
    """Return the mean label of the train split: a rating, or the share of positives."""
    label, column = store.spec.label, identifier(store.spec.label.column)
    value = f"({column} >= {label.threshold})::INTEGER" if label.is_binary else column
    mean: float = store.sql(f"SELECT avg({value}) AS mean FROM train")["mean"][0].as_py()  # noqa: S608
    return mean


def _folder_name(config: TrainConfig) -> str:
    """Return a name that no other run has: the time in UTC, a few random digits, the run's own name."""
    now = datetime.datetime.now(datetime.UTC)
    return "-".join(filter(None, [f"{now:%Y%m%d-%H%M%S}", secrets.token_hex(2), config.run_name]))


def _example(store: FeatureStore) -> dict[str, str]:
    """Return the raw values of one example, by column."""
    columns = dict.fromkeys(identifier(feature.column) for feature in store.spec.features)
    (row,) = store.sql(f"SELECT {', '.join(columns)} FROM examples LIMIT 1").to_pylist()  # noqa: S608
    return {name: "" if value is None else str(value) for name, value in row.items()}
