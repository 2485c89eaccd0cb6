"""What comparisons keep in a store: a folder for the rows and each setup, a file for each cell."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import ArtifactError, TrainingError
from featurestore.paths import local_folder, locked, write_whole
from featurestore.spec import Label
from featurestore.store import FeatureStore
from training.comparison.setup import VERSION, Cell, CellResult, Setup


@dataclass(frozen=True)
class KeptComparison:
    """The cells that are there of one comparison, however many it was to have. label: that of its setup."""

    folder: Path
    setup: Mapping[str, Any]
    label: Label
    cells: tuple[CellResult, ...]


def comparison_folder(store: FeatureStore, setup: Setup) -> Path:
    """Return where the cells are kept: a folder for the rows and each setup, so that none are mixed."""
    return _folders(store) / _digest(store, dataclasses.asdict(setup))


def _folders(store: FeatureStore) -> Path:
    return local_folder(store.path) / "comparisons"


def _digest(store: FeatureStore, setup: Mapping[str, Any]) -> str:
    what = {"version": VERSION, "rows": _rows(store), **setup}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _rows(store: FeatureStore) -> dict[str, Any]:
    """Return what the raw values of the examples follow from: slots are no part of a comparison.

    So a re-slotted snapshot, or another one with other slots or labels, has the cells of the first.
    """
    manifest = store.snapshot.manifest
    sources = [*(entry["source"] for entry in manifest.lineage), manifest.source]
    return {
        "sources": [[source["format"], source["files"]] for source in sources],
        "counts": manifest.counts,
        "rejects": manifest.reject_sums,
        "features": [[feature.name, feature.column] for feature in store.spec.features],
    }


def kept_comparisons(store: FeatureStore) -> list[KeptComparison]:
    """Return what is kept of comparisons of the snapshot's rows, the one that was at work last first.

    A folder whose name is not the digest of its setup is of other rows, or of another version.
    """
    found = []
    for path in _folders(store).glob("*/setup.json"):
        setup = _read_object(path)
        if setup is None or path.parent.name != _digest(store, setup):
            continue
        label = Label(**{**setup["label"], "drop": tuple(setup["label"]["drop"])})
        files = sorted((path.parent / "cells").glob("*.json"))
        cells = tuple(cell for cell in map(_read_result, files) if cell is not None)
        if cells:
            found.append((path.stat().st_mtime, KeptComparison(path.parent, setup, label, cells)))
    return [kept for _, kept in sorted(found, key=lambda each: -each[0])]


@contextlib.contextmanager
def held(folder: Path, setup: Setup) -> Iterator[None]:
    """Hold a comparison's folder, made if missing, with its setup: two of the same would do the work twice.

    Raises:
        ArtifactError: it cannot be written.
        TrainingError: another comparison holds it.
    """
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(locked(folder / "compare.lock"))
            (folder / "cells").mkdir(exist_ok=True)
            write_whole(folder / "setup.json", json.dumps(dataclasses.asdict(setup), indent=1).encode())
        except BlockingIOError as error:
            raise TrainingError(
                f"another comparison with these settings is at work in {folder}: wait for it; what it has "
                "done is then taken"
            ) from error
        except OSError as error:
            raise ArtifactError(f"cannot keep cells in {folder}: {error}") from error
        yield


def read_cell(folder: Path, cell: Cell) -> CellResult | None:
    """Return what is kept of a cell; None where that is nothing, or cannot be read."""
    return _read_result(_file(folder, cell))


def write_cell(folder: Path, cell: Cell, result: CellResult) -> None:
    """Keep a cell; ArtifactError where it cannot be written."""
    path = _file(folder, cell)
    try:
        write_whole(path, json.dumps(result.to_dict()).encode())
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}; the cells that were done are kept") from error


def figures_folder(folder: Path, cell: Cell) -> Path:
    """Return where the drawings of a cell's measures are."""
    return folder / "figures" / cell.name


def _file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def _read_result(path: Path) -> CellResult | None:
    plain = _read_object(path)
    try:
        return None if plain is None else CellResult(**plain)
    except TypeError:
        return None


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None where there is no file, or something else in it."""
    try:
        plain = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return plain if isinstance(plain, dict) else None
