"""`slotstore snapshots`: what a store holds."""

import click

from featurestore.manifest import KINDS
from featurestore.options import json_option, show_rows, store_option
from featurestore.paths import AnyPath
from featurestore.snapshot import latest, list_snapshots, no_snapshot, open_snapshot, unreadable_snapshots


@click.group()
def snapshots() -> None:
    """List, show and verify snapshots."""


@snapshots.command("list")
@store_option
@json_option
def list_command(store: AnyPath, *, as_json: bool) -> None:
    """List the store's snapshots, oldest first."""
    found, unreadable = list_snapshots(store), unreadable_snapshots(store)
    for problem in unreadable.values():
        click.echo(f"left out: {problem}", err=True)
    if not found:
        raise no_snapshot(store)
    newest = latest(store)
    names = ["snapshot", "created", "source", "examples", "rejects", "fingerprint", "newest"]
    rows = [
        (
            manifest.id,
            manifest.created,
            manifest.source.get("uri"),
            manifest.counts["examples"],
            manifest.counts["rejects"],
            manifest.fingerprint,
            manifest.id == newest,
        )
        for manifest in (snapshot.manifest for snapshot in found)
    ]
    show_rows(names, rows, as_json=as_json)


@snapshots.command()
@click.argument("snapshot_id", metavar="[ID]", required=False)
@store_option
def show(snapshot_id: str | None, store: AnyPath) -> None:
    """Print the manifest of a snapshot, the newest by default, as JSON."""
    click.echo(open_snapshot(store, snapshot_id).manifest.to_json(), nl=False)


@snapshots.command()
@click.argument("snapshot_id", metavar="[ID]", required=False)
@store_option
def verify(snapshot_id: str | None, store: AnyPath) -> None:
    """Check every byte, count and digest of a snapshot against its manifest."""
    snapshot = open_snapshot(store, snapshot_id).check(deep=True)
    manifest = snapshot.manifest
    shards = sum(len(manifest.shards[kind]) for kind in KINDS)
    click.echo(f"snapshot {manifest.id} is intact: {shards} shards, {manifest.counts['examples']:,} examples")
