"""A training from end to end: wires store, stream, model, loop, checkpoint and tracking."""

import contextlib
import dataclasses
import functools
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.database import identifier
from featurestore.errors import FingerprintError, SpecError, TrainingError
from featurestore.store import FeatureStore
from training.checkpoint import Checkpoint, load_checkpoint, random_states, restore_random_states
from training.config import TrainConfig
from training.feed import choose_feed
from training.interrupt import StopRequest
from training.keeper import CheckpointKeeper
from training.loop import Callback, EpochResult, Trainer, TrainState, evaluate, fit
from training.memory_error import explain_memory
from training.metrics import Scores
from training.models import build_model
from training.objective import Objective, objective_for
from training.optimizers import build_optimizer
from training.run_folder import RunFolder, describe, find_run, new_run
from training.step import make_step
from training.stream import Batch, SplitStream
from training.tracking import TrackedRun, track

EVAL_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class TrainResult:
    """What a training did and where it left its model."""

    snapshot: str
    fingerprint: str
    device: str
    feed: str
    epochs: Sequence[EpochResult]  # of a resumed training, those before too
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
            "feed": self.feed,
            "epochs": [epoch.to_dict() for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "test": self.test and self.test.to_dict(),
            "rows_per_second": self.rows_per_second,
            "checkpoint": str(self.checkpoint),
            "tracked": self.tracked and dataclasses.asdict(self.tracked),
        }


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train a model on a snapshot, keep its best epoch, and evaluate that one on the test split.

    The same config on the same snapshot gives the same weights on a CPU, bit for bit, also where a training
    was killed and resumed.

    Raises:
        NotFound: there is no such store, snapshot, run or checkpoint.
        ArtifactError: the snapshot or the checkpoint to resume is damaged.
        FingerprintError: the checkpoint to resume was made with another spec than the snapshot.
        TrainingError: the train split is empty, the loss stopped being a number, memory ran out, or MLflow
            failed.
        Interrupted: it was asked to stop, and has kept its state.
    """
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(FeatureStore(config.store, config.snapshot))
        stack.enter_context(_threads(config.threads))
        stack.enter_context(_random_state(config.torch_device()))
        stack.enter_context(explain_memory(config, store.spec))
        resumed = _Resumed.load(config, callbacks) if config.resume else None
        session = _Session(config, store, resumed, stack, callbacks)
        if not config.tracking:
            return session.result(session.fit(callbacks, None), None)
        tracker = stack.enter_context(track(store, config, resumed.checkpoint.tracked if resumed else None))
        result = session.result(session.fit([*callbacks, tracker], tracker.run), tracker.run)
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


@contextlib.contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's generators, of the CPU and of the device, as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@dataclass(frozen=True)
class _Resumed:
    """What a training goes on from."""

    checkpoint: Checkpoint
    what: str  # for a person
    folder: RunFolder  # where it was

    @classmethod
    def load(cls, config: TrainConfig, callbacks: Sequence[Callback]) -> "_Resumed":
        assert config.resume is not None
        found = find_run(config.resume, config.folder / "checkpoints")
        if isinstance(found, Path):
            return cls(load_checkpoint(found), str(found), RunFolder(found.parent))
        return cls(found.load_last(lambda text: _note(callbacks, text)), f"run {found.path}", found)

    def check(self, config: TrainConfig, store: FeatureStore) -> None:
        """Raise where the training cannot go on with this config on this snapshot."""
        checkpoint, snapshot = self.checkpoint, store.snapshot.manifest.id
        checkpoint.check_fits(store.snapshot)
        config.check_kept(checkpoint.config, self.what)
        if checkpoint.rows and checkpoint.snapshot != snapshot:
            raise FingerprintError(
                f"{self.what} is {checkpoint.rows:,} rows into an epoch of snapshot {checkpoint.snapshot}, which "
                f"snapshot {snapshot} cannot go on with: give --snapshot {checkpoint.snapshot}, or the best.pt "
                "beside it, which is of an epoch's end."
            )
        state = TrainState.from_dict(checkpoint.state)
        if checkpoint.epoch >= config.epochs:
            raise SpecError(
                "train", [f"--epochs must be above the {checkpoint.epoch} that {self.what} has had"]
            )
        if state.without_gain >= config.patience:
            raise SpecError(
                "train",
                [
                    f"--patience must be above the {state.without_gain} epochs without a gain that ended {self.what}"
                ],
            )


def load_resumed_config(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """Return the settings to resume ``config.resume`` with: the run's own, but for those ``given`` now.

    Raises:
        NotFound, ArtifactError: there is no such run, or none of its checkpoints is intact.
    """
    checkpoint = _Resumed.load(config, ()).checkpoint
    settings = config.resumed(checkpoint.config, given)
    if "snapshot" in given:
        return settings
    return dataclasses.replace(settings, snapshot=checkpoint.snapshot)


def _note(callbacks: Sequence[Callback], text: str) -> None:
    for callback in callbacks:
        callback.on_note(text)


class _Session:
    """A model, what trains it and what it is trained on."""

    def __init__(
        self,
        config: TrainConfig,
        store: FeatureStore,
        resumed: _Resumed | None,
        stack: contextlib.ExitStack,
        callbacks: Sequence[Callback],
    ) -> None:
        if not store.splits.rows["train"]:
            raise TrainingError(f"the train split of {store!r} is empty: `slotstore splits` shows its rule")
        self.config, self.store, self.device = config, store, config.torch_device()
        self._stack = stack
        if resumed:
            resumed.check(config, store)
        self.feed = choose_feed(config.feed, store, self.device, config.window_rows)
        _note(callbacks, f"feed {self.feed}")
        self.objective = objective_for(store.spec.label)
        self.model = _seeded_model(config, store, self.objective).to(self.device)
        self.optimizer = build_optimizer(
            self.model,
            config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            table_lr=config.table_learning_rate,
            capturable=config.step == "graph",
        )
        self.state = self._restore(resumed, callbacks) if resumed else TrainState()
        self.folder = self._run_folder(resumed)

    def _run_folder(self, resumed: _Resumed | None) -> RunFolder:
        """Return where checkpoints go; a resumed run goes on in its folder, or takes its best model along."""
        config = self.config
        if config.checkpoint_dir is None:
            return resumed.folder if resumed else new_run(config.folder / "checkpoints", config.run_name)
        folder = RunFolder(config.checkpoint_dir)
        if resumed and resumed.folder.best.exists() and not folder.best.exists():
            folder.path.mkdir(parents=True, exist_ok=True)
            shutil.copy(resumed.folder.best, folder.best)
        return folder

    def _restore(self, resumed: _Resumed, callbacks: Sequence[Callback]) -> TrainState:
        checkpoint = resumed.checkpoint
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        for group in self.optimizer.param_groups:  # what was asked for now, not then
            group.update(lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        restore_random_states(checkpoint.random)
        _note(callbacks, f"resuming {resumed.what} at {describe(checkpoint)}")
        return TrainState.from_dict(checkpoint.state)

    def fit(self, callbacks: Sequence[Callback], tracked: TrackedRun | None) -> list[EpochResult]:
        """Train all epochs."""
        config = self.config
        batches = self._stream("train", config.batch_size, shuffle=True)
        validation = self._stream("validation", EVAL_BATCH_ROWS)
        batches.prepare()
        step = make_step(config.step, self.model, self.optimizer, self.objective, precision=config.precision)
        with StopRequest() as stop:
            keeper = CheckpointKeeper(
                self.folder,
                functools.partial(self._checkpoint, tracked=tracked),
                seconds=config.checkpoint_seconds,
                stop=stop,
                resume_command=self._resume_command(),
            )
            return fit(
                Trainer(self.model, step, self.objective, callbacks),
                batches,
                (lambda: self._validate(validation, keeper)) if validation.rows else None,
                epochs=config.epochs,
                patience=config.patience,
                state=self.state,
                keeper=keeper,
            )

    def _resume_command(self) -> str:
        words = ["slotstore", "train", "--store", str(self.config.store), "--resume", str(self.folder.path)]
        return shlex.join(words)

    def _stream(self, split: str, batch_size: int, *, shuffle: bool = False) -> SplitStream:
        config = self.config
        stream = SplitStream(
            self.store,
            split,
            batch_size,
            seed=config.seed,
            shuffle=shuffle,
            feed=self.feed.feed,
            window_rows=config.window_rows,
            device=self.device,
        )
        self._stack.callback(stream.close)
        return stream

    def _validate(self, stream: SplitStream, keeper: CheckpointKeeper) -> Scores:
        def batches() -> Iterator[Batch]:
            for batch in stream.epoch(0):
                if keeper.stopping:
                    keeper.keep(self.state)  # at the end of the epoch, not yet validated
                yield batch

        return evaluate(self.model, batches(), self.objective.metrics())

    def _checkpoint(self, state: TrainState, tracked: TrackedRun | None) -> Checkpoint:
        manifest = self.store.snapshot.manifest
        return Checkpoint(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            state=state.to_dict(),
            random=random_states(),
            config=self.config.to_dict(),
            spec=self.store.spec.to_dict(),
            fingerprint=manifest.fingerprint,
            snapshot=manifest.id,
            tracked=tracked and dataclasses.asdict(tracked),
        )

    def result(self, epochs: list[EpochResult], tracked: TrackedRun | None) -> TrainResult:
        """Evaluate the best epoch, which may be one before those trained now, and sum up."""
        best = load_checkpoint(self.folder.best, self.device)
        self.model.load_state_dict(best.model)
        test = self._stream("test", EVAL_BATCH_ROWS)
        return TrainResult(
            snapshot=self.store.snapshot.manifest.id,
            fingerprint=best.fingerprint,
            device=str(self.device),
            feed=str(self.feed),
            epochs=epochs,
            best_epoch=best.epoch,
            test=evaluate(self.model, test.epoch(0), self.objective.metrics()) if test.rows else None,
            checkpoint=self.folder.best,
            tracked=tracked,
            example=_example(self.store),
        )


def _seeded_model(config: TrainConfig, store: FeatureStore, objective: Objective) -> torch.nn.Module:
    """Build the model on the CPU, so that a seed gives the same one on every device."""
    bias = objective.constant(_mean_label(store))
    torch.manual_seed(config.seed)
    return build_model(config.model, store.spec, bias, sparse=config.optimizer != "adam")


def _mean_label(store: FeatureStore) -> float:
    """Return the mean label of the train split: a rating, or the share of positives."""
    label, column = store.spec.label, identifier(store.spec.label.column)
    value = f"({column} >= {label.threshold})::INTEGER" if label.is_binary else column
    mean: float = store.sql(f"SELECT avg({value}) AS mean FROM train")["mean"][0].as_py()  # noqa: S608
    return mean


def _example(store: FeatureStore) -> dict[str, str]:
    """Return the raw values of one example, by column."""
    columns = dict.fromkeys(identifier(feature.column) for feature in store.spec.features)
    (row,) = store.sql(f"SELECT {', '.join(columns)} FROM examples LIMIT 1").to_pylist()  # noqa: S608
    return {name: "" if value is None else str(value) for name, value in row.items()}
