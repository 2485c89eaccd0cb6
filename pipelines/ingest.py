"""`slotstore ingest`: flags, progress and summary around `pipelines.job`."""

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

from featurestore.spec import DEFAULT_SPEC, FeatureSpec
from pipelines.job import SHARD_BYTES, IngestConfig, IngestResult, Progress, choose_spec, ingest
from pipelines.join import BROADCAST_BYTES, JOINS
from pipelines.movielens import FORMATS
from pipelines.runner import pipeline_options
from pipelines.shards import REPORTS
from pipelines.source import Source, open_source

EPILOG = """\b
Examples:
  slotstore ingest data/ml-1m --store store
  slotstore ingest ml-100k --store store --spec article
  slotstore ingest synthetic:ml-1m --store store
  slotstore ingest data/ml-1m --store store --direct_num_workers 8

Every other flag goes to Apache Beam (--runner, --direct_num_workers, ...)."""


@click.command(
    "ingest", epilog=EPILOG, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("source")
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the store; made if missing.",
)
@click.option(
    "--spec",
    "spec_name",
    metavar="NAME|FILE",
    help=f"A shipped spec (article, movielens) or a file. Default: as much of {DEFAULT_SPEC} as fits.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(sorted(FORMATS)),
    help="Format of SOURCE. Default: recognised.",
)
@click.option(
    "--max-reject-ratio",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of bad records to keep as rejects before the ingestion fails.",
)
@click.option("--shard-bytes", type=int, default=SHARD_BYTES, show_default=True, help="Raw bytes of a shard.")
@click.option(
    "--join",
    type=click.Choice(JOINS),
    default="auto",
    show_default=True,
    help="How ratings meet users and movies: each worker holds these whole, or all are shuffled by key.",
)
@click.option(
    "--broadcast-bytes",
    type=int,
    default=BROADCAST_BYTES,
    show_default=True,
    help="Raw bytes of users and movies above which --join auto shuffles.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    source: str,
    store: Path,
    spec_name: str | None,
    format_name: str | None,
    max_reject_ratio: float,
    shard_bytes: int,
    join: str,
    broadcast_bytes: int,
    *,
    as_json: bool,
) -> IngestResult:
    """Ingest raw MovieLens files into a snapshot of precomputed slots.

    SOURCE is a folder of ml-100k, ml-1m or ml-10m files, or synthetic:ml-1m, or synthetic:ROWS.
    A failed or killed ingestion leaves the store as it was; run it again.
    """
    options = pipeline_options(ctx.args, [option for each in ctx.command.params for option in each.opts])
    err = Console(stderr=True)
    opened = open_source(source, store, format_name)
    spec, dropped = choose_spec(spec_name, opened)
    if dropped:
        err.print(f"{opened.format.name} has no {', '.join(dropped)}: using the spec {spec.name} without.")
    config = IngestConfig(opened, spec, max_reject_ratio, shard_bytes, join, broadcast_bytes)
    _prepare(opened, err)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    with _progress(err) as follow:
        result = ingest(config, store, options, follow)
    click.echo(json.dumps(summary(result), indent=1) if as_json else summary_text(result, spec, store))
    return result


def _prepare(source: Source, err: Console) -> None:
    with _bar(err) as bar:
        task = bar.add_task("generating", visible=False)
        source.prepare(lambda rows, total: bar.update(task, completed=rows, total=total, visible=True))


def _bar(err: Console) -> Bar:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=err, transient=True, disable=not err.is_terminal)


@contextlib.contextmanager
def _progress(err: Console) -> Iterator[Progress]:
    """Yield a callback that shows how many shards are done, by counting their reports."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    with _bar(err) as bar:

        def follow(folder: Path, shards: int) -> None:
            task = bar.add_task("ingesting shards", total=shards)
            threads.append(threading.Thread(target=_watch, args=(bar, task, folder, stop), daemon=True))
            threads[-1].start()

        try:
            yield follow
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _watch(bar: Bar, task: TaskID, folder: Path, stop: threading.Event) -> None:
    done = 0
    while not stop.wait(0.2):
        done = max(
            done, sum(1 for _ in (folder / REPORTS).glob("examples-*.json"))
        )  # publishing removes them
        bar.update(task, completed=done)


def summary(result: IngestResult) -> dict[str, object]:
    """Return what happened, for machines."""
    manifest = result.snapshot.manifest
    return {
        "snapshot": manifest.id,
        "content_digest": manifest.content_digest,
        "fingerprint": manifest.fingerprint,
        "format": manifest.source["format"],
        **manifest.counts,
        "splits": manifest.splits["rows"],
        "seconds": round(result.seconds, 3),
        "rows_per_second": round(manifest.counts["read"] / result.seconds),
        "bytes": sum(shard.bytes for shards in manifest.shards.values() for shard in shards),
        "shards": len(manifest.shards["examples"]),
        "counters": result.counters,
    }


def summary_text(result: IngestResult, spec: FeatureSpec, store: Path) -> str:
    """Return what happened, for a person."""
    facts, manifest = summary(result), result.snapshot.manifest
    splits = ", ".join(f"{name} {rows:,}" for name, rows in manifest.splits["rows"].items())
    return f"""snapshot  {manifest.id} in {store}  (spec {spec.name}, {manifest.source["format"]})
read      {manifest.counts["read"]:,} rows in {result.seconds:.1f} s: {facts["rows_per_second"]:,} rows/s
examples  {manifest.counts["examples"]:,}   rejects {manifest.counts["rejects"]:,}
splits    {splits}
size      {facts["bytes"]:,} bytes in {facts["shards"]} shard{"s" if facts["shards"] != 1 else ""}"""


if __name__ == "__main__":
    from featurestore.cli import run_command

    run_command(command)
