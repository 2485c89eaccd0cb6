"""What is made small, and how it is reported: squared errors of ratings, cross entropy of binary labels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from featurestore.database import identifier
from featurestore.spec import Label
from training.metrics import BinaryMetrics, Metrics, RatingMetrics, Scores


@dataclass(frozen=True)
class Objective:
    """A loss with its metrics.

    loss: (scores, labels), float32 (B,) each -> mean loss (), what the optimizer minimises.
    name: the metric that says the same to a person.
    report: mean loss -> that metric.
    constant: mean label -> the score that, given to every example, has the least loss.
    metrics: makes fresh metrics for an evaluation.
    """

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    name: str
    report: Callable[[float], float]
    constant: Callable[[float], float]
    metrics: Callable[[], Metrics]

    def scores(self, mean_loss: float) -> Scores:
        """Return a mean loss as scores."""
        value = self.report(mean_loss)
        return Scores({self.name: value}, loss=value)


def targets(values: npt.NDArray[np.generic], label: Label) -> npt.NDArray[np.float32]:
    """Return what a model is to learn of the label's column, (n,): the values, or 0.0 and 1.0."""
    numbers: npt.NDArray[np.float32] = values.astype(np.float32)
    return numbers if label.threshold is None else (numbers >= label.threshold).astype(np.float32)


def target_sql(label: Label) -> str:
    """Return SQL for the same of an example."""
    column = identifier(label.column)
    return column if label.threshold is None else f"({column} >= {label.threshold!r})::INTEGER"


def _logit(share: float) -> float:
    """Return log(share / (1 - share)), finite where all labels are the same."""
    clipped = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(clipped / (1 - clipped))


RATING = Objective(functional.mse_loss, "rmse", math.sqrt, float, RatingMetrics)
BINARY = Objective(functional.binary_cross_entropy_with_logits, "log_loss", float, _logit, BinaryMetrics)


def objective_for(label: Label) -> Objective:
    """Return the objective for what a spec predicts."""
    return BINARY if label.is_binary else RATING
