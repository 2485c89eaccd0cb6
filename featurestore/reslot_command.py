"""`slotstore reslot`: flags, progress and summary around `featurestore.reslot`."""

import json

import click
from rich.console import Console

from featurestore.options import json_option, lookups_option, snapshot_option, store_option
from featurestore.output import progress_bar
from featurestore.paths import AnyPath
from featurestore.reslot import Reslotted, reslot
from featurestore.snapshot import latest
from featurestore.spec import load_spec

EPILOG = """\b
Examples:
  slotstore reslot --store store --num-slots 100000
  slotstore reslot --store store --num-slots 100000 --lookups user_id=4 --lookups zip=2
  slotstore reslot --store store --spec advised.toml
  slotstore reslot --store store --snapshot 4761317f9857 --num-slots 1000 --no-latest

`slotstore train --num-slots N` does it on the way, and leaves the newest snapshot the newest."""


@click.command("reslot", epilog=EPILOG)
@store_option
@snapshot_option
@click.option("--num-slots", type=int, metavar="N", help="Rows of the table. Default: as many as it has.")
@lookups_option
@click.option(
    "--spec",
    metavar="NAME|FILE",
    help="Instead: a spec with another table or lookups, else the same; or a manifest.json.",
)
@click.option(
    "--latest/--no-latest",
    "newest",
    default=True,
    help="Whether it becomes the store's newest snapshot, as an ingestion's does. Default: yes.",
)
@json_option
def command(
    store: AnyPath,
    snapshot_id: str | None,
    num_slots: int | None,
    lookups: dict[str, int],
    spec: str | None,
    *,
    newest: bool,
    as_json: bool,
) -> None:
    """Make of a snapshot one for another table size, from its stored hashes.

    No raw file is read. The child is the snapshot, digest for digest, that an ingestion with this many slots
    would have made: same rows, same splits. Lookups are dropped from the last one on; further ones have the
    seeds that the feature's name gives. A failed or killed re-slotting leaves the store as it was.
    """
    if spec is None and num_slots is None and not lookups:
        raise click.UsageError(
            "nothing to change: give --num-slots N, --lookups FEATURE=NUMBER or both, or --spec FILE"
        )
    wanted = None if spec is None else load_spec(spec)
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("re-slotting shards", total=None)
        result = reslot(
            store,
            snapshot_id,
            num_slots=num_slots,
            lookups=lookups,
            spec=wanted,
            newest=newest,
            progress=lambda done, shards: bar.update(task, completed=done, total=shards),
        )
    facts = summary(result) | {"newest": latest(store)}
    click.echo(json.dumps(facts, indent=1) if as_json else summary_text(result, store))


def summary(result: Reslotted) -> dict[str, object]:
    """Return what happened, for machines."""
    manifest, spec = result.snapshot.manifest, result.snapshot.manifest.load_spec()
    shards = [shard for shards in manifest.shards.values() for shard in shards]
    written = sum(shard.bytes for shard in shards if not shard.is_inherited) if result.made else 0
    return {
        "snapshot": manifest.id,
        "parent": result.parent.manifest.id,
        "made": result.made,
        "content_digest": manifest.content_digest,
        "fingerprint": manifest.fingerprint,
        "num_slots": spec.table.num_slots,
        "dim": spec.table.dim,
        "vector": spec.table.vector,
        "lookups": {feature.name: len(feature.seeds) for feature in spec.features},
        **manifest.counts,
        "seconds": round(result.seconds, 3),
        "rows_per_second": round(manifest.counts["examples"] / result.seconds) if result.made else None,
        "bytes": sum(shard.bytes for shard in shards),
        "bytes_written": written,
    }


def summary_text(result: Reslotted, store: AnyPath) -> str:
    """Return what happened, for a person."""
    facts, name, newest = summary(result), result.snapshot.manifest.id, latest(store)
    told = f"snapshot  {name} in {store}"
    if result.snapshot is result.parent:
        return f"{told} has this table and these lookups already: nothing to do"
    if not result.made:
        return f"{told} was made of {facts['parent']} before: nothing to do"
    lines = [
        f"{told}  ({result.changes})",
        f"parent    {facts['parent']}, with the same {facts['examples']:,} examples",
        f"made in   {result.seconds:.1f} s: {facts['rows_per_second']:,} rows/s",
        f"size      {facts['bytes']:,} bytes, of which {facts['bytes_written']:,} are new",
        f"newest    {newest}" + ("" if newest == name else f": name this one by --snapshot {name}"),
    ]
    return "\n".join(lines)
