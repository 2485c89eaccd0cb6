"""`slotstore ingest`: flags, progress and summary around `pipelines.job`."""

import contextlib
import json
import logging
import threading
from collections.abc import Iterator

import click
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

from featurestore.options import json_option, store_option
from featurestore.output import progress_bar
from featurestore.paths import AnyPath, RemotePath, files_below
from featurestore.snapshot import open_snapshot
from featurestore.spec import DEFAULT_SPEC, FeatureSpec, shipped_specs
from pipelines.job import SHARD_BYTES, IngestConfig, IngestResult, Progress, choose_spec, ingest
from pipelines.join import BROADCAST_BYTES, JOINS
from pipelines.movielens import FORMATS
from pipelines.publish import Reports
from pipelines.reports import REPORTS
from pipelines.runner import pipeline_options
from pipelines.source import Source, open_source

EPILOG = """\b
Examples:
  slotstore ingest data/ml-1m --store store
  slotstore ingest ml-100k --store store --spec article
  slotstore ingest synthetic:ml-1m --store store
  slotstore ingest data/ml-1m --store store --direct_num_workers 8
  slotstore ingest data/today --store store --append

Every other flag goes to Apache Beam (--runner, --direct_num_workers, ...)."""


@click.command(
    "ingest", epilog=EPILOG, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("source")
@store_option
@click.option(
    "--spec",
    "spec_name",
    metavar="NAME|FILE",
    help=f"A shipped spec ({', '.join(shipped_specs())}) or a file. Default: what fits of {DEFAULT_SPEC}.",
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
@click.option(
    "--append",
    is_flag=True,
    help="Make a snapshot of the newest one and SOURCE: the newest one's shards are used, not read again.",
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
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    source: str,
    store: AnyPath,
    spec_name: str | None,
    format_name: str | None,
    max_reject_ratio: float,
    shard_bytes: int,
    join: str,
    broadcast_bytes: int,
    *,
    append: bool,
    as_json: bool,
) -> IngestResult:
    """Ingest raw MovieLens files into a snapshot of precomputed slots.

    SOURCE is a folder of ml-100k, ml-1m, ml-10m or `.csv` files (ml-20m to 32m, ml-latest: ml-csv),
    or synthetic:ml-1m, or synthetic:ROWS.
    A failed or killed ingestion leaves the store as it was; run it again. With --append, of two ratings
    of one movie by one user the later stays; a source that was appended before changes nothing.
    """
    options = pipeline_options(ctx.args, [option for each in ctx.command.params for option in each.opts])
    err = Console(stderr=True)
    opened = open_source(source, store, format_name)
    parent = open_snapshot(store) if append else None
    spec, dropped = choose_spec(spec_name, opened, parent)
    if dropped:
        err.print(f"{opened.format.name} has no {', '.join(dropped)}: using the spec {spec.name} without.")
    config = IngestConfig(opened, spec, max_reject_ratio, shard_bytes, join, broadcast_bytes, parent)
    _prepare(opened, err)
    # A worker's error reaches us all the same, and without a trace.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    with _progress(err) as follow:
        result = ingest(config, store, options, follow)
    click.echo(json.dumps(summary(result), indent=1) if as_json else summary_text(result, spec, store))
    return result


def _prepare(source: Source, err: Console) -> None:
    with progress_bar(err) as bar:
        task = bar.add_task("generating", visible=False)
        source.prepare(lambda rows, total: bar.update(task, completed=rows, total=total, visible=True))


@contextlib.contextmanager
def _progress(err: Console) -> Iterator[Progress]:
    """Yield a callback that shows how many shards are done, by counting their reports."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    with progress_bar(err) as bar:

        def follow(folder: AnyPath, shards: int) -> None:
            if bar.disable:
                return  # nobody sees it
            task = bar.add_task("ingesting shards", total=shards)
            threads.append(threading.Thread(target=_watch, args=(bar, task, folder, stop), daemon=True))
            threads[-1].start()

        try:
            yield follow
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _watch(bar: Bar, task: TaskID, folder: AnyPath, stop: threading.Event) -> None:
    done = 0
    while not stop.wait(5.0 if isinstance(folder, RemotePath) else 0.2):
        with contextlib.suppress(FileNotFoundError):  # publishing removes them, perhaps just now
            names = files_below(folder / REPORTS)
            done = max(done, sum(name.startswith("examples-") for name in names))
        bar.update(task, completed=done)


def summary(result: IngestResult) -> dict[str, object]:
    """Return what happened, for machines."""
    manifest, reports = result.snapshot.manifest, result.reports
    read = reports.read if reports else 0
    return {
        "snapshot": manifest.id,
        "parent": result.parent.manifest.id if result.parent else None,
        "content_digest": manifest.content_digest,
        "fingerprint": manifest.fingerprint,
        "format": manifest.source["format"],
        **manifest.counts,
        "source_read": read,
        "source_examples": reports.examples if reports else 0,
        "superseded": reports.superseded if reports else 0,
        "replaced": reports.replaced if reports else 0,
        "splits": manifest.splits["rows"],
        "dropped": manifest.load_splits().dropped,
        "seconds": round(result.seconds, 3),
        "rows_per_second": round(read / result.seconds),
        "bytes": sum(shard.bytes for shards in manifest.shards.values() for shard in shards),
        "shards": len(manifest.shards["examples"]),
        "shards_written": sum(not shard.is_inherited for shard in manifest.shards["examples"]),
        "counters": result.counters,
    }


def summary_text(result: IngestResult, spec: FeatureSpec, store: AnyPath) -> str:
    """Return what happened, for a person."""
    facts, manifest, reports = summary(result), result.snapshot.manifest, result.reports
    if reports is None:
        return (
            f"snapshot  {manifest.id} in {store} was made from these very ratings already: nothing to append"
        )
    cut = manifest.splits["rows"] | ({"left out": facts["dropped"]} if facts["dropped"] else {})
    splits = ", ".join(f"{name} {rows:,}" for name, rows in cut.items())
    shards = "1 shard" if facts["shards"] == 1 else f"{facts['shards']} shards"
    lines = [
        f"snapshot  {manifest.id} in {store}  (spec {spec.name}, {manifest.source['format']})",
        f"read      {reports.read:,} rows in {result.seconds:.1f} s: {facts['rows_per_second']:,} rows/s",
        f"examples  {manifest.counts['examples']:,}   rejects {manifest.counts['rejects']:,}",
        f"splits    {splits}",
        f"size      {facts['bytes']:,} bytes in {shards}",
    ]
    if result.parent:
        lines.insert(1, _append_text(result.parent.manifest.id, facts, reports))
    return "\n".join(lines)


def _append_text(parent: str, facts: dict[str, object], reports: Reports) -> str:
    return (
        f"parent    {parent}: {reports.examples:,} examples added, {reports.replaced:,} replaced by later "
        f"ratings, {reports.superseded:,} not newer than what it has; {facts['shards_written']} of "
        f"{facts['shards']} shards written"
    )


if __name__ == "__main__":
    from featurestore.cli import run_command

    run_command(command)
