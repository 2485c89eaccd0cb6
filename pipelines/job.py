"""An ingestion from end to end: raw MovieLens files -> a snapshot, as a Beam pipeline.

Each byte range of the ratings becomes one shard; only vocabulary counts cross from worker to worker:

.. code-block:: text

    ranges, users, movies -> BroadcastJoin or ShuffleJoin -> DropDuplicates -> EncodeSlots -> WriteShards
                                     BuildVocabulary <- CountValues <- (one shard and one report a range)
    an append: the parent's vocabulary -> ReadVocabulary -^  ^- RewriteShards <- its replaced examples
    files -> DescribeSource
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from featurestore.errors import ArtifactError, SourceError, SpecError
from featurestore.paths import AnyPath, remove_tree
from featurestore.snapshot import Snapshot
from featurestore.spec import DEFAULT_SPEC, FeatureSpec, load_spec
from featurestore.staging import check_newest, staging
from pipelines.append import (
    ReadVocabulary,
    RewriteShards,
    Rewriting,
    appended_before,
    check_parent,
)
from pipelines.counters import NAMESPACE
from pipelines.describe import DescribeSource
from pipelines.duplicates import SUPERSEDED_FOLDER, DropDuplicates, Superseded, find_superseded
from pipelines.failures import system_error
from pipelines.join import BROADCAST_BYTES, JOINS, BroadcastJoin
from pipelines.publish import Reports, check_complete, check_rejects, publish, read_reports
from pipelines.read import ByteRange, plan_files
from pipelines.runner import choose_runner, run
from pipelines.shuffle_join import ShuffleJoin
from pipelines.source import Source
from pipelines.vocabulary import BuildVocabulary, CountValues
from pipelines.write import EncodeSlots, WriteShards

SHARD_BYTES = 8 << 20
"""Raw bytes of a shard by default: about 350,000 ratings."""

Progress = Callable[[AnyPath, int], None]
"""Called once the plan is known, with the staging folder and the number of shards to come."""


@dataclass(frozen=True)
class IngestConfig:
    """One ingestion: what, with which spec, how many bad records are tolerated, how shards are cut.

    max_reject_ratio: rejects over records read. shard_bytes: raw bytes of a shard, at least one line.
    join: how users and movies come to the ratings, as `JOINS`; auto broadcasts up to ``broadcast_bytes``.
    parent: the snapshot to append to.
    """

    source: Source
    spec: FeatureSpec
    max_reject_ratio: float = 0.0
    shard_bytes: int = SHARD_BYTES
    join: str = "auto"
    broadcast_bytes: int = BROADCAST_BYTES
    parent: Snapshot | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.max_reject_ratio <= 1:
            problems.append(f"--max-reject-ratio must be in 0..1, got {self.max_reject_ratio}")
        if self.shard_bytes < 1:
            problems.append(f"--shard-bytes must be at least 1, got {self.shard_bytes}")
        if self.join not in JOINS:
            problems.append(f"--join must be one of {', '.join(JOINS)}, got {self.join!r}")
        if self.broadcast_bytes < 0:
            problems.append(f"--broadcast-bytes must be at least 0, got {self.broadcast_bytes}")
        if problems:
            raise SpecError("command line", problems)
        where = f"{self.source.uri} ({self.source.format.name})"
        if self.parent:
            check_parent(self.parent, self.spec, self.source.format.columns, where)
        object.__setattr__(self, "source", self.source.read_from(self.spec.split.files))  # it is frozen
        self.spec.check_columns(self.source.format.columns, where)
        numbers = [feature for feature in self.spec.features if feature.column == self.spec.label.column]
        if numbers:
            names = ", ".join(repr(feature.name) for feature in numbers)
            raise SpecError(f"spec {self.spec.name!r}", [f"feature {names} reads the label's own column"])

    def absolute(self) -> Self:
        """Return the config with whole paths: workers stand in folders of their own."""
        source = dataclasses.replace(self.source, folder=self.source.folder.absolute())
        parent = self.parent and dataclasses.replace(self.parent, folder=self.parent.folder.absolute())
        return dataclasses.replace(self, source=source, parent=parent)

    def ranges(self) -> list[ByteRange]:
        """Return the byte ranges of the ratings, one a shard."""
        return plan_files(self.source.ratings, self.shard_bytes)

    def shuffles(self) -> bool:
        """Whether ratings meet users and movies in a shuffle, instead of in every worker."""
        files = [self.source.folder / entity.file for entity in self.source.format.entities]
        large = sum(file.stat().st_size for file in files) > self.broadcast_bytes
        return self.join == "shuffle" or (self.join == "auto" and large)


@dataclass(frozen=True)
class IngestResult:
    """The snapshot, what it cost, the pipeline's counters by name, and what was read.

    ``parent``: what was appended to. ``reports`` is None where the source had been appended before, and
    nothing was done.
    """

    snapshot: Snapshot
    parent: Snapshot | None
    seconds: float
    counters: dict[str, int]
    reports: Reports | None


def choose_spec(
    name: str | None, source: Source, parent: Snapshot | None = None
) -> tuple[FeatureSpec, list[str]]:
    """Load the spec called for; without one, the parent's, or the default less what the source lacks.

    Also returned: the names of the features that it lacks.
    """
    if name is not None:
        return load_spec(name), []
    if parent:
        return parent.manifest.load_spec(), []
    return load_spec(DEFAULT_SPEC).fit(source.format.columns)


def build(
    pipeline: beam.Pipeline, config: IngestConfig, ranges: list[ByteRange], superseded: Superseded
) -> None:
    """Add the ingestion to ``pipeline``: it writes shards and reports into a folder.

    ``ranges``: of the ratings, one a shard. ``superseded``: rows that an earlier pass found to be
    duplicates; the folder is theirs.
    """
    source, spec, folder = config.source, config.spec, superseded.folder
    join = ShuffleJoin if config.shuffles() else BroadcastJoin
    _ = (
        pipeline
        | "Sources" >> beam.Create(source.format.files, reshuffle=False)
        | "DescribeSource" >> DescribeSource(source.folder, folder)
    )
    counts = (
        pipeline
        | "Ranges" >> beam.Create(ranges)
        | "JoinEntities" >> join(source.folder, source.format, folder)
        | "DropDuplicates" >> DropDuplicates(superseded)
        | "EncodeSlots" >> EncodeSlots(spec)
        | "WriteShards" >> WriteShards(folder)
        | "CountValues" >> CountValues(spec)
    )
    if config.parent:
        counts = [counts, *_parent_counts(pipeline, config, config.parent, superseded)] | beam.Flatten()
    _ = counts | "BuildVocabulary" >> BuildVocabulary(spec, folder)


def _parent_counts(
    pipeline: beam.Pipeline, config: IngestConfig, parent: Snapshot, superseded: Superseded
) -> Iterator[beam.PCollection]:
    """Yield what the parent adds to the vocabulary, and what its replaced examples take from it."""
    paths = parent.files("vocabulary")
    yield pipeline | "ParentVocabulary" >> beam.Create(paths) | "ReadVocabulary" >> ReadVocabulary()
    if superseded.old:
        files = tuple(parent.files("examples"))
        work = Rewriting(files, superseded, superseded.folder)
        numbers = pipeline | "ParentShards" >> beam.Create(sorted(superseded.old))
        yield numbers | "RewriteShards" >> RewriteShards(work, config.spec)


def ingest(
    config: IngestConfig,
    store: AnyPath,
    options: PipelineOptions,
    progress: Progress | None = None,
) -> IngestResult:
    """Run the pipeline and publish what it made; on any error the store stays as it was.

    Raises:
        SourceError: no record became an example, or the source changed while it was read.
        TooManyRejects: more records are bad than the config allows.
        StoreBusy: another ingestion into the store is running, or has made the parent an old snapshot.
        ArtifactError: the store cannot be written, or the disk is full.
    """
    started = time.perf_counter()
    store, config = store.absolute(), config.absolute()
    parent = config.parent
    try:
        if parent and appended_before(parent, config.source):
            return IngestResult(parent, parent, time.perf_counter() - started, {}, None)
        with staging(store) as stage:
            if parent:
                check_newest(store, parent, "appended to")
            counters, reports = _read_source(config, stage.folder, options, progress)
            if parent:
                check_newest(store, parent, "appended to")
            snapshot = publish(stage, config.spec, config.source, reports, parent)
    except OSError as error:
        raise ArtifactError(f"ingestion into {store} failed, nothing was published: {error}") from error
    return IngestResult(snapshot, parent, time.perf_counter() - started, counters, reports)


def _read_source(
    config: IngestConfig, folder: AnyPath, options: PipelineOptions, progress: Progress | None
) -> tuple[dict[str, int], Reports]:
    """Read the source into ``folder``: once, or twice where some ratings supersede others."""
    stamps, ranges = config.source.stamps(), config.ranges()
    if progress:
        progress(folder, len(ranges))
    counters, reports = _run(config, ranges, Superseded(folder), options)
    superseded = _superseded(config, reports, folder)
    if superseded:  # read again without them, so that shards, counts and vocabulary agree
        for path in folder.iterdir():
            if path.is_dir() and path.name != SUPERSEDED_FOLDER:
                remove_tree(path)
        counters, reports = _run(config, ranges, superseded, options)
    if config.source.stamps() != stamps:
        raise SourceError(f"{config.source.uri} changed while it was read, nothing was published: run again")
    if not (reports.examples or reports.superseded):
        raise SourceError(
            f"{config.source.uri}: none of {reports.read:,} records became an example. "
            "Is it the right folder, or the right --format?"
        )
    return counters, reports


def _run(
    config: IngestConfig, ranges: list[ByteRange], superseded: Superseded, options: PipelineOptions
) -> tuple[dict[str, int], Reports]:
    try:
        pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    except ValueError as error:  # Beam's own checks of its flags
        raise SpecError("command line", [str(error)]) from error
    build(pipeline, config, ranges, superseded)
    try:
        result = run(pipeline)
    except RuntimeError as error:
        if reason := system_error(str(error)):
            raise ArtifactError(f"a worker failed, nothing was published: {reason}") from error
        raise
    reports = read_reports(superseded.folder)
    check_complete(reports, len(ranges), len(config.spec.features), config.parent)
    check_rejects(superseded.folder, reports, config.max_reject_ratio)
    return _counters(result), reports


def _superseded(config: IngestConfig, reports: Reports, folder: AnyPath) -> Superseded:
    shards = [folder / report.shard.path for report in reports.shards]
    parent = config.parent.files("examples") if config.parent else []
    return find_superseded(folder, shards, reports.examples, parent)


def _counters(result: PipelineResult) -> dict[str, int]:
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return {counter.key.metric.name: counter.result or 0 for counter in found}
