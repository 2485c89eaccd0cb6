"""How good scores are, accumulated over batches on their device and read once at the end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Scores:
    """Metrics of one evaluation.

    values: each metric that is defined, by name.
    undefined: why the others are not, by name.
    loss: the value to make small: that of the metric which training minimises.
    """

    values: Mapping[str, float]
    loss: float
    undefined: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, float | None]:
        """Return every metric by name, None where it is undefined."""
        return {**self.values, **dict.fromkeys(self.undefined)}

    def __str__(self) -> str:
        known = [f"{name} {value:.4f}" for name, value in self.values.items()]
        return "  ".join([*known, *(f"{name} undefined ({why})" for name, why in self.undefined.items())])


class Metrics(Protocol):
    """Takes batches of scores and labels, float32 (B,) each, then gives the metrics of them all."""

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch, without waiting for the device."""

    def compute(self) -> Scores:
        """Return the metrics of every batch so far; ValueError where there was none."""


class RatingMetrics:
    """RMSE and MAE of predicted ratings.

    rmse = sqrt(mean((score - label)**2))    mae = mean(|score - label|)
    """

    def __init__(self) -> None:
        self._rows = 0
        self._sums: torch.Tensor | None = None  # float64 (2,): squared errors, absolute errors

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch."""
        errors = scores.double() - labels.double()
        sums = torch.stack([errors.square().sum(), errors.abs().sum()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows += len(labels)

    def compute(self) -> Scores:
        """Return ``rmse``, which is the loss, and ``mae``."""
        if self._sums is None or not self._rows:
            raise ValueError("no examples to evaluate")
        squared, absolute = self._sums.tolist()
        rmse = math.sqrt(squared / self._rows)
        return Scores({"rmse": rmse, "mae": absolute / self._rows}, loss=rmse)


class BinaryMetrics:
    """Log loss and AUC of logits against labels 0.0 and 1.0.

    log_loss = mean(-log(probability given to the label)), natural logarithm. auc = the chance that a
    random positive scores above a random negative, ties counting half: exact, for which the scores of
    the whole split are kept, 5 bytes a row.
    """

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None  # float64 ()
        self._scores: list[torch.Tensor] = []
        self._positive: list[torch.Tensor] = []

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch; ``scores`` are logits."""
        loss = functional.binary_cross_entropy_with_logits(scores.double(), labels.double(), reduction="sum")
        self._loss = loss if self._loss is None else self._loss + loss
        self._scores.append(scores.detach())
        self._positive.append(labels > 0)

    def compute(self) -> Scores:
        """Return ``log_loss``, which is the loss, and ``auc`` where both labels occur."""
        rows = sum(len(part) for part in self._positive)
        if self._loss is None or not rows:
            raise ValueError("no examples to evaluate")
        log_loss = float(self._loss) / rows
        area = auc(torch.cat(self._scores), torch.cat(self._positive))
        if area is None:
            why = f"all {rows:,} labels are {float(self._positive[0][0]):.0f}"
            return Scores({"log_loss": log_loss}, log_loss, {"auc": why})
        return Scores({"log_loss": log_loss, "auc": area}, log_loss)


def auc(scores: torch.Tensor, positive: torch.Tensor) -> float | None:
    """Return the area under the ROC curve, or None where one class is absent.

    It is the Mann-Whitney statistic: for each distinct score, the pairs of its positives with the
    negatives below, and half of those with its own negatives, over the number of all pairs.

    Args:
        scores: float (n,).
        positive: bool (n,).
    """
    _, group = torch.unique(scores, return_inverse=True)  # 0 for the lowest score, and so on
    positives = torch.bincount(group, weights=positive.double())  # (groups,) exact in float64 to 2**53
    negatives = torch.bincount(group, weights=(~positive).double())
    pairs = positives.sum() * negatives.sum()
    below = negatives.cumsum(0) - negatives
    area = (positives * (below + negatives / 2)).sum() / pairs
    return float(area) if pairs > 0 else None
