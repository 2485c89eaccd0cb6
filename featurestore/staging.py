"""Writing to a store: one ingestion at a time, or re-slotting, is staged, then published all at once."""

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from featurestore.errors import ArtifactError, SpecError, StoreBusy
from featurestore.manifest import Manifest, Shard
from featurestore.paths import REQUESTS, AnyPath, RemotePath, locked, remove_tree, sync, write_whole
from featurestore.snapshot import MANIFEST, Snapshot, latest, open_snapshot, read_snapshot

ABANDONED_SECONDS = 24 * 3600
"""An object store has no lock: what lies in staging unchanged for so long belongs to no run any more."""


@dataclass(frozen=True)
class Staging:
    """A folder inside the store that becomes a snapshot when published."""

    store: AnyPath
    folder: AnyPath

    def publish(
        self,
        manifest: Manifest,
        prepare: Callable[[Snapshot], object] | None = None,
        *,
        newest: bool = True,
    ) -> Snapshot:
        """Make the staged files a snapshot, all at once, and, unless told otherwise, the newest.

        The snapshot exists when its manifest stands beside its shards; by then their bytes are on the disk.
        Where an intact snapshot of the same content is there already, that one becomes the newest; a
        damaged one is replaced. ``prepare`` is called before it becomes the newest: if it fails, the
        last one stays and this one is gone.
        """
        manifest = manifest.named()
        target = self.store / "snapshots" / manifest.id
        placed = not _is_intact(target)
        if placed:
            if not newest:
                keep_newest(self.store)
            self._place(target, manifest)
        if not newest:
            return open_snapshot(self.store, manifest.id)
        try:
            if prepare:
                prepare(open_snapshot(self.store, manifest.id))
            set_latest(self.store, manifest.id)
        except BaseException:
            if placed and not is_latest(self.store, manifest.id):  # what fails is not published
                (target / MANIFEST).unlink(missing_ok=True)
            raise
        return open_snapshot(self.store, manifest.id)

    def _place(self, target: AnyPath, manifest: Manifest) -> None:
        if isinstance(self.folder, Path) and isinstance(target, Path):
            _rename(self.folder, target, manifest)
        elif isinstance(self.folder, RemotePath) and isinstance(target, RemotePath):
            _copy(self.folder, target, manifest)


def _rename(folder: Path, target: Path, manifest: Manifest) -> None:
    """Turn the staged folder into the snapshot's, or into one in it where there are remains of the same id.

    Other snapshots may use those remains; `featurestore.retention.sweep` removes what none does.
    """
    with ThreadPoolExecutor(REQUESTS) as pool:  # the disk orders them better than one after another
        list(pool.map(sync, [*folder.rglob("*"), folder]))
    if target.exists():
        run = _run_name(folder)
        folder.rename(target / run)
        _write_manifest(target, _below(manifest, run))
    else:
        target.parent.mkdir(exist_ok=True)
        _write_manifest(folder, manifest)
        folder.rename(target)
    sync(target.parent)


def _copy(folder: RemotePath, target: RemotePath, manifest: Manifest) -> None:
    """Copy the staged shards where the snapshot's are, then put its manifest there: nothing can be renamed.

    They go to a folder of the run's name, so that two runs with the same contents never mix.
    """
    run = _run_name(folder)
    own = [shard.path for shards in manifest.shards.values() for shard in shards if not shard.is_inherited]
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(lambda path: (folder / path).copy_to(target / run / path), own))
    _write_manifest(target, _below(manifest, run))


def _run_name(folder: AnyPath) -> str:
    return f"run-{folder.name[:8]}"


def _below(manifest: Manifest, folder: str) -> Manifest:
    """Return the manifest with its own shards in ``folder``."""

    def moved(shard: Shard) -> Shard:
        return shard if shard.is_inherited else dataclasses.replace(shard, path=f"{folder}/{shard.path}")

    shards = {kind: [moved(shard) for shard in shards] for kind, shards in manifest.shards.items()}
    return dataclasses.replace(manifest, shards=shards)


def _write_manifest(folder: AnyPath, manifest: Manifest) -> None:
    write_whole(folder / MANIFEST, manifest.to_json().encode(), durable=True)


def set_latest(store: AnyPath, snapshot_id: str) -> None:
    """Make a snapshot the newest."""
    write_whole(store / "LATEST", f"{snapshot_id}\n".encode(), durable=True)


def keep_newest(store: AnyPath) -> None:
    """Write down which snapshot is the newest, where that is only known from when it was made."""
    if not (store / "LATEST").exists():
        set_latest(store, latest(store))


def check_newest(store: AnyPath, snapshot: Snapshot, doing: str) -> None:
    """Raise StoreBusy if another snapshot has become the newest since one was opened.

    ``doing``: what was being done with it, as in "while it was appended to".
    """
    if (found := latest(store)) != snapshot.manifest.id:
        raise StoreBusy(
            f"{found} has become the newest snapshot of {store} while {snapshot.manifest.id} was {doing}, "
            "nothing was published: run again"
        )


def is_latest(store: AnyPath, snapshot_id: str) -> bool:
    """Whether LATEST names a snapshot."""
    try:
        return (store / "LATEST").read_text(encoding="utf-8").strip() == snapshot_id
    except OSError:
        return False


def _is_intact(folder: AnyPath) -> bool:
    try:
        return not read_snapshot(folder).problems(deep=True)
    except (ArtifactError, pa.ArrowException):
        return False


@contextlib.contextmanager
def staging(store: AnyPath) -> Iterator[Staging]:
    """Lock the store for one ingestion and yield its staging folder, removed when done.

    What a killed ingestion left behind is removed first: whoever holds the lock is the only one at work.
    On an object store, which has no lock, each run has a folder and its snapshot names of their own, and
    what is there is removed when it has not changed for `ABANDONED_SECONDS`.

    Raises:
        StoreBusy: another process is writing to the store.
        ArtifactError: the store cannot be written.
    """
    scratch = store / "staging"
    with lock(store):
        _clear(scratch)
        folder = scratch / uuid.uuid4().hex
        folder.mkdir(parents=True)
        if isinstance(folder, RemotePath):
            _mark(folder)
        try:
            yield Staging(store, folder)
        finally:
            remove_tree(folder)


def _mark(folder: RemotePath) -> None:
    """Write an object, to learn now whether the store can be written and not after the source was read."""
    try:
        (folder / "started").write_bytes(b"")
    except OSError as error:
        raise ArtifactError(f"the store cannot be written: {error}") from error


@contextlib.contextmanager
def lock(store: AnyPath) -> Iterator[None]:
    """Hold a local store's lock, made if missing, for writing; an object store has none.

    Raises:
        SpecError: the path cannot be one of a store.
        StoreBusy: another process holds it.
        ArtifactError: the store cannot be written.
    """
    if isinstance(store, RemotePath):
        yield
        return
    if "?" in str(store.absolute()):
        raise SpecError(str(store), ["DuckDB opens no database in a path with a question mark"])
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(store / "ingest.lock"))
        except BlockingIOError as error:
            raise StoreBusy(
                f"another ingestion into {store} or a removal or re-slotting is running: "
                "wait for it, or use another --store"
            ) from error
        except OSError as error:
            raise ArtifactError(f"the store {store} cannot be written: {error}") from error
        yield


def _clear(scratch: AnyPath) -> None:
    """Remove what earlier runs left behind."""
    if isinstance(scratch, Path):
        for path in scratch.glob("*"):
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return
    for run in scratch.iterdir():
        if is_abandoned(run):
            remove_tree(run) if run.is_dir() else run.unlink(missing_ok=True)


def is_abandoned(path: RemotePath) -> bool:
    """Whether an object, or all below a prefix, is unchanged for `ABANDONED_SECONDS`: no run writes it."""
    if path.is_dir():
        infos = path.filesystem.get_file_info(fs.FileSelector(path.key, recursive=True, allow_not_found=True))
    else:
        infos = [path.filesystem.get_file_info(path.key)]
    limit = time.time_ns() - ABANDONED_SECONDS * 10**9
    return all((info.mtime_ns or 0) < limit for info in infos if info.type == fs.FileType.File)
