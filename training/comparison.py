"""One cell of a comparison of layouts: the same rows, label, network and stopping rule for all of them."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from featurestore.encode import as_text
from featurestore.errors import SpecError, TrainingError
from featurestore.layouts import make_plan
from featurestore.plans import FLOAT_BYTES, Field
from featurestore.spec import SPLITS, Label, SplitRule
from featurestore.splits import Splits, bucket_boundaries
from featurestore.store import FeatureStore
from training.layout_embeddings import SCALE, LayoutEmbedding, embed
from training.metrics import Scores
from training.models import build_network
from training.objective import objective_for
from training.step import EagerStep

PAPER_LABEL = Label("rating", 4.0, (3.0,))
"""1 and 2 against 4 and 5, the 3s left out: the label under which the published figures are reproduced."""

EVALUATION_ROWS = 65_536

VERSION = 2
"""To be raised with every change that gives a cell other numbers: those of an older version are not kept."""


@dataclass(frozen=True)
class Setup:
    """What all cells of a comparison share.

    The defaults are those of an independent replication of Coleman et al. 2023 on ml-1m, save for ``epochs``,
    a limit that early stopping reaches first. ``cross`` and ``deep`` are the network's sizes, see
    `training.models.build_network`; embeddings start uniform in +-``scale``.

    Raises:
        SpecError: with every number that cannot work.
    """

    label: Label = PAPER_LABEL
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    split_seed: int = 0
    model: str = "dcn"
    cross: int = 1
    deep: tuple[int, ...] = (192,)
    dim: int = 30
    scale: float = SCALE
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    patience: int = 5
    epochs: int = 100

    def __post_init__(self) -> None:
        problems = []
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            problems.append(f"--lr must be a number above 0, got {self.learning_rate}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            problems.append(f"--weight-decay must be a number of at least 0, got {self.weight_decay}")
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            problems.append(f"--scale must be a number of at least 0, got {self.scale}")
        if problems:
            raise SpecError("compare", problems)


@dataclass(frozen=True)
class Cell:
    """A layout, the floats that it may have, and the seed of weights and shuffles."""

    layout: str
    floats: int
    seed: int

    @property
    def name(self) -> str:
        """The cell's name, also that of its file."""
        return f"{self.layout}-{self.floats * FLOAT_BYTES}-{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """How a cell did.

    bytes: of the parameters that it has. test, validation: metrics of the epoch that validated best, which is
    ``best_epoch``. curve: the watched metric on validation, epoch by epoch. seconds: of training, whole.
    """

    layout: str
    seed: int
    budget: int
    bytes: int
    test: Mapping[str, float]
    validation: Mapping[str, float]
    best_epoch: int
    curve: Sequence[float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Coded:
    """A snapshot's splits with every value replaced by its number in the vocabulary.

    codes: of each split int32 (n, F). labels: float32 (n,).
    """

    fields: tuple[Field, ...]
    codes: Mapping[str, npt.NDArray[np.int32]]
    labels: Mapping[str, npt.NDArray[np.float32]]

    @property
    def values(self) -> int:
        """The number of values of all features: rows of the collision-free table."""
        return sum(map(len, self.fields))


def load_coded(store: FeatureStore, setup: Setup) -> Coded:
    """Read the splits of a comparison: by row hash, whatever the store's own splits are.

    Raises:
        TrainingError: a split is empty.
    """
    rule = SplitRule("random", setup.fractions, seed=setup.split_seed)
    splits = Splits(rule, setup.label, bucket_boundaries(rule), {})
    fields = tuple(_field(store, feature.name) for feature in store.spec.features)
    columns = list(dict.fromkeys(feature.column for feature in store.spec.features))
    codes, labels = {}, {}
    for split in SPLITS:
        table = store.stream(split, [*columns, setup.label.column], splits=splits).read_all()
        if not table.num_rows:
            raise TrainingError(
                f"the {split} split of the comparison is empty: it is cut by row hash into {setup.fractions} "
                f"of {store.snapshot.manifest.counts['examples']:,} examples, some of which the label drops"
            )
        used = zip(store.spec.features, fields, strict=True)
        codes[split] = np.stack([_codes(table[feature.column], field) for feature, field in used], 1)
        labels[split] = _labels(table[setup.label.column], setup.label)
    return Coded(fields, codes, labels)


def _field(store: FeatureStore, feature: str) -> Field:
    query = "SELECT value, count FROM vocabulary WHERE feature = $1 ORDER BY count DESC, value"
    found = store.sql(query, [feature])
    return Field(feature, tuple(found["value"].to_pylist()), tuple(found["count"].to_pylist()))


def _codes(column: pa.ChunkedArray, field: Field) -> npt.NDArray[np.int32]:
    text = as_text(column)
    known = pc.index_in(text.dictionary, pa.array(field.values)).to_numpy()
    codes: npt.NDArray[np.int32] = known.take(text.indices.to_numpy()).astype(np.int32)
    return codes


def _labels(column: pa.ChunkedArray, label: Label) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = column.to_numpy().astype(np.float32)
    return values if label.threshold is None else (values >= label.threshold).astype(np.float32)


def run_cell(cell: Cell, coded: Coded, setup: Setup) -> CellResult:
    """Train one cell until validation has been no better for ``patience`` epochs, and test its best epoch.

    Same cell, data and setup: same result, bit for bit, on one thread.

    Raises:
        TooSmall: the layout does not fit the cell's floats.
        TrainingError: the watched metric is undefined.
    """
    started = time.perf_counter()
    plan = make_plan(cell.layout, coded.fields, setup.dim, cell.floats)
    torch.manual_seed(cell.seed)
    trial = Trial(embed(plan, setup.scale), coded, setup)
    best, best_epoch, test, curve = None, 0, None, []
    generator = torch.Generator().manual_seed(cell.seed)
    for epoch in range(1, setup.epochs + 1):
        trial.train(generator)
        validation = trial.evaluate("validation")
        curve.append(validation.values[watched(setup.label)])
        if best is None or _better(curve[-1], curve[best_epoch - 1], setup.label):
            best, best_epoch, test = validation, epoch, trial.evaluate("test")
        elif epoch - best_epoch >= setup.patience:
            break
    assert best is not None
    assert test is not None  # there is at least one epoch
    return CellResult(
        layout=cell.layout,
        seed=cell.seed,
        budget=cell.floats * FLOAT_BYTES,
        bytes=plan.floats * FLOAT_BYTES,
        test=dict(test.values),
        validation=dict(best.values),
        best_epoch=best_epoch,
        curve=curve,
        seconds=time.perf_counter() - started,
    )


def watched(label: Label) -> str:
    """Return the metric that decides when to stop, and who is better."""
    return "auc" if label.is_binary else "rmse"


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
