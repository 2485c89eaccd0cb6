"""When the state of a training is kept, and how."""

import math
import time
from collections.abc import Callable

import torch

from featurestore.errors import Interrupted, TrainingError
from training.checkpoint import Checkpoint, save_checkpoint
from training.interrupt import StopRequest
from training.loop import TrainState
from training.run_folder import RunFolder, describe

EPOCH_SHARE = 0.05
"""Of the time, the most that keeping states at the ends of epochs may take; the last state is always kept."""


class CheckpointKeeper:
    """Keeps states in a run's folder: every so many seconds, at the end of an epoch, when asked to stop.

    Args:
        folder: where they go.
        make: makes the checkpoint of a state.
        seconds: between two checkpoints within an epoch.
        stop: says when the training was asked to stop.
        resume_command: what a person types to go on.
    """

    def __init__(
        self,
        folder: RunFolder,
        make: Callable[[TrainState], Checkpoint],
        *,
        seconds: float,
        stop: StopRequest,
        resume_command: str,
    ) -> None:
        self.folder, self._make, self._seconds, self._stop = folder, make, seconds, stop
        self._resume_command = resume_command
        self._saved, self._took = time.monotonic(), 0.0

    def due(self, state: TrainState) -> bool:  # noqa: ARG002 - the loop's signature
        """Whether the last checkpoint is old, or the training was asked to stop."""
        return self.stopping or time.monotonic() - self._saved >= self._seconds

    @property
    def stopping(self) -> bool:
        """Whether the training was asked to stop."""
        return self._stop.signal is not None

    def keep(self, state: TrainState) -> None:
        """Write last.pt; where the training was asked to stop, raise Interrupted, which says how to go on."""
        started = time.monotonic()
        checkpoint = self._intact(state)
        self.folder.save_last(checkpoint)
        self._saved = time.monotonic()
        self._took = self._saved - started
        if self._stop.signal is not None:
            raise Interrupted(
                f"stopped by {self._stop.signal.name} at {describe(checkpoint)}: {self.folder.last}\n"
                f"Go on with: {self._resume_command}"
            )

    def keep_best(self, state: TrainState) -> None:
        """Write best.pt."""
        save_checkpoint(self.folder.best, self._intact(state))

    def end_epoch(self, state: TrainState, *, last: bool) -> None:
        """Write last.pt, unless epochs are so short that this would slow them down."""
        if last or self.stopping or self._took <= EPOCH_SHARE * (time.monotonic() - self._saved):
            self.keep(state)

    def _intact(self, state: TrainState) -> Checkpoint:
        """Return a checkpoint, unless a weight is no number: the last good one must stay."""
        checkpoint = self._make(state)
        if wrong := [name for name, weights in checkpoint.model.items() if not _finite(weights)]:
            raise TrainingError(
                f"{wrong[0]} of the model is no number any more at {describe(checkpoint)}: lower the learning "
                f"rate (--lr), or limit gradients (--clip-norm); checkpoints of before are in {self.folder.path}"
            )
        return checkpoint


def _finite(weights: torch.Tensor) -> bool:
    """Whether all are finite, without a copy of a large table: no number, the extremes of others are none either."""
    if not weights.is_floating_point() or not weights.numel():
        return True
    low, high = weights.aminmax()
    return math.isfinite(float(low)) and math.isfinite(float(high))
