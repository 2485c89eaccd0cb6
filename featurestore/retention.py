"""Removing snapshots: a shard goes when no manifest lists it any more, and not before."""

import contextlib
import posixpath
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from featurestore.database import write_catalog
from featurestore.errors import ArtifactError
from featurestore.manifest import KINDS, Manifest
from featurestore.paths import AnyPath, files_below
from featurestore.snapshot import (
    MANIFEST,
    Snapshot,
    latest,
    list_snapshots,
    open_snapshot,
    unreadable_snapshots,
)
from featurestore.staging import ABANDONED_SECONDS, lock, set_latest


def remove_snapshots(store: AnyPath, ids: Sequence[str]) -> list[Snapshot]:
    """Remove snapshots, named as `open_snapshot` takes them, with the files that no other one uses.

    If the newest is among them, the newest of the rest takes its place. A reader of a removed snapshot fails.

    Raises:
        NotFound: no such snapshot.
        ArtifactError: another snapshot's manifest cannot be read, so that what it uses is unknown.
        StoreBusy: an ingestion is running.
    """
    with lock(store):
        removed = [open_snapshot(store, name, check=False) for name in ids]
        gone = {snapshot.manifest.id for snapshot in removed}
        _refuse_unreadable(store)
        rest = [snapshot for snapshot in list_snapshots(store) if snapshot.manifest.id not in gone]
        if latest(store) in gone:
            _repoint(store, rest)
        for snapshot in removed:
            (snapshot.folder / MANIFEST).unlink(missing_ok=True)  # from here on it does not exist
        _remove_files(store, _all_used(removed) - _all_used(rest))
        sweep(store)
    return removed


def expired_snapshots(store: AnyPath, keep: int) -> list[Snapshot]:
    """Return all snapshots but the newest and the ``keep`` made last, oldest first."""
    newest = latest(store)
    return [found for found in list_snapshots(store)[:-keep] if found.manifest.id != newest]


def sweep(store: AnyPath) -> None:
    """Remove the files under ``snapshots/`` that no manifest lists; the store's lock must be held.

    On an object store, where another run may be copying its shards, only old ones. Nothing is removed while
    some manifest cannot be read.
    """
    if unreadable_snapshots(store):
        return
    present = {name for name in files_below(store / "snapshots") if posixpath.basename(name) != MANIFEST}
    unused = present - _all_used(list_snapshots(store))
    _remove_files(store, [name for name in unused if _is_abandoned(store / "snapshots" / name)])


def _is_abandoned(path: AnyPath) -> bool:
    if isinstance(path, Path):
        return True
    return path.stat().st_mtime_ns < time.time_ns() - ABANDONED_SECONDS * 10**9


def _used(manifest: Manifest) -> Iterator[str]:
    """Yield the files of a snapshot, relative to ``snapshots/``."""
    for kind in KINDS:
        for shard in manifest.shards[kind]:
            yield posixpath.normpath(f"{manifest.id}/{shard.path}")


def _all_used(snapshots: Iterable[Snapshot]) -> set[str]:
    return {path for snapshot in snapshots for path in _used(snapshot.manifest)}


def _refuse_unreadable(store: AnyPath) -> None:
    for name, problem in unreadable_snapshots(store).items():
        raise ArtifactError(
            f"nothing was removed: which shards snapshot {name} uses cannot be known ({problem}).\n"
            f"Mend it, or remove {store / 'snapshots' / name} by hand if no other snapshot grew from it."
        )


def _repoint(store: AnyPath, rest: Sequence[Snapshot]) -> None:
    """Make the last of the snapshots that stay the newest one, or leave the store without any."""
    if rest:
        write_catalog(store, rest[-1])
        set_latest(store, rest[-1].manifest.id)
        return
    (store / "LATEST").unlink(missing_ok=True)
    if isinstance(store, Path):
        (store / "catalog.duckdb").unlink(missing_ok=True)


def _remove_files(store: AnyPath, names: Iterable[str]) -> None:
    root = store / "snapshots"
    for name in sorted(names):
        (root / name).unlink(missing_ok=True)
        if isinstance(root, Path):
            _remove_empty(root, (root / name).parent)


def _remove_empty(root: Path, folder: Path) -> None:
    """Remove a folder and those above it, up to ``root``, as far as they are empty."""
    with contextlib.suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent
