"""What can be set in a training, checked as a whole before anything is touched."""

import dataclasses
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.errors import SpecError
from featurestore.paths import AnyPath, RemotePath
from training.stream import BUFFER_ROWS

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training; `slotstore train --help` says what each does.

    Raises:
        SpecError: with every value that cannot work here.
    """

    store: AnyPath
    snapshot: str = "latest"
    device: str = "auto"
    epochs: int = 5
    batch_size: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    patience: int = 2
    seed: int = 0
    buffer_rows: int = BUFFER_ROWS
    threads: int | None = None
    tracking: bool = True
    experiment: str | None = None
    run_name: str | None = None
    checkpoint_dir: Path | None = None
    resume: Path | None = None

    def __post_init__(self) -> None:
        problems = [*self._number_problems(), *self._place_problems()]
        if problems:
            raise SpecError("train", problems)

    def _number_problems(self) -> Iterator[str]:
        lowest = {"epochs": 1, "batch_size": 1, "patience": 1, "seed": 0, "buffer_rows": 1, "threads": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                yield f"--{name.replace('_', '-')} must be at least {low}, got {value}"
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            yield f"--lr must be a number above 0, got {self.learning_rate}"
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            yield f"--weight-decay must be a number of at least 0, got {self.weight_decay}"

    def _place_problems(self) -> Iterator[str]:
        if self.device not in DEVICES:
            yield f"--device: unknown device {self.device!r}, expected {', '.join(DEVICES)}"
        if self.device == "cuda" and not torch.cuda.is_available():
            yield "--device cuda: this torch sees no CUDA device; --device auto takes one where there is one"
        if self.run_name is not None and (not self.run_name.strip() or {"/", "\\"} & set(self.run_name)):
            yield f"--run-name must be text without slashes, got {self.run_name!r}"
        if self.tracking and (missing := [name for name in ("mlflow", "matplotlib") if not _installed(name)]):
            yield (
                f"tracking needs {' and '.join(missing)}: pip install 'slotstore[track]', "
                "or train without it: --no-tracking"
            )

    @property
    def folder(self) -> Path:
        """Where checkpoints and the record of runs go: the store, or beside us where that is a URL."""
        return self.store if isinstance(self.store, Path) else Path(self.store.name)

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


def _installed(package: str) -> bool:
    """Whether a regular package can be imported: a mere folder of its name, such as ours, has no origin."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
