"""What a model predicts for the examples of a split, counted in bins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from featurestore.store import FeatureStore
from training.metrics import Scores
from training.networks import Network
from training.objective import objective_for, targets

BATCH_ROWS = 16_384
_LABEL_STEP = 0.5


@dataclass(frozen=True)
class Grid:
    """Bins of one width between two predictions; those beyond are in the outermost."""

    low: float
    high: float
    width: float

    @property
    def last(self) -> int:
        """The number of the last bin, the first being 0."""
        return round((self.high - self.low) / self.width) - 1

    def numbers(self, predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return the bin of each prediction, (n,)."""
        numbers: npt.NDArray[np.int64] = np.floor((predicted - self.low) / self.width).astype(np.int64)
        return numbers.clip(0, self.last)

    def told(self, number: int) -> str:
        """Return what a bin holds, for a person."""
        low = self.low + number * self.width
        if number == self.last and self.high != 1:  # no probability is above 1
            return f"{low:.2f} and more"
        return f"{low:.2f} to {low + self.width:.2f}"


RATINGS, PROBABILITIES = Grid(0.0, 6.0, 0.25), Grid(0.0, 1.0, 0.05)


@dataclass(frozen=True)
class Bin:
    """Predictions from ``low`` to below ``high``, of examples whose label is, to the nearest half, ``label``.

    predicted, labels: the sums of both over the ``examples``. told: the range, for a person.
    """

    label: float
    low: float
    high: float
    told: str
    examples: int
    predicted: float
    labels: float


@dataclass(frozen=True)
class Predictions:
    """A split, its metrics, and its predictions in bins, those of low predictions first."""

    split: str
    examples: int
    scores: Scores
    bins: Sequence[Bin]


@torch.inference_mode()
def count_predictions(
    store: FeatureStore, model: Network, split: str, advance: Callable[[int], None] = lambda _rows: None
) -> Predictions | None:
    """Predict a split and count what comes out; None where it has no examples.

    The split is streamed; where the label is binary 5 bytes are kept of an example, for the AUC.

    Args:
        store: the snapshot.
        model: on the CPU, of the snapshot's spec.
        split: ``train``, ``validation`` or ``test``.
        advance: is told of how many more examples are predicted.
    """
    if not store.splits.rows[split]:
        return None
    label = store.spec.label
    metrics, counts = objective_for(label).metrics(), _Counts(PROBABILITIES if label.is_binary else RATINGS)
    columns = [*store.spec.slot_columns, label.column]
    for batch in store.stream(split, columns, batch_rows=BATCH_ROWS):
        read = [column.to_numpy() for column in batch.columns]
        wanted = targets(read[-1], label)
        scores = model(torch.from_numpy(np.stack(read[:-1], axis=1)))  # (B, L) -> (B,)
        metrics.update(scores, torch.from_numpy(wanted))
        counts.add((scores.sigmoid() if label.is_binary else scores).numpy(), wanted)
        advance(len(wanted))
    return Predictions(split, store.splits.rows[split], metrics.compute(), counts.bins())


class _Counts:
    """Examples, and their predictions and labels summed, by bin and by label."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._sums: dict[tuple[int, int], npt.NDArray[np.float64]] = {}

    def add(self, predicted: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> None:
        exact = predicted.astype(np.float64)
        steps = np.rint(labels / _LABEL_STEP).astype(np.int64)
        found, places = np.unique(
            np.stack([self._grid.numbers(exact), steps], axis=1), axis=0, return_inverse=True
        )
        places = places.reshape(-1)
        sums = np.stack(
            [np.bincount(places), np.bincount(places, exact), np.bincount(places, labels)], axis=1
        )
        for (number, step), more in zip(found.tolist(), sums, strict=True):
            key = number, step
            self._sums[key] = self._sums.get(key, np.zeros(3)) + more

    def bins(self) -> list[Bin]:
        return [self._bin(number, step, sums) for (number, step), sums in sorted(self._sums.items())]

    def _bin(self, number: int, step: int, sums: npt.NDArray[np.float64]) -> Bin:
        examples, predicted, labels = sums.tolist()
        low = self._grid.low + number * self._grid.width
        high = low + self._grid.width
        told = self._grid.told(number)
        return Bin(step * _LABEL_STEP, low, high, told, round(examples), predicted, labels)
