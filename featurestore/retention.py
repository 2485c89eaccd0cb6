"""Removing snapshots: a shard goes when no manifest lists it any more, and not before.

The order of the steps makes a kill harmless at any point: first another snapshot becomes the newest, then
manifests go, with which snapshots cease to exist, then files. What a kill leaves is removed by the next
removal or ingestion.
"""

import datetime
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featurestore.cache import clear_cache
from featurestore.database import write_catalog
from featurestore.errors import ArtifactError, NotFound, StoreBusy
from featurestore.manifest import KINDS
from featurestore.paths import REQUESTS, AnyPath, RemotePath, files_below, sizes, sync, typed
from featurestore.snapshot import MANIFEST, Snapshot, latest, list_snapshots, read_snapshots, snapshot_folder
from featurestore.staging import is_abandoned, lock, set_latest


@dataclass(frozen=True)
class Removal:
    """What goes when some snapshots go; paths are relative to ``snapshots/``.

    freed, kept: files of theirs that no other snapshot uses, with remains of killed runs; those that the
    snapshots ``used_by`` use. Both with their bytes.
    heir: the snapshot that becomes the newest, None where the newest stays or none is left. newest: the id of
    the newest after that, None where none is left.
    """

    ids: tuple[str, ...]
    freed: tuple[str, ...]
    freed_bytes: int
    kept: tuple[str, ...]
    kept_bytes: int
    used_by: tuple[str, ...]
    heir: Snapshot | None
    newest: str | None


def plan_removal(store: AnyPath, ids: Sequence[str]) -> Removal:
    """Return what `remove_snapshots` would do; nothing is changed.

    Raises:
        NotFound: no such snapshot.
        ArtifactError: the manifest of one that stays cannot be read, so that what it uses is unknown; or the
            one that would become the newest is damaged.
    """
    names = _full_names(store, ids)
    found, unreadable = read_snapshots(store)
    _refuse_unreadable(store, {name: said for name, said in unreadable.items() if name not in names})
    rest = [snapshot for snapshot in found if snapshot.folder.name not in names]
    root = store / "snapshots"
    present = _present(store)
    theirs = _all_used(snapshot for snapshot in found if snapshot.folder.name in names)
    theirs |= {path for path in present if path.split("/")[0] in names}
    freed = sorted(_unused(store, present - _all_used(rest), known=theirs))
    kept = sorted(theirs & present & _all_used(rest))
    heir = _heir(store, rest)
    return Removal(
        ids=tuple(names),
        freed=tuple(freed),
        freed_bytes=sum(size or 0 for size in sizes([root / name for name in freed])),
        kept=tuple(kept),
        kept_bytes=sum(size or 0 for size in sizes([root / name for name in kept])),
        used_by=tuple(one.folder.name for one in rest if not _used(one).isdisjoint(kept)),
        heir=heir,
        newest=heir.folder.name if heir else latest(store) if rest else None,
    )


def remove_snapshots(store: AnyPath, ids: Sequence[str]) -> Removal:
    """Remove snapshots, named as `open_snapshot` takes them, with the files that no other one uses.

    If the newest is among them, the one made last of the rest takes its place. Also removes what killed runs
    left. One whose manifest cannot be read can be removed too. A reader of a removed snapshot fails. An
    object store has no lock: do not begin an append to a snapshot there while it is removed.

    Raises:
        NotFound, ArtifactError: as `plan_removal`, and nothing was removed; or a file could not be.
        StoreBusy: an ingestion is running.
    """
    names = _full_names(store, ids)
    with lock(store):
        _refuse_running(store)
        removal = plan_removal(store, names)
        try:
            _carry_out(store, removal)
        except OSError as error:
            raise ArtifactError(
                f"the removal stopped: {error}\nWhat {store} still lists is whole; run it again to end it."
            ) from error
    return removal


def _carry_out(store: AnyPath, removal: Removal) -> None:
    if removal.heir:
        write_catalog(store, removal.heir)
        set_latest(store, removal.heir.folder.name)
    elif removal.newest is None:
        _forget_newest(store)
    for name in removal.ids:
        _remove_manifest(store / "snapshots" / name)  # from here on it does not exist
    clear_cache(store, list(removal.ids))
    used = _all_used(list_snapshots(store))  # again: an append to an object store may have ended
    _remove_files(store, [name for name in removal.freed if name not in used])


def expired_snapshots(store: AnyPath, keep: int, older_than_days: int = 0) -> list[Snapshot]:
    """Return the snapshots that retention would remove, oldest first.

    All but the newest and the ``keep`` made last, and of these only those made ``older_than_days`` ago.
    """
    found = list_snapshots(store)
    if not found:
        return []
    newest = latest(store)
    limit = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=older_than_days)
    candidates = [one for one in found[: max(0, len(found) - keep)] if one.folder.name != newest]
    return [one for one in candidates if _made(one) <= limit]


def _made(snapshot: Snapshot) -> datetime.datetime:
    return datetime.datetime.fromisoformat(snapshot.manifest.created)


def _full_names(store: AnyPath, ids: Sequence[str]) -> list[str]:
    if "" in ids:  # of a shell's unset variable; elsewhere it means the newest
        raise NotFound("an empty id names no snapshot")
    return sorted({snapshot_folder(store, name).name for name in ids})


def _heir(store: AnyPath, rest: Sequence[Snapshot]) -> Snapshot | None:
    """Return the snapshot that becomes the newest where only ``rest`` is left, None if it is there."""
    if not rest or latest(store) in {snapshot.folder.name for snapshot in rest}:
        return None
    try:
        return rest[-1].check()
    except ArtifactError as error:
        raise ArtifactError(f"nothing was removed, for what would become the newest {error}") from error


def sweep(store: AnyPath) -> None:
    """Remove the files under ``snapshots/`` that no manifest lists; the store's lock must be held.

    On an object store, where another run may be copying its shards, only old ones. Nothing is removed while
    some manifest cannot be read.
    """
    found, unreadable = read_snapshots(store)
    if not unreadable:
        _remove_files(store, _unused(store, _present(store) - _all_used(found)))


def _present(store: AnyPath) -> set[str]:
    """Return all files under ``snapshots/`` but the manifests."""
    names = files_below(store / "snapshots")
    return {name for name in names if name.split("/")[1:] != [MANIFEST]}


def _unused(store: AnyPath, names: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return those of the unlisted files that no run is writing; of the ``known`` that is sure."""
    sure = set(known)
    root = store / "snapshots"
    if isinstance(root, Path):  # whoever holds the lock is the only one at work
        return list(names)
    return [name for name in names if name in sure or is_abandoned(root / name)]


def _used(snapshot: Snapshot) -> set[str]:
    """Return the files of a snapshot, relative to ``snapshots/``."""
    paths = (shard.path for kind in KINDS for shard in snapshot.manifest.shards[kind])
    return {posixpath.normpath(f"{snapshot.folder.name}/{path}") for path in paths}


def _all_used(snapshots: Iterable[Snapshot]) -> set[str]:
    return {path for snapshot in snapshots for path in _used(snapshot)}


def _refuse_unreadable(store: AnyPath, unreadable: dict[str, str]) -> None:
    for name, problem in unreadable.items():
        raise ArtifactError(
            f"nothing was removed: which shards snapshot {name} uses cannot be known ({problem}).\n"
            f"Mend it, or give it up with `slotstore snapshots remove {name} --store {typed(store)}`."
        )


def _refuse_running(store: AnyPath) -> None:
    """Raise StoreBusy if a run is staging on an object store, which has no lock to say so."""
    if isinstance(store, RemotePath):
        for run in (store / "staging").iterdir():
            if not is_abandoned(run):
                raise StoreBusy(
                    f"an ingestion into {store} is running, or was killed of late: "
                    f"wait for it, or remove {run}"
                )


def _forget_newest(store: AnyPath) -> None:
    (store / "LATEST").unlink(missing_ok=True)
    if isinstance(store, Path):
        (store / "catalog.duckdb").unlink(missing_ok=True)


def _remove_manifest(folder: AnyPath) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    if isinstance(folder, Path):
        sync(folder)  # a crash must not bring it back when its shards are gone


def _remove_files(store: AnyPath, names: Iterable[str]) -> None:
    root = store / "snapshots"
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(lambda name: (root / name).unlink(missing_ok=True), sorted(names)))
    if isinstance(root, Path):
        for folder in _folders(root):
            if not any(folder.iterdir()):
                folder.rmdir()


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders below ``root``, each after those in it."""
    folders = (path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())
    yield from sorted(folders, reverse=True)
