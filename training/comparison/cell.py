"""One cell of a comparison of layouts: the same rows, label, network and stopping rule for all of them."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from featurestore.errors import TrainingError
from featurestore.layouts import make_plan
from featurestore.plans import FLOAT_BYTES
from featurestore.spec import Label
from training.comparison.data import Coded
from training.comparison.interference import measure
from training.comparison.measures import Measures
from training.comparison.setup import Cell, CellResult, Setup, watched
from training.layout_embeddings import LayoutEmbedding, embed
from training.metrics import Scores
from training.models import build_network
from training.objective import objective_for
from training.step import EagerStep

EVALUATION_ROWS = 65_536


def run_cell(
    cell: Cell, coded: Coded, setup: Setup, explain: Callable[[Measures], None] | None = None
) -> CellResult:
    """Train one cell until validation has been no better for ``patience`` epochs, and test its best epoch.

    Same cell, data and setup: same result, bit for bit, on one thread.

    Args:
        cell: the layout, its floats and the seed.
        coded: the splits.
        setup: what all cells share.
        explain: the network of the best epoch is measured, and this called with what was found.

    Raises:
        TooSmall: the layout does not fit the cell's floats.
        TrainingError: the watched metric is undefined.
    """
    started = time.perf_counter()
    plan = make_plan(cell.layout, coded.fields, setup.dim, cell.floats)
    torch.manual_seed(cell.seed)
    trial = Trial(embed(plan, setup.scale), coded, setup)
    fit = _fit(trial, torch.Generator().manual_seed(cell.seed), keep=explain is not None)
    seconds = time.perf_counter() - started
    measures = None
    if explain:
        trial.model.load_state_dict(fit.weights)
        found = measure(trial.model, plan, coded, setup)
        measures = found.to_dict() if found else {}
        if found:
            explain(found)
    return CellResult(
        layout=cell.layout,
        seed=cell.seed,
        budget=cell.floats * FLOAT_BYTES,
        bytes=plan.floats * FLOAT_BYTES,
        test=dict(fit.test.values),
        validation=dict(fit.validation.values),
        best_epoch=fit.best_epoch,
        curve=fit.curve,
        seconds=seconds,
        measures=measures,
    )


@dataclass
class _Fit:
    """How a training went. weights: those of the best epoch, where they are kept."""

    best_epoch: int
    validation: Scores
    test: Scores
    curve: list[float]
    weights: dict[str, Any]


def _fit(trial: "Trial", generator: torch.Generator, *, keep: bool) -> _Fit:
    """Train until validation has been no better for ``patience`` epochs."""
    setup, fit = trial.setup, None
    metric, curve = watched(setup.label), []
    for epoch in range(1, setup.epochs + 1):
        trial.train(generator)
        validation = trial.evaluate("validation")
        curve.append(validation.values[metric])
        if fit is None or _better(curve[-1], curve[fit.best_epoch - 1], setup.label):
            weights = copy.deepcopy(trial.model.state_dict()) if keep else {}
            fit = _Fit(epoch, validation, trial.evaluate("test"), curve, weights)
        elif epoch - fit.best_epoch >= setup.patience:
            break
    assert fit is not None  # there is at least one epoch
    return fit


def _better(one: float, other: float, label: Label) -> bool:
    return one > other if label.is_binary else one < other


class Trial:
    """A network over one layout's embedding, trained on coded rows."""

    def __init__(self, embedding: LayoutEmbedding, coded: Coded, setup: Setup) -> None:
        self.setup, self.objective = setup, objective_for(setup.label)
        self.codes = {split: torch.from_numpy(codes) for split, codes in coded.codes.items()}
        self.labels = {split: torch.from_numpy(labels) for split, labels in coded.labels.items()}
        bias = self.objective.constant(float(self.labels["train"].mean()))
        self.model = build_network(
            setup.model, embedding, len(coded.fields), setup.dim, bias, cross=setup.cross, deep=setup.deep
        )
        optimizer = torch.optim.Adam(
            self.model.parameters(), setup.learning_rate, weight_decay=setup.weight_decay, fused=True
        )
        self.step = EagerStep(self.model, optimizer, self.objective)

    def train(self, generator: torch.Generator) -> None:
        """Train for one epoch, the rows in an order of its own."""
        order = torch.randperm(len(self.labels["train"]), generator=generator)
        codes, labels = self.codes["train"][order], self.labels["train"][order]
        size = self.setup.batch_size
        for slots, wanted in zip(torch.split(codes, size), torch.split(labels, size), strict=True):
            self.step(slots, wanted, len(wanted))

    @torch.no_grad()
    def evaluate(self, split: str) -> Scores:
        """Return the metrics of a split; TrainingError where the watched one is undefined."""
        metrics = self.objective.metrics()
        codes, labels = self.codes[split], self.labels[split]
        for first in range(0, len(labels), EVALUATION_ROWS):
            part = slice(first, first + EVALUATION_ROWS)
            metrics.update(self.model(codes[part]), labels[part])
        scores = metrics.compute()
        if why := scores.undefined.get(watched(self.setup.label)):
            raise TrainingError(
                f"{watched(self.setup.label)} of {split} is undefined: {why}; use another label"
            )
        return scores
