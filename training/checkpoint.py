"""Checkpoints: one file that holds all a model needs, to predict or to go on training.

It carries the spec that its slots come from, so it is never fed slots of another one.
"""

import contextlib
import os
import pickle
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.errors import ArtifactError, FingerprintError, NotFound, VersionError
from featurestore.paths import sync
from featurestore.snapshot import Snapshot
from featurestore.spec import FeatureSpec, parse_spec

FORMAT_VERSION = 2
PRUNED_VERSION = 3
"""Of a pruned model: a slotstore that knows none must not take its table for a whole one."""
# What reading a damaged or foreign file raises.
_ZIP_DAMAGE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile)
_PICKLE_DAMAGE = (pickle.UnpicklingError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Checkpoint:
    """A model at some step. Plain values and tensors only, so that loading runs no code."""

    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]  # of `training.loop.TrainState`: epoch, rows of it, epochs before
    random: Mapping[str, Any]  # states of torch's generators, by device
    config: Mapping[str, Any]
    spec: Mapping[str, Any]  # canonical form
    fingerprint: str
    snapshot: str  # id
    tracked: Mapping[str, str] | None  # the MLflow run it belongs to
    format_version: int = FORMAT_VERSION

    @property
    def epoch(self) -> int:
        """The last epoch that was ended, 0 if none was."""
        history = self.state["history"]
        return int(history[-1]["epoch"]) if history else 0

    @property
    def rows(self) -> int:
        """Rows trained on of the epoch after it."""
        return int(self.state["rows"])

    @property
    def is_pruned(self) -> bool:
        """Whether the table has only the rows in use: see `training.pruned`. It cannot be trained on."""
        return self.format_version == PRUNED_VERSION

    def load_spec(self) -> FeatureSpec:
        """Return the spec of the model's slots."""
        return parse_spec(self.spec, name="checkpoint", where="the spec of the checkpoint")

    def check_fits(self, snapshot: Snapshot) -> None:
        """Raise FingerprintError where a snapshot's slots come from another spec than the model's."""
        manifest = snapshot.manifest
        if manifest.fingerprint != self.fingerprint:
            raise FingerprintError(
                f"the model was trained with spec {self.fingerprint} (on snapshot {self.snapshot}), "
                f"snapshot {manifest.id} was made with spec {manifest.fingerprint}: their slots mean "
                "different things. Use a snapshot of the model's spec (`slotstore snapshots list`), or train "
                "a new model."
            )


def random_states() -> dict[str, Any]:
    """Return the states of torch's generators, to be restored by `restore_random_states`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set torch's generators; those of devices that are not here are left out."""
    torch.set_rng_state(states["cpu"].cpu())
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state.cpu(), device)


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint; a reader, or a crash, sees the old file or the new, never a part.

    Args:
        path: the file to write.
        checkpoint: what to write.
        previous: what the old file is called from then on; it is replaced by default.

    Raises:
        ArtifactError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer hides a full disk in a RuntimeError
        raise ArtifactError(f"cannot write the checkpoint {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, device: torch.device | str = "cpu", *, mmap: bool = False) -> Checkpoint:
    """Read a checkpoint, its tensors onto ``device``; with ``mmap`` they stay in the file until used.

    Raises:
        NotFound: there is no such file.
        VersionError: it was written by another format version.
        ArtifactError: it is damaged, or no checkpoint at all.
    """
    try:
        _check_bytes(path)
        fields = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
        version = fields["format_version"]
        if version in (FORMAT_VERSION, PRUNED_VERSION):
            return Checkpoint(**fields)
    except FileNotFoundError as error:
        raise NotFound(f"no checkpoint {path}: `slotstore train` writes one") from error
    except (*_ZIP_DAMAGE, *_PICKLE_DAMAGE) as error:
        raise ArtifactError(
            f"{path} is no intact checkpoint ({error}): take another one of its run, or train again"
        ) from error
    raise VersionError(
        f"{path} has format version {version}, this slotstore reads {FORMAT_VERSION} and {PRUNED_VERSION}: "
        "train again, or use the slotstore that wrote it"
    )


def _check_bytes(path: Path) -> None:
    """Compare each record with its CRC-32, which `torch.load` does not."""
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f"{damaged} is altered")
