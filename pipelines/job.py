"""An ingestion from end to end: raw MovieLens files -> a snapshot, as a Beam pipeline.

Each byte range of the ratings becomes one shard; only vocabulary counts cross from worker to worker:

.. code-block:: text

    ranges -> ReadRatings -> JoinEntities -> DropDuplicates -> EncodeSlots -> WriteShards -> BuildVocabulary
    users, movies -> ReadEntities --^                    (one shard and one report a range)
    files  -> DescribeSource
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from featurestore.errors import ArtifactError, SourceError, SpecError
from featurestore.snapshot import Snapshot, staging
from featurestore.spec import DEFAULT_SPEC, FeatureSpec, load_spec
from pipelines.counters import NAMESPACE
from pipelines.describe import DescribeSource
from pipelines.duplicates import DropDuplicates, Rows, find_duplicates
from pipelines.join import JoinEntities, ReadEntities, WriteEntityRejects
from pipelines.publish import Reports, check_rejects, publish, read_reports
from pipelines.read import ByteRange, ReadRatings, plan_ranges
from pipelines.runner import choose_runner, run
from pipelines.source import Source
from pipelines.vocabulary import BuildVocabulary
from pipelines.write import EncodeSlots, WriteShards

SHARD_BYTES = 8 << 20
"""Raw bytes of a shard by default: about 350,000 ratings."""

Progress = Callable[[Path, int], None]
"""Called once the plan is known, with the staging folder and the number of shards to come."""


@dataclass(frozen=True)
class IngestConfig:
    """One ingestion: what, with which spec, how many bad records are tolerated, how shards are cut.

    max_reject_ratio: rejects over records read. shard_bytes: raw bytes of a shard, at least one line.
    """

    source: Source
    spec: FeatureSpec
    max_reject_ratio: float = 0.0
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.max_reject_ratio <= 1:
            problems.append(f"--max-reject-ratio must be in 0..1, got {self.max_reject_ratio}")
        if self.shard_bytes < 1:
            problems.append(f"--shard-bytes must be at least 1, got {self.shard_bytes}")
        if problems:
            raise SpecError("command line", problems)
        where = f"{self.source.uri} ({self.source.format.name})"
        self.spec.check_columns(self.source.format.columns, where)
        numbers = [feature for feature in self.spec.features if feature.column == self.spec.label.column]
        if numbers:
            names = ", ".join(repr(feature.name) for feature in numbers)
            raise SpecError(f"spec {self.spec.name!r}", [f"feature {names} reads the label's own column"])

    def absolute(self) -> Self:
        """Return the config with whole paths: workers stand in folders of their own."""
        source = dataclasses.replace(self.source, folder=self.source.folder.absolute())
        return dataclasses.replace(self, source=source)

    def ranges(self) -> list[ByteRange]:
        """Return the byte ranges of the ratings, one a shard."""
        path = self.source.ratings
        return plan_ranges(path, path.stat().st_size, self.shard_bytes)


@dataclass(frozen=True)
class IngestResult:
    """The snapshot, what it cost and the pipeline's counters by name."""

    snapshot: Snapshot
    seconds: float
    counters: dict[str, int]


def choose_spec(name: str | None, source: Source) -> tuple[FeatureSpec, list[str]]:
    """Load the spec called for; without one, the default less what the source lacks (also returned)."""
    if name is not None:
        return load_spec(name), []
    return load_spec(DEFAULT_SPEC).fit(source.format.columns)


def build(
    pipeline: beam.Pipeline, config: IngestConfig, ranges: list[ByteRange], folder: Path, superseded: Rows
) -> None:
    """Add the ingestion to ``pipeline``: it writes shards and reports into ``folder``.

    ``ranges``: of the ratings, one a shard. ``superseded``: rows that an earlier pass found to be duplicates.
    """
    source = config.source
    entities = pipeline | "ReadEntities" >> ReadEntities(source.folder, source.format)
    _ = entities | "WriteEntityRejects" >> WriteEntityRejects(folder)
    _ = (
        pipeline
        | "Sources" >> beam.Create(source.format.files)
        | "DescribeSource" >> DescribeSource(source.folder, folder)
    )
    _ = (
        pipeline
        | "Ranges" >> beam.Create(ranges)
        | "ReadRatings" >> ReadRatings(source.format)
        | "JoinEntities" >> JoinEntities(entities)
        | "DropDuplicates" >> DropDuplicates(superseded)
        | "EncodeSlots" >> EncodeSlots(config.spec)
        | "WriteShards" >> WriteShards(folder)
        | "BuildVocabulary" >> BuildVocabulary(config.spec, folder)
    )


def ingest(
    config: IngestConfig,
    store: Path,
    options: PipelineOptions,
    progress: Progress | None = None,
) -> IngestResult:
    """Run the pipeline and publish what it made; on any error the store stays as it was.

    Raises:
        SourceError: no record became an example, or the source changed while it was read.
        TooManyRejects: more records are bad than the config allows.
        StoreBusy: another ingestion into the store is running.
        ArtifactError: the store cannot be written, or the disk is full.
    """
    started = time.perf_counter()
    store, config = store.absolute(), config.absolute()
    try:
        with staging(store) as stage:
            counters, reports = _read_source(config, stage.folder, options, progress)
            snapshot = publish(stage, config.spec, config.source, reports)
    except OSError as error:
        raise ArtifactError(f"ingestion into {store} failed, nothing was published: {error}") from error
    return IngestResult(snapshot, time.perf_counter() - started, counters)


def _read_source(
    config: IngestConfig, folder: Path, options: PipelineOptions, progress: Progress | None
) -> tuple[dict[str, int], Reports]:
    """Read the source into ``folder``: once, or twice where some ratings supersede others."""
    stamps, ranges = config.source.stamps(), config.ranges()
    if progress:
        progress(folder, len(ranges))
    counters, reports = _run(config, ranges, folder, options, {})
    superseded = _superseded(reports, folder)
    if superseded:  # rare: read again without them, so that shards, counts and vocabulary agree
        for path in folder.iterdir():
            shutil.rmtree(path)
        counters, reports = _run(config, ranges, folder, options, superseded)
    if config.source.stamps() != stamps:
        raise SourceError(f"{config.source.uri} changed while it was read, nothing was published: run again")
    if not reports.examples:
        raise SourceError(
            f"{config.source.uri}: none of {reports.read:,} records became an example. "
            "Is it the right folder, or the right --format?"
        )
    return counters, reports


def _run(
    config: IngestConfig, ranges: list[ByteRange], folder: Path, options: PipelineOptions, superseded: Rows
) -> tuple[dict[str, int], Reports]:
    try:
        pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    except ValueError as error:  # Beam's own checks of its flags
        raise SpecError("command line", [str(error)]) from error
    build(pipeline, config, ranges, folder, superseded)
    try:
        result = run(pipeline)
    except RuntimeError as error:
        raise _told(error) from error
    reports = read_reports(folder)
    assert len(reports.shards) == len(ranges)
    check_rejects(folder, reports.reject_shards, reports.read, config.max_reject_ratio)
    return _counters(result), reports


def _told(error: RuntimeError) -> Exception:
    """Return what a worker's failure means to a user: a disk or file that failed, or the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if "[Errno " in line]
    if not lines:
        return error
    reason = lines[-1].split(" [while running")[0]
    return ArtifactError(f"a worker failed, nothing was published: {reason}")


def _superseded(reports: Reports, folder: Path) -> Rows:
    shards = [folder / report.shard.path for report in reports.shards]
    return find_duplicates(folder, shards, reports.examples)


def _counters(result: PipelineResult) -> dict[str, int]:
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return {counter.key.metric.name: counter.result or 0 for counter in found}
