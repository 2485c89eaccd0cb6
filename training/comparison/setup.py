"""What a comparison of layouts trains: its setup, its cells, and how a cell did."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.errors import SpecError
from featurestore.plans import FLOAT_BYTES
from featurestore.spec import Label
from training.layout_embeddings import SCALE
from training.optimizers import LARGEST_LR

PAPER_LABEL = Label("rating", 4.0, (3.0,))
"""1 and 2 against 4 and 5, the 3s left out: the label under which the published figures are reproduced."""

LARGEST_SCALE = 1e6

VERSION = 4
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
        if not 0 < self.learning_rate <= LARGEST_LR:
            problems.append(
                f"--lr must be a number above 0 and at most {LARGEST_LR:g}, got {self.learning_rate}"
            )
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            problems.append(f"--weight-decay must be a number of at least 0, got {self.weight_decay}")
        if not 0 <= self.scale <= LARGEST_SCALE:
            problems.append(
                f"--scale must be a number of at least 0 and at most {LARGEST_SCALE:g}, got {self.scale}"
            )
        if problems:
            raise SpecError("settings", problems)


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
    measures: of the best epoch's network, see `training.comparison.measures`; empty where values have no rows
    of a table, None where nobody asked.
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
    measures: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


def watched(label: Label) -> str:
    """Return the metric that decides when to stop, and who is better."""
    return "auc" if label.is_binary else "rmse"
