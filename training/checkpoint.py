"""Checkpoints: one file that holds all a model needs, to predict or to go on training.

It carries the spec that its slots come from, so it is never fed slots of another one.
"""

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
from featurestore.snapshot import Snapshot
from featurestore.spec import FeatureSpec, parse_spec

FORMAT_VERSION = 1
# What reading a damaged or foreign file raises.
_ZIP_DAMAGE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile)
_PICKLE_DAMAGE = (pickle.UnpicklingError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Checkpoint:
    """A model after an epoch. Plain values and tensors only, so that loading runs no code."""

    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    epoch: int  # the last one trained, from 1
    score: float  # what it reached, lower being better
    config: Mapping[str, Any]
    spec: Mapping[str, Any]  # canonical form
    fingerprint: str
    snapshot: str  # id
    format_version: int = FORMAT_VERSION

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


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a reader, or a crash, sees the old file or the new, never a part.

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
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write the checkpoint {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint, its tensors onto ``device``.

    Raises:
        NotFound: there is no such file.
        VersionError: it was written by another format version.
        ArtifactError: it is damaged, or no checkpoint at all.
    """
    try:
        _check_bytes(path)
        fields = torch.load(path, map_location=device, weights_only=True)
        version = fields["format_version"]
        if version == FORMAT_VERSION:
            return Checkpoint(**fields)
    except FileNotFoundError as error:
        raise NotFound(f"no checkpoint {path}: `slotstore train` writes one") from error
    except (*_ZIP_DAMAGE, *_PICKLE_DAMAGE) as error:
        raise ArtifactError(f"{path} is no intact checkpoint ({error}): train again") from error
    raise VersionError(
        f"{path} has format version {version}, this slotstore reads {FORMAT_VERSION}: "
        "train again, or use the slotstore that wrote it"
    )


def _check_bytes(path: Path) -> None:
    """Compare each record with its CRC-32, which `torch.load` does not."""
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f"{damaged} is altered")
