"""`slotstore snapshots`: what a store holds, what changed, what may go."""

import json
from collections.abc import Iterable, Sequence

import click

from featurestore.compare import Change, Comparison, Rows, compare
from featurestore.drift import Drift, drift
from featurestore.errors import NotFound
from featurestore.manifest import KINDS, Manifest
from featurestore.options import SNAPSHOT_ID, json_option, show_rows, store_option
from featurestore.output import moment, table_text
from featurestore.paths import AnyPath
from featurestore.retention import Removal, expired_snapshots, plan_removal, remove_snapshots
from featurestore.snapshot import Snapshot, latest, no_snapshot, open_snapshot, read_snapshots
from featurestore.store import FeatureStore

dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would go, remove nothing.")


@click.group()
def snapshots() -> None:
    """List, show, verify, compare and remove snapshots."""


@snapshots.command("list")
@store_option
@json_option
def list_command(store: AnyPath, *, as_json: bool) -> None:
    """List the store's snapshots, oldest first."""
    found, unreadable = read_snapshots(store)
    for problem in unreadable.values():
        click.echo(f"left out: {problem}", err=True)
    if not found:
        raise no_snapshot(store)
    newest = latest(store)
    names = [
        "snapshot",
        "created",
        "source",
        "examples",
        "rejects",
        "num_slots",
        "fingerprint",
        "parent",
        "newest",
    ]
    rows = [
        (
            manifest.id,
            manifest.created,
            manifest.source.get("uri"),
            manifest.counts["examples"],
            manifest.counts["rejects"],
            manifest.load_spec().table.num_slots,
            manifest.fingerprint,
            manifest.parent,
            manifest.id == newest,
        )
        for manifest in (snapshot.manifest for snapshot in found)
    ]
    show_rows(names, rows, as_json=as_json)


@snapshots.command()
@click.argument("snapshot_id", type=SNAPSHOT_ID, metavar="[ID]", required=False)
@store_option
def show(snapshot_id: str | None, store: AnyPath) -> None:
    """Print the manifest of a snapshot, the newest by default, as JSON."""
    click.echo(open_snapshot(store, snapshot_id).manifest.to_json(), nl=False)


@snapshots.command()
@click.argument("snapshot_id", type=SNAPSHOT_ID, metavar="[ID]", required=False)
@store_option
def verify(snapshot_id: str | None, store: AnyPath) -> None:
    """Check every byte, count and digest of a snapshot against its manifest."""
    snapshot = open_snapshot(store, snapshot_id).check(deep=True)
    manifest = snapshot.manifest
    shards = sum(len(manifest.shards[kind]) for kind in KINDS)
    click.echo(f"snapshot {manifest.id} is intact: {shards} shards, {manifest.counts['examples']:,} examples")


@snapshots.command()
@click.argument("old", type=SNAPSHOT_ID, required=False)
@click.argument("new", type=SNAPSHOT_ID, required=False)
@store_option
@json_option
def diff(old: str | None, new: str | None, store: AnyPath, *, as_json: bool) -> None:
    """Show what changed from snapshot OLD to NEW: spec, rows, values, traffic, collisions, splits, shards.

    NEW is the newest by default, OLD its parent. The exit status is 0 whether or not they differ. Shards that
    both use are not read. How far the traffic of a feature moved over its values is told by the total
    variation and by the Jensen-Shannon divergence, in bits: 0 is not at all, 1 is no value in common.
    """
    second = open_snapshot(store, new)
    first = open_snapshot(store, old) if old else _parent(store, second)
    found = compare(first, second)
    drifted = _drift(store, first, second)
    if as_json:
        drift_data = drifted.to_dict() if drifted else None
        click.echo(json.dumps(found.to_dict() | {"drift": drift_data}, indent=1))
        return
    click.echo(f"from {_told(found.old)}\nto   {_told(found.new)}")
    _show_changes("spec", found.spec)
    _show_rows_changed(found.rows)
    values = [
        (one.feature, one.old, one.new, one.added, one.gone, one.recounted,
         ", ".join(one.shown_added), ", ".join(one.shown_gone))
        for one in found.values
    ]  # fmt: skip
    names = ["feature", "old", "new", "added", "gone", "recounted", "added are", "gone are"]
    _show_table("values", names, values)
    if drifted:
        _show_drift(drifted)
    _show_changes("splits", _readable(found))
    names = ["kind", "in both", "bytes", "only old", "bytes", "only new", "bytes"]
    _show_table("shards", names, [tuple(vars(one).values()) for one in found.shards])


def _drift(store: AnyPath, old: Snapshot, new: Snapshot) -> Drift | None:
    """Return what became of values and collisions; None, and say why, where there is no vocabulary."""
    with FeatureStore(store, old.folder.name) as first, FeatureStore(store, new.folder.name) as second:
        try:
            return drift(first, second)
        except NotFound as error:
            click.echo(f"traffic and collisions are left out: {error}", err=True)
            return None


def _show_drift(found: Drift) -> None:
    rows = [
        (one.feature, one.added, _percent(one.added_traffic), ", ".join(one.shown_added),
         one.gone, _percent(one.gone_traffic), ", ".join(one.shown_gone),
         _short(one.total_variation), _short(one.jensen_shannon))
        for one in found.features
    ]  # fmt: skip
    names = [
        "feature",
        "added",
        "their part",
        "hottest",
        "gone",
        "their part",
        "hottest",
        "variation",
        "bits",
    ]
    _show_table("traffic", names, rows)
    crowded = [
        (one.snapshot, one.num_slots, one.values, _percent(one.shared), _percent(one.expected_shared),
         _percent(one.shared_traffic), _percent(one.expected_shared_traffic))
        for one in found.crowding
    ]  # fmt: skip
    names = ["snapshot", "slots", "values", "share one", "expected", "of traffic", "expected"]
    _show_table("collisions", names, crowded)
    click.echo(found.advice)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _short(number: float | None) -> str | None:
    return None if number is None else f"{number:.4f}"


def _parent(store: AnyPath, snapshot: Snapshot) -> Snapshot:
    manifest = snapshot.manifest
    if manifest.parent is None:
        raise NotFound(f"snapshot {manifest.id} grew from no other: say which one to compare it with")
    try:
        return open_snapshot(store, manifest.parent)
    except NotFound as error:
        gone = f"{manifest.parent}, from which snapshot {manifest.id} grew, was removed"
        raise NotFound(f"{gone}: say which one to compare it with") from error


def _told(manifest: Manifest) -> str:
    counts = manifest.counts
    return (
        f"{manifest.id}, {manifest.created}: {counts['examples']:,} examples, {counts['rejects']:,} rejects, "
        f"fingerprint {manifest.fingerprint}"
    )


def _show_table(title: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    click.echo(f"\n{title}\n{table_text(names, rows)}", nl=False)


def _show_changes(title: str, changes: Sequence[Change]) -> None:
    if changes:
        _show_table(title, ["key", "old", "new"], [(one.key, one.old, one.new) for one in changes])
    else:
        click.echo(f"\n{title}: the same")


def _readable(found: Comparison) -> list[Change]:
    """Return the changes of the splits with times as a person reads them."""
    is_time = [manifest.splits["kind"] == "time" for manifest in (found.old, found.new)]

    def readable(key: str, value: object, *, is_time: bool) -> object:
        return moment(value) if is_time and key.endswith(".from") and isinstance(value, int) else value

    return [
        Change(
            one.key,
            readable(one.key, one.old, is_time=is_time[0]),
            readable(one.key, one.new, is_time=is_time[1]),
        )
        for one in found.splits
    ]


def _show_rows_changed(rows: Rows) -> None:
    counts = [(kind, getattr(rows, kind)) for kind in ("kept", "added", "removed", "changed")]
    _show_table("rows", ["", "rows"], counts)
    if rows.changed_in:
        said = ", ".join(f"{column} {count:,}" for column, count in rows.changed_in.items())
        click.echo(f"rows changed in: {said}")
    if rows.uncompared:
        click.echo(f"not compared, for the snapshots differ in them: {', '.join(rows.uncompared)}")
    for kind, shown in rows.shown.items():
        if shown:
            names = list(dict.fromkeys(name for row in shown for name in row))
            _show_table(
                f"{kind}, for example", names, [[_cell(row.get(name)) for name in names] for row in shown]
            )


def _cell(value: object) -> object:
    return " -> ".join(map(str, value)) if isinstance(value, list) else value


@snapshots.command()
@click.argument("ids", type=SNAPSHOT_ID, metavar="ID...", nargs=-1, required=True)
@store_option
@dry_run_option
@json_option
def remove(ids: tuple[str, ...], store: AnyPath, *, dry_run: bool, as_json: bool) -> None:
    """Remove snapshots, and the files that no other one uses.

    If the newest goes, the one made last of the rest takes its place.
    """
    _remove(store, ids, dry_run=dry_run, as_json=as_json)


@snapshots.command()
@store_option
@click.option("--keep", type=click.IntRange(min=1), required=True, help="How many, those made last, stay.")
@click.option(
    "--older-than",
    type=click.IntRange(0, 36_500),
    default=0,
    metavar="DAYS",
    help="Of the others only those made so long ago go.",
)
@dry_run_option
@json_option
def prune(store: AnyPath, keep: int, older_than: int, *, dry_run: bool, as_json: bool) -> None:
    """Remove all snapshots but the newest and the last few, and the files that none of these uses."""
    latest(store)  # says so where there is none
    ids = [snapshot.folder.name for snapshot in expired_snapshots(store, keep, older_than)]
    _remove(store, ids, dry_run=dry_run, as_json=as_json)


def _remove(store: AnyPath, ids: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    removal = plan_removal(store, ids) if dry_run else remove_snapshots(store, ids)
    if as_json:
        facts = {
            "dry_run": dry_run,
            "removed": removal.ids,
            "freed_files": len(removal.freed),
            "freed_bytes": removal.freed_bytes,
            "kept_files": len(removal.kept),
            "kept_bytes": removal.kept_bytes,
            "used_by": removal.used_by,
            "newest": removal.newest,
        }
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(_removal_text(removal, "would remove" if dry_run else "removed"))


def _removal_text(removal: Removal, verb: str) -> str:
    ids = ", ".join(removal.ids) or "no snapshot"
    lines = [f"{verb} {ids}: {len(removal.freed):,} files, {removal.freed_bytes:,} bytes"]
    if removal.kept:
        users = " and ".join(removal.used_by)
        lines.append(f"{len(removal.kept):,} files, {removal.kept_bytes:,} bytes stay: {users} use them")
    if removal.heir:
        lines.append(f"the newest is then {removal.newest}")
    elif removal.newest is None:
        lines.append("no snapshot is left")
    return "\n".join(lines)
