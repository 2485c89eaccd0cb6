"""What a model predicts for the examples of a split, counted in bins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from featurestore.spec import FeatureSpec
from featurestore.store import FeatureStore
from training.metrics import Scores
from training.networks import Network
from training.objective import objective_for

BATCH_ROWS = 16_384
RATING_WIDTH, PROBABILITY_WIDTH = 0.25, 0.05
RATINGS = (-1.0, 7.0)
"""Between which predicted ratings have bins of their own; those beyond are in the outermost."""
_LABEL_STEP = 0.5


@dataclass(frozen=True)
class Bin:
    """Predictions from ``low`` to below ``high``, for examples with one label.

    predicted: the sum of the predictions of ``examples``.
    """

    label: float
    low: float
    high: float
    examples: int
    predicted: float

    @property
    def told(self) -> str:
        """The range, for a person."""
        return f"{self.low:.2f} to {self.high:.2f}"


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
    """Predict a split and count what comes out, in bounded memory; None where it has no examples.

    Args:
        store: the snapshot.
        model: on the CPU, of the snapshot's spec.
        split: ``train``, ``validation`` or ``test``.
        advance: is told of how many more examples are predicted.
    """
    if not store.splits.rows[split]:
        return None
    spec, width = store.spec, PROBABILITY_WIDTH if store.spec.label.is_binary else RATING_WIDTH
    metrics, counts = objective_for(spec.label).metrics(), _Counts(width)
    columns = [*spec.slot_columns, spec.label.column]
    for batch in store.stream(split, columns, batch_rows=BATCH_ROWS):
        read = [column.to_numpy() for column in batch.columns]
        labels = torch.from_numpy(_labels(read[-1], spec))
        scores = model(torch.from_numpy(np.stack(read[:-1], axis=1)))  # (B, L) -> (B,)
        metrics.update(scores, labels)
        counts.add((scores.sigmoid() if spec.label.is_binary else scores).numpy(), labels.numpy())
        advance(len(labels))
    return Predictions(split, store.splits.rows[split], metrics.compute(), counts.bins())


def _labels(ratings: npt.NDArray[np.float32], spec: FeatureSpec) -> npt.NDArray[np.float32]:
    if spec.label.threshold is None:
        return ratings.astype(np.float32)
    return (ratings >= spec.label.threshold).astype(np.float32)


class _Counts:
    """Examples and summed predictions by bin and label."""

    def __init__(self, width: float) -> None:
        self._width = width
        self._sums: dict[tuple[int, int], list[float]] = {}

    def add(self, predicted: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> None:
        low, high = (0.0, 1.0) if self._width == PROBABILITY_WIDTH else RATINGS
        last = round((high - low) / self._width) - 1
        numbers = np.clip(np.floor((predicted.astype(np.float64) - low) / self._width), 0, last)
        keys = np.stack([numbers, np.rint(labels / _LABEL_STEP)], axis=1).astype(np.int64)
        found, places = np.unique(keys, axis=0, return_inverse=True)
        places = places.reshape(-1)
        examples = np.bincount(places).tolist()
        sums = np.bincount(places, predicted).tolist()
        for (number, label), count, total in zip(found.tolist(), examples, sums, strict=True):
            entry = self._sums.setdefault((number, label), [0, 0.0])
            entry[0] += count
            entry[1] += total

    def bins(self) -> list[Bin]:
        low = 0.0 if self._width == PROBABILITY_WIDTH else RATINGS[0]
        return [
            Bin(
                label * _LABEL_STEP,
                low + number * self._width,
                low + (number + 1) * self._width,
                int(examples),
                predicted,
            )
            for (number, label), (examples, predicted) in sorted(self._sums.items())
        ]
