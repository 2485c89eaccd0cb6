"""A training from end to end."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.database import identifier
from featurestore.reslot import reslot
from featurestore.store import FeatureStore
from training.config import TrainConfig
from training.loop import Callback, EpochResult
from training.memory_error import explain_memory
from training.metrics import Scores
from training.profiling import ProfileResult
from training.resuming import Resumed
from training.session import Session
from training.tracking import TrackedRun, track
from training.world import World, join_world

NOTE_SECONDS = 10.0
"""Between two notes of how far a long preparation has come: often enough to know that it goes on."""


@dataclass(frozen=True)
class TrainResult:
    """What a training did and where it left its model; the same on every rank."""

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
    profile: ProfileResult | None = None
    rank: int = 0

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
            "profile": self.profile and self.profile.to_dict(),
        }


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train a model on a snapshot, keep its best epoch, and evaluate that one on the test split.

    The same config on the same snapshot gives the same weights on a CPU, bit for bit, also where a training
    was killed and resumed. Started by torchrun, it is one rank of several that train one model together;
    rank 0 alone has callbacks, a record and checkpoints. Where the config asks for another size of the table,
    a snapshot of that size is made of its own, or found; the newest one stays the newest.

    Raises:
        NotFound: there is no such store, snapshot, run or checkpoint.
        ArtifactError: the snapshot or the checkpoint to resume is damaged, or the store cannot be written.
        StoreBusy: another process writes to the store, so that no snapshot of another size can be made.
        FingerprintError: the checkpoint to resume was made with another spec than the snapshot.
        SpecError: settings do not go together, or the checkpoint to resume cannot be gone on with as asked.
        TrainingError: the train split is empty, the loss stopped being a number, memory ran out, another rank
            was lost, or MLflow failed.
        Interrupted: it was asked to stop, and has kept its state.
    """
    config.check()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(config.threads))
        world, device = stack.enter_context(join_world(config.torch_device()))
        heard = list(callbacks) if world.rank == 0 else []
        store = stack.enter_context(FeatureStore(config.store, _snapshot(config, world, _notes(heard))))
        stack.enter_context(explain_memory(config, store.spec))
        stack.enter_context(_random_state(device))
        resumed = Resumed.load(config, _notes(heard)) if config.resume is not None else None
        session = Session(config, store, device, world, resumed, heard, stack)
        if not config.tracking or world.rank:
            return _result(session, session.fit(heard, None), None)
        tracker = stack.enter_context(track(store, config, resumed.checkpoint.tracked if resumed else None))
        result = _result(session, session.fit([*heard, tracker], tracker.run), tracker.run)
        tracker.finish(result.epochs, result.test, result.checkpoint, result.example, result.profile)
        return result


def _snapshot(config: TrainConfig, world: World, note: Callable[[str], None]) -> str:
    """Return which snapshot to train on; where another size is asked for, rank 0 makes it for all ranks."""
    if config.num_slots is None and not config.lookups:
        return config.snapshot
    return world.share_text(config.snapshot if world.rank else _reslotted(config, note))


def _reslotted(config: TrainConfig, note: Callable[[str], None]) -> str:
    """Make the snapshot of the size that the config asks for, or find it; return its id."""
    found = reslot(
        config.store,
        config.snapshot,
        num_slots=config.num_slots,
        lookups=config.lookups,
        newest=False,
        progress=_shards_told(note),
    )
    note(str(found))
    return found.snapshot.manifest.id


def _shards_told(note: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return a function that notes how many shards are re-slotted: of the first, then now and then."""
    told = 0.0

    def follow(done: int, shards: int) -> None:
        nonlocal told
        now = time.monotonic()
        if not done:
            note(f"re-slotting, shards: {shards:,}. It is done once: the snapshot is found from then on")
        elif done < shards and now - told >= NOTE_SECONDS:
            note(f"re-slotted {done:,} of {shards:,} shards")
        else:
            return
        told = now

    return follow


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


def _notes(callbacks: Sequence[Callback]) -> Callable[[str], None]:
    """Return a function that tells them all."""

    def note(text: str) -> None:
        for callback in callbacks:
            callback.on_note(text)

    return note


def _result(session: Session, epochs: list[EpochResult], tracked: TrackedRun | None) -> TrainResult:
    """Evaluate the best epoch, which may be one before those trained now, and sum up."""
    profile = session.profiled()
    best = session.load_best()
    return TrainResult(
        snapshot=session.store.snapshot.manifest.id,
        fingerprint=best.fingerprint,
        device=str(session.device),
        feed=str(session.feed),
        epochs=epochs,
        best_epoch=best.epoch,
        test=session.test(),
        checkpoint=session.folder.best,
        tracked=tracked,
        example=_example(session.store),
        profile=profile,
        rank=session.world.rank,
    )


def _example(store: FeatureStore) -> dict[str, str]:
    """Return the raw values of one example, by column."""
    columns = dict.fromkeys(identifier(feature.column) for feature in store.spec.features)
    (row,) = store.sql(f"SELECT {', '.join(columns)} FROM examples LIMIT 1").to_pylist()  # noqa: S608
    return {name: "" if value is None else str(value) for name, value in row.items()}
