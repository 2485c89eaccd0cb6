"""When the state of a training is kept, and how."""

import math
import signal
import time
from collections.abc import Callable

import torch

from featurestore.errors import Interrupted, TrainingError
from training.checkpoint import Checkpoint
from training.interrupt import StopRequest
from training.loop import TrainState
from training.run_folder import RunFolder, at
from training.world import World

EPOCH_SHARE = 0.05
"""Of the time, the most that keeping states at the ends of epochs may take; the last state is always kept."""


class CheckpointKeeper:
    """Keeps states in a run's folder: every so many seconds, at the end of an epoch, when asked to stop.

    Where several ranks train together they agree on when; all make the checkpoint, and rank 0 writes it.

    Args:
        folder: where they go.
        make: makes the checkpoint of a state, on rank 0; None on others.
        seconds: between two checkpoints within an epoch.
        stop: says when the training was asked to stop.
        resume_command: what a person types to go on.
        world: the ranks that train together.
    """

    def __init__(
        self,
        folder: RunFolder,
        make: Callable[[TrainState], Checkpoint | None],
        *,
        seconds: float,
        stop: StopRequest,
        resume_command: str,
        world: World,
    ) -> None:
        self.folder, self._make, self._seconds, self._stop = folder, make, seconds, stop
        self._resume_command, self._world = resume_command, world
        self._saved, self._took = time.monotonic(), 0.0
        self._all_stop: signal.Signals | None = None

    def due(self, state: TrainState) -> bool:
        """Whether the last checkpoint is old, or the training was asked to stop.

        Several ranks ask each other, and so only at looks, which they all have at the same steps.
        """
        if self._world.size > 1 and state.recent:
            return False
        return self._agreed(self.stopping or time.monotonic() - self._saved >= self._seconds)

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to stop."""
        return self._stop.signal is not None

    def _agreed(self, wanted: bool) -> bool:  # noqa: FBT001
        wanted, interrupted, terminated = self._world.any_of(
            [wanted, self._stop.signal is signal.SIGINT, self._stop.signal is signal.SIGTERM]
        )
        if interrupted or terminated:
            self._all_stop = signal.SIGINT if interrupted else signal.SIGTERM
        return wanted

    def keep(self, state: TrainState) -> None:
        """Write last.pt; where the training was asked to stop, raise Interrupted, which says how to go on."""
        self._write(state)
        number = self._stop.signal if self._world.size == 1 else self._all_stop
        if number is not None and self._world.rank:
            raise Interrupted(f"rank {self._world.rank} stopped with the others")
        if number is not None:
            raise Interrupted(
                f"stopped by {number.name} at {at(state.epoch, state.rows)}: {self.folder.last}\n"
                f"Go on with: {self._resume_command}"
            )

    def _write(self, state: TrainState) -> None:
        started = time.monotonic()
        checkpoint = self._intact(state)
        if checkpoint is not None:
            self.folder.save_last(checkpoint)
        self._saved = time.monotonic()
        self._took = self._saved - started

    def keep_best(self, state: TrainState) -> None:
        """Write best.pt."""
        checkpoint = self._intact(state)
        if checkpoint is not None:
            self.folder.save_best(checkpoint)

    def end_epoch(self, state: TrainState, *, last: bool) -> None:
        """Write last.pt, unless epochs are so short that this would slow them down; see `keep`.

        A training that has just ended is not stopped any more.
        """
        if last:
            self._write(state)
        elif self._agreed(
            self.stopping
            or state.history[-1].best  # so that best.pt is of the state's best epoch, or of the next one
            or self._took <= EPOCH_SHARE * (time.monotonic() - self._saved)
        ):
            self.keep(state)

    def _intact(self, state: TrainState) -> Checkpoint | None:
        """Return a checkpoint, unless a weight is no number: the last good one must stay."""
        checkpoint = self._make(state)
        if checkpoint is None:
            return None
        if wrong := [name for name, weights in checkpoint.model.items() if not _finite(weights)]:
            raise TrainingError(
                f"{wrong[0]} of the model is no number any more at {at(state.epoch, state.rows)}: lower the "
                "learning rate (--lr), or limit gradients (--clip-norm); checkpoints of before are in "
                f"{self.folder.path}"
            )
        return checkpoint


def _finite(weights: torch.Tensor) -> bool:
    """Whether all are finite, without a copy of a large table: one that is not makes an extreme so."""
    if not weights.is_floating_point() or not weights.numel():
        return True
    low, high = weights.aminmax()
    return math.isfinite(float(low)) and math.isfinite(float(high))
