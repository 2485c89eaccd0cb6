"""What can be set in a training, checked as a whole before anything is touched."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.errors import SpecError, did_you_mean
from featurestore.hashing import MAX_SLOTS
from featurestore.paths import AnyPath, RemotePath, local_folder
from training.feed import CHOICES
from training.models import MODELS
from training.optimizers import LARGEST_LR, OPTIMIZERS, TABLE_LR
from training.order import WINDOW_ROWS
from training.step import PRECISIONS, STEPS

DEVICES = ("auto", "cpu", "cuda")
_HIGHEST = {"threads": 1024, "num_slots": MAX_SLOTS}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")

SIZES = ("num_slots", "lookups")
"""Settings that say which snapshot to make first, of the one that is named."""
PLACES = ("store", "snapshot", "resume", "checkpoint_dir", *SIZES)
"""Settings that a resumed training does not take over: where things are. Its snapshot has been made."""
KEPT = ("model", "seed", "window_rows", "optimizer")
"""Settings that a resumed training keeps: its weights, its order and its optimizer's state depend on them."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training; `slotstore train --help` says what each does.

    Raises:
        SpecError: with every value that cannot work here.
    """

    store: AnyPath
    snapshot: str = "latest"
    num_slots: int | None = None
    lookups: Mapping[str, int] | None = None
    model: str = "article"
    device: str = "auto"
    epochs: int = 5
    batch_size: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    clip_norm: float | None = None
    optimizer: str = "adam"
    table_learning_rate: float | None = None
    shard_table: bool = False
    patience: int = 2
    seed: int = 0
    feed: str = "auto"
    window_rows: int = WINDOW_ROWS
    step: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    checkpoint_seconds: float = 60.0
    profile: bool = False
    tracking: bool = True
    experiment: str | None = None
    run_name: str | None = None
    checkpoint_dir: Path | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        problems = [*self._number_problems(), *self._choice_problems(), *self._name_problems()]
        if self.resume is None:  # else most settings are still to come, from the run: see `check`
            problems += self._together_problems()
        if problems:
            raise SpecError("train", problems)

    def check(self) -> None:
        """Raise SpecError where settings do not go together, or not here, those of a resumed run included."""
        if problems := [*self._together_problems()]:
            raise SpecError("train", problems)

    def _number_problems(self) -> Iterator[str]:
        counts = ("epochs", "batch_size", "patience", "seed", "window_rows", "threads", "num_slots")
        lowest = dict.fromkeys(counts, 1) | {"seed": 0}
        for name, low in lowest.items():
            value, high = getattr(self, name), _HIGHEST.get(name, 2**63 - 1)
            if value is not None and value < low:
                yield f"{flag(name)} must be at least {low}, got {value}"
            elif value is not None and value > high:
                yield f"{flag(name)} must be at most {high}, got {value}"
        for name in ("learning_rate", "table_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LARGEST_LR:
                yield f"{flag(name)} must be a number above 0 and at most {LARGEST_LR:g}, got {value}"
        if self.clip_norm is not None and not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            yield f"--clip-norm must be a number above 0, got {self.clip_norm}"
        for name in ("weight_decay", "checkpoint_seconds"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                yield f"{flag(name)} must be a number of at least 0, got {value}"

    def _choice_problems(self) -> Iterator[str]:
        choices = {
            "model": tuple(MODELS), "optimizer": OPTIMIZERS, "feed": CHOICES, "step": STEPS,
            "precision": PRECISIONS,
        }  # fmt: skip
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                yield f"{flag(name)}: unknown {name} {value!r}{did_you_mean(value, known)}"

    def _together_problems(self) -> Iterator[str]:
        yield from self._device_problems()
        if self.tracking and (missing := [name for name in ("mlflow", "matplotlib") if not installed(name)]):
            yield (
                f"tracking needs {' and '.join(missing)}: pip install 'slotstore[track]', "
                "or train without it: --no-tracking"
            )
        if self.step in ("compile", "graph") and self.optimizer != "adam":
            yield f"--step {self.step} is for --optimizer adam: the rows of a sparse gradient differ by batch"
        rate = TABLE_LR if self.table_learning_rate is None else self.table_learning_rate
        if self.optimizer == "rowwise_adagrad" and rate * self.weight_decay >= 1:
            yield f"--weight-decay times --table-lr ({rate}) must be below 1, got {rate * self.weight_decay}"
        if self.optimizer == "adam" and self.table_learning_rate is not None:
            yield "--table-lr is for --optimizer rowwise_adagrad: adam has one rate, --lr"

    def _name_problems(self) -> Iterator[str]:
        if self.resume is not None and not self.resume.strip():
            yield "--resume names no run: give a folder, a part of a name, latest or a checkpoint file"
        if self.resume is not None and (given := [flag(name) for name in SIZES if getattr(self, name)]):
            yield f"{' and '.join(given)} cannot be given with --resume: its model has its table's size"
        if self.run_name is not None and (not self.run_name.strip() or {"/", "\\"} & set(self.run_name)):
            yield f"--run-name must be text without slashes, got {self.run_name!r}"

    def _device_problems(self) -> Iterator[str]:
        if not _DEVICE.fullmatch(self.device):
            yield f"--device: unknown device {self.device!r}, expected {', '.join(DEVICES)} or cuda:N"
        elif self.device.startswith("cuda") and not torch.cuda.is_available():
            yield (
                f"--device {self.device}: this torch sees no CUDA device; "
                "--device auto takes one where there is one"
            )
        elif ":" in self.device and (number := int(self.device.split(":")[1])) >= torch.cuda.device_count():
            seen = torch.cuda.device_count()
            yield f"--device cuda:{number}: this torch sees {seen} CUDA devices, from cuda:0 on"

    @property
    def folder(self) -> Path:
        """Where checkpoints and the record of runs go: the store, or beside us where that is a URL."""
        return local_folder(self.store)

    def torch_device(self) -> torch.device:
        """Return the device to train on."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and records."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        paths = (Path, RemotePath)
        return {name: str(value) if isinstance(value, paths) else value for name, value in fields.items()}

    def resumed(self, saved: Mapping[str, Any], given: Mapping[str, Any]) -> "TrainConfig":
        """Return the settings of a run that is resumed: those it had, but for what is ``given`` now."""
        names = {field.name for field in dataclasses.fields(self)} - set(PLACES)
        names = names - set(given)
        return dataclasses.replace(
            self, **{name: saved[name] for name in names - set(given) if name in saved}
        )

    def kept_problems(self, saved: Mapping[str, Any], what: str) -> Iterator[str]:
        """Yield each setting that differs from the run's and cannot be changed on the way."""
        for name in KEPT:
            if saved[name] != getattr(self, name):
                yield f"{flag(name)} is {saved[name]} in {what}, and stays: got {getattr(self, name)}"


_FLAGS = {"learning_rate": "--lr", "table_learning_rate": "--table-lr"}


def flag(name: str) -> str:
    """Return the option that sets a field."""
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def installed(package: str) -> bool:
    """Whether a regular package can be imported: a mere folder of its name, such as ours, has no origin."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
