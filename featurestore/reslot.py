"""Re-slotting: a snapshot for another table size, made from the hashes that the vocabulary keeps.

The child is the snapshot that a full ingestion under its spec would have made: same rows in the same order,
same splits, digests and id. No raw file is read. Its rejects, and the vocabularies of features whose seeds
stay, are the parent's files, where they are. Its examples are written anew where their slots are others.
"""

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.database import write_catalog
from featurestore.digest import Sums, add_sums, row_sums
from featurestore.encode import encode
from featurestore.errors import ArtifactError, SpecError
from featurestore.manifest import PACKAGES, Manifest, Shard
from featurestore.paths import AnyPath
from featurestore.retention import sweep
from featurestore.shards import shard_name, write_parquet
from featurestore.snapshot import Snapshot, list_snapshots, open_snapshot
from featurestore.spec import Feature, FeatureSpec
from featurestore.staging import check_newest, staging
from featurestore.vocabulary import Vocabulary, read_vocabulary

MOST_THREADS = 16
"""Each has one shard in memory."""

Progress = Callable[[int, int], None]
"""Called with the number of shards that are done, and of all."""


@dataclass(frozen=True)
class Reslotted:
    """A snapshot with the slots asked for, the one whose rows it has, and what it cost.

    made: whether it was made now; not where the parent, or one that was made of it before, has these slots.
    """

    snapshot: Snapshot
    parent: Snapshot
    seconds: float
    made: bool

    def __str__(self) -> str:
        """Say what was done, in one line."""
        name, parent = self.snapshot.manifest.id, self.parent.manifest.id
        if self.snapshot is self.parent:
            return f"snapshot {name} has these slots already"
        how = f"made of {parent} in {self.seconds:.1f} s" if self.made else f"made of {parent} before"
        return f"snapshot {name}, {how}: {self.changes}"

    @property
    def changes(self) -> str:
        """What is another in the spec than in the parent's, for a person."""
        old, new = (one.manifest.load_spec() for one in (self.parent, self.snapshot))
        names = ("num_slots", "dim", "vector")
        changes = [(name, getattr(old.table, name), getattr(new.table, name)) for name in names]
        pairs = zip(old.features, new.features, strict=True)
        changes += [(f"lookups of {one.name}", len(one.seeds), len(other.seeds)) for one, other in pairs]
        told = [f"{what} {_told(was)} -> {_told(now)}" for what, was, now in changes if was != now]
        return ", ".join(told) or "other seeds"


def _told(number: int | None) -> str:
    return "none" if number is None else f"{number:,}"


def reslot(
    store: AnyPath,
    snapshot_id: str | None = None,
    *,
    num_slots: int | None = None,
    lookups: Mapping[str, int] | None = None,
    spec: FeatureSpec | None = None,
    newest: bool = True,
    progress: Progress | None = None,
) -> Reslotted:
    """Make of a snapshot one for another table; on any error the store stays as it was.

    Args:
        store: where the snapshot is, and where the child goes.
        snapshot_id: as `open_snapshot` takes it; the newest by default.
        num_slots: rows of the table; as they are by default.
        lookups: how many, by feature; the other features keep theirs.
        spec: instead of these two, one that has another table or other seeds, and all else the same.
        newest: whether the child becomes the newest snapshot. If not, one that is there already is taken.
        progress: follows it.

    Raises:
        SpecError: a number is out of range, a feature unknown, or the spec asks for another ingestion.
        NotFound: no such snapshot, or it has no vocabulary.
        ArtifactError: a shard is damaged, or the store cannot be written.
        StoreBusy: another process writes to the store, or has made another snapshot the newest.
    """
    if spec is not None and (num_slots is not None or lookups):
        raise SpecError(
            "re-slotting", ["a spec says all of the table: give it, or --num-slots and --lookups"]
        )
    started, store = time.perf_counter(), store.absolute()
    parent = open_snapshot(store, snapshot_id)
    old = parent.manifest.load_spec()
    spec = old.resized(num_slots, lookups) if spec is None else _with_same_rows(spec, old)
    found = parent if spec.fingerprint == parent.manifest.fingerprint else None
    if found is None and not newest:
        found = _made_before(store, parent, spec)
    if found:
        return Reslotted(found, parent, time.perf_counter() - started, made=False)
    follows = newest and snapshot_id in (None, "latest")
    try:
        child = _make(store, parent, spec, follows=follows, newest=newest, progress=progress)
    except OSError as error:
        raise ArtifactError(f"re-slotting in {store} failed, nothing was published: {error}") from error
    return Reslotted(child, parent, time.perf_counter() - started, made=True)


def _with_same_rows(spec: FeatureSpec, old: FeatureSpec) -> FeatureSpec:
    """Return a spec under which the examples are those that there are, but for their slots."""
    asked, known = ([(one.name, one.column) for one in each.features] for each in (spec, old))
    problems = []
    if asked != known:
        problems.append(f"its features are {_listed(asked)}; the snapshot has {_listed(known)}")
    for section in ("label", "split"):
        wanted, there = (each.to_dict()[section] for each in (spec, old))
        if wanted != there:
            problems.append(f"its [{section}] is {wanted}; the snapshot has {there}")
    if problems:
        where = f"spec {spec.name!r} needs an ingestion, re-slotting changes the table and the lookups alone"
        raise SpecError(where, problems)
    return spec


def _listed(features: Sequence[tuple[str, str]]) -> str:
    return ", ".join(name if name == column else f"{name} (of {column})" for name, column in features)


def _made_before(store: AnyPath, parent: Snapshot, spec: FeatureSpec) -> Snapshot | None:
    """Return a snapshot with the parent's rows and the spec's slots, None if there is no whole one."""
    for one in list_snapshots(store):
        if one.manifest.fingerprint == spec.fingerprint and (_is_of(one, parent) or _is_of(parent, one)):
            return None if one.problems(deep=False) else one
    return None


def _is_of(child: Snapshot, parent: Snapshot) -> bool:
    return child.manifest.is_reslotted and child.manifest.parent == parent.manifest.id


def _make(
    store: AnyPath,
    parent: Snapshot,
    spec: FeatureSpec,
    *,
    follows: bool,
    newest: bool,
    progress: Progress | None,
) -> Snapshot:
    """Stage the child and publish it. ``follows``: the parent must be the newest until then."""
    with staging(store) as stage:
        if follows:
            check_newest(store, parent, "re-slotted")
        manifest = _stage(parent, spec, stage.folder, progress)
        if follows:
            check_newest(store, parent, "re-slotted")
        child = stage.publish(manifest, functools.partial(write_catalog, store), newest=newest)
        with contextlib.suppress(OSError):  # what could not be removed is when next it is tried
            sweep(store)
    return child


@dataclass(frozen=True)
class _Written:
    """A shard of the child and the sums of its rows."""

    shard: Shard
    sums: Sums


@dataclass(frozen=True)
class _Work:
    """The child of ``parent`` with the slots of ``spec``, staged in ``folder``. words: by feature."""

    parent: Snapshot
    spec: FeatureSpec
    words: Mapping[str, Vocabulary]
    folder: AnyPath

    @property
    def raw_columns(self) -> list[str]:
        """The columns of the examples that are no slots."""
        manifest = self.parent.manifest
        return [name for name in manifest.columns if name not in manifest.load_spec().slot_columns]

    def write(self, index: int) -> _Written:
        """Write the index-th shard of the examples."""
        shards = self.parent.manifest.shards["examples"]
        raw = self.parent.read(shards[index], self.raw_columns)
        try:
            table = encode(raw, self.spec, self._hashes_of)
        except ValueError as error:
            raise self.parent.damaged([f"{shards[index].path}: {error}"]) from error
        shard = write_parquet(table, self.folder, shard_name("examples", index, len(shards)))
        return _Written(shard, row_sums(table))

    def _hashes_of(self, feature: Feature, text: pa.DictionaryArray) -> npt.NDArray[np.uint32]:
        return self.words[feature.name].hashes_of(text)


def _stage(parent: Snapshot, spec: FeatureSpec, folder: AnyPath, progress: Progress | None) -> Manifest:
    """Write the child's own shards and return its manifest."""
    stored = read_vocabulary(parent)
    work = _Work(parent, spec, {one.name: stored[one.name].under(one) for one in spec.features}, folder)
    examples, sums = _examples(work, progress)
    old = parent.manifest
    slots = dict.fromkeys(spec.slot_columns, "int32")
    return dataclasses.replace(
        old,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        fingerprint=spec.fingerprint,
        spec=spec.to_dict(),
        columns={name: old.columns[name] for name in work.raw_columns} | slots,
        shards={
            "examples": examples,
            "vocabulary": _vocabulary(work),
            "rejects": [shard.seen_from_child(old.id) for shard in old.shards["rejects"]],
        },
        versions={**old.versions, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        sums=sums,
        parent=old.id,
    )


def _examples(work: _Work, progress: Progress | None) -> tuple[list[Shard], Sums]:
    """Return the shards of the examples and the sums of their rows: the parent's where all slots stay."""
    old = work.parent.manifest
    if _slots(old.load_spec()) == _slots(work.spec):
        return [shard.seen_from_child(old.id) for shard in old.shards["examples"]], old.sums
    written = _write_examples(work, progress)
    return [one.shard for one in written], functools.reduce(add_sums, (one.sums for one in written), (0, 0))


def _slots(spec: FeatureSpec) -> tuple[object, ...]:
    return (spec.table.num_slots, *((feature.name, feature.seeds) for feature in spec.features))


def _write_examples(work: _Work, progress: Progress | None) -> list[_Written]:
    """Write all shards, some at a time: Arrow, which does the work, releases the interpreter's lock."""
    count = len(work.parent.manifest.shards["examples"])
    written: list[_Written] = []
    if progress:
        progress(0, count)
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MOST_THREADS)) as pool:
        for one in pool.map(work.write, range(count)):  # an error takes back what has not begun
            written.append(one)
            if progress:
                progress(len(written), count)
    return written


def _vocabulary(work: _Work) -> list[Shard]:
    """Return the shards of the vocabulary: the parent's, written anew where a feature's seeds are others."""
    manifest, shards = work.parent.manifest, []
    old = zip(manifest.load_spec().features, manifest.shards["vocabulary"], strict=True)
    for index, ((feature, shard), new) in enumerate(zip(old, work.spec.features, strict=True)):
        if feature == new:
            shards.append(shard.seen_from_child(manifest.id))
        else:
            name = shard_name("vocabulary", index, len(work.spec.features))
            shards.append(write_parquet(work.words[new.name].to_table(), work.folder, name))
    return shards
