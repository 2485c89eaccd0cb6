"""The commands that say who shares a slot: `slotstore collisions`, `who` and `slots`."""

import dataclasses
import json
from collections.abc import Iterable, Sequence

import click

from featurestore.collisions import Collisions, Load, Lookup, collisions
from featurestore.hashing import MAX_SLOTS
from featurestore.occupancy import UNLIKELY, Measure, expected_between
from featurestore.options import json_option, snapshot_option, store_option
from featurestore.output import table_text
from featurestore.paths import AnyPath
from featurestore.store import FeatureStore
from featurestore.whereabouts import Use, ValueSlots, parse_words, slots_of_value, who

Columns = tuple[Sequence[str], Sequence[Sequence[object]]]
"""The names and the rows of a table."""
STEPS = 12
"""Lines of a histogram for a person."""
NUM_SLOTS = click.IntRange(1, MAX_SLOTS)

num_slots_option = click.option(
    "--num-slots", type=NUM_SLOTS, metavar="N", help="Rows of the table. Default: the snapshot's own."
)

COLLISIONS_EPILOG = f"""\b
Examples:
  slotstore collisions --store store
  slotstore collisions --store store --num-slots 32768 --num-slots 65536 --json

Each count stands beside what chance makes of uniform hashes, and where it is known with z, the standard
deviations between the two. Beyond {UNLIKELY:g} a line says so: the seeds are bad, or the hash is.

The counts are macros for SQL, with any number of slots: `slotstore query --help` lists them."""


@click.command("collisions", epilog=COLLISIONS_EPILOG)
@store_option
@snapshot_option
@click.option(
    "--num-slots",
    "sizes",
    type=NUM_SLOTS,
    metavar="N",
    multiple=True,
    help="Rows of the table, one or several times. Default: the snapshot's own.",
)
@json_option
def collisions_command(
    store: AnyPath, snapshot_id: str | None, sizes: Sequence[int], *, as_json: bool
) -> None:
    """Show which values share slots, and whether chance explains it.

    The vocabulary's hashes are counted, nothing is ingested again, for a table of any size.
    """
    with FeatureStore(store, snapshot_id) as opened:
        numbers = dict.fromkeys(sizes or [opened.spec.table.num_slots])
        found = [collisions(opened, number) for number in numbers]
        snapshot = opened.snapshot.manifest.id
    if as_json:
        tables = [one.to_dict() for one in found]
        click.echo(json.dumps({"snapshot": snapshot, "tables": tables}, indent=1))
    else:
        click.echo("\n\n".join(_told(one) for one in found), nl=False)


def _told(found: Collisions) -> str:
    """Return what a person reads of one size of the table."""
    parts = [
        f"{found.num_slots:,} slots",
        _section("values that share a slot", _sharing_names(), _sharing_rows(found)),
        _section("pairs of values that no lookup separates", *_inseparable_table(found)),
        _section("each lookup by itself", *_lookup_table(found.lookups)),
        _section("features that meet", *_pair_table(found)),
        _section("load", ["uses", "slots", "expected", "reads"], _histogram(found)),
        _load_lines(found.load),
        _section("hottest slots", *_hot_table(found.load)),
        "\n".join(found.findings or ["nothing that chance does not explain"]) + "\n",
    ]
    return "\n".join(parts)


def _section(title: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return f"{title}\n{table_text(names, rows)}"


def _sharing_names() -> list[str]:
    return [
        "feature",
        "with",
        "values",
        "share",
        "expected",
        "traffic",
        "expected",
        "all slots",
        "expected",
        "traffic",
    ]


def _sharing_rows(found: Collisions) -> list[tuple[object, ...]]:
    return [
        (
            one.feature,
            {"same": "itself", "others": "others", "any": "any"}[one.sharing_with],
            one.values,
            *_beside(one.shared),
            _percent(one.shared_count.observed, one.count),
            _percent(one.shared_count.expected, one.count),
            *_beside(one.all_shared),
            _percent(one.all_shared_count.observed, one.count),
        )
        for one in found.features
    ]


def _inseparable_table(found: Collisions) -> Columns:
    counts = _counts(found)
    names = ["feature", "pairs", "expected", "z", "values", "traffic", "hottest"]
    rows = [
        (
            one.feature,
            *_with_z(one.pairs),
            one.values,
            _percent(one.count, counts[one.feature]),
            "; ".join(map(", ".join, one.shown)),
        )
        for one in found.inseparable
        if one.feature in counts
    ]
    return names, rows


def _lookup_table(lookups: Sequence[Lookup]) -> Columns:
    measures = {
        "slots in use": "used",
        "share": "shared",
        "pairs": "pairs",
        "own slot again": "repeated",
        "32-bit pairs": "hash_pairs",
    }
    names = ["feature", "lookup", "values"]
    names += [name for title in measures for name in (title, "expected", "z")]
    rows = [
        (
            one.feature,
            one.lookup,
            one.values,
            *(cell for name in measures.values() for cell in _with_z(getattr(one, name))),
        )
        for one in lookups
    ]
    return names, rows


def _pair_table(found: Collisions) -> Columns:
    counts = _counts(found)
    names = ["feature", "other", "slots", "pairs", "expected", "z", "values", "traffic", "other's", "traffic"]
    rows = [
        (
            one.feature,
            one.other,
            one.slots,
            *_with_z(one.pairs),
            one.values,
            _percent(one.count, counts[one.feature]),
            one.other_values,
            _percent(one.other_count, counts[one.other]),
        )
        for one in found.pairs
    ]
    return names, rows


def _histogram(found: Collisions) -> list[tuple[object, ...]]:
    """Return rows of the histogram, where it is long by ranges of uses, all of one width but the first."""
    steps = found.load.histogram
    loads = [step.uses for step in steps if step.uses]
    ranges = [range(1)]
    if loads:
        width = -(-(loads[-1] - loads[0] + 1) // STEPS)
        ranges += [range(start, start + width) for start in range(loads[0], loads[-1] + 1, width)]
    return [_step(found, uses) for uses in ranges]


def _step(found: Collisions, uses: range) -> tuple[object, ...]:
    inside = [step for step in found.load.histogram if step.uses in uses]
    expected = expected_between(uses[0], uses[-1], found.load.uses, found.num_slots)
    told = "-".join(dict.fromkeys(map(str, (uses[0], uses[-1]))))
    slots = sum(step.slots.observed for step in inside)
    return told, slots, f"{expected:.4g}", sum(step.count for step in inside)


def _load_lines(load: Load) -> str:
    used, expected, z = _with_z(load.used)
    full = load.fullest
    return (
        f"{load.uses:,} uses in {used:,} slots, {expected} expected{f' (z {z})' if z else ''}; "
        f"never used: {load.never_used:,}\n"
        f"the fullest slot: {full.observed:,} uses, {full.expected:.4g} expected\n"
    )


def _hot_table(load: Load) -> Columns:
    rows = [
        (one.slot, one.count, f"{one.share:.2%}", one.uses, one.values, ", ".join(one.members))
        for one in load.hottest
    ]
    return ["slot", "reads", "of all", "uses", "values", "hottest of them"], rows


def _counts(found: Collisions) -> dict[str, int]:
    """Return the examples of each feature that has values."""
    return {one.feature: one.count for one in found.features}


def _beside(measure: Measure) -> tuple[int, str]:
    return measure.observed, f"{measure.expected:.4g}"


def _with_z(measure: Measure) -> tuple[int, str, str]:
    return *_beside(measure), "" if measure.z is None else f"{round(measure.z, 1) + 0.0:+.1f}"


def _percent(part: float, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


WHO_EPILOG = """\b
Examples:
  slotstore who --slot 17 --store store
  slotstore who --slot 17 --num-slots 1000 --store store --json"""


@click.command("who", epilog=WHO_EPILOG)
@click.option("--slot", type=int, required=True, metavar="SLOT", help="Row of the table, from 0.")
@num_slots_option
@store_option
@snapshot_option
@json_option
def who_command(
    slot: int, num_slots: int | None, store: AnyPath, snapshot_id: str | None, *, as_json: bool
) -> None:
    """Show which values have a slot, hottest first, with their share of its traffic."""
    with FeatureStore(store, snapshot_id) as opened:
        size = num_slots or opened.spec.table.num_slots
        uses = who(opened, slot, size)
    if as_json:
        data = {"slot": slot, "num_slots": size, "uses": [dataclasses.asdict(use) for use in uses]}
        click.echo(json.dumps(data, indent=1))
    elif uses:
        names = [field.name for field in dataclasses.fields(Use)]
        rows = [(use.feature, use.lookup, use.value, use.count, f"{use.share:.1%}") for use in uses]
        click.echo(table_text(names, rows), nl=False)
    else:
        click.echo(f"no known value has slot {slot:,} of {size:,}")


SLOTS_EPILOG = """\b
Examples:
  slotstore slots user_id=1193 zip=98107 --store store
  slotstore slots user_id=new --num-slots 65536 --store store --json

A value that was never seen has slots too. An empty value stands for an unknown one."""


@click.command("slots", epilog=SLOTS_EPILOG)
@click.argument("words", nargs=-1, required=True, metavar="FEATURE=VALUE...")
@num_slots_option
@store_option
@snapshot_option
@json_option
def slots_command(
    words: Sequence[str], num_slots: int | None, store: AnyPath, snapshot_id: str | None, *, as_json: bool
) -> None:
    """Show the slot of each lookup of a value, and which others share it."""
    with FeatureStore(store, snapshot_id) as opened:
        size = num_slots or opened.spec.table.num_slots
        asked = parse_words(words, opened.spec)
        found = [slots_of_value(opened, feature, value, size) for feature, value in asked]
    if as_json:
        data = {"num_slots": size, "values": [dataclasses.asdict(one) for one in found]}
        click.echo(json.dumps(data, indent=1))
        return
    names = [
        "feature",
        "value",
        "lookup",
        "seed",
        "hash",
        "slot",
        "count",
        "others",
        "their count",
        "hottest of them",
    ]
    click.echo(table_text(names, [row for one in found for row in _own_slots(one)]), nl=False)
    for one in found:
        if one.count is None:
            click.echo(_never_seen(one))


def _own_slots(found: ValueSlots) -> list[tuple[object, ...]]:
    return [
        (found.feature, found.value, own.lookup, own.seed, own.hash, own.slot, found.count or 0,
         own.others, own.others_count,
         ", ".join(f"{other['feature']}={other['value']}" for other in own.hottest))
        for own in found.slots
    ]  # fmt: skip


def _never_seen(found: ValueSlots) -> str:
    if found.nearest is not None:
        near = f"; the nearest is {found.nearest!r}"
    else:
        near = f", such as {', '.join(map(repr, found.known))}" if found.known else ""
    return (
        f"{found.feature}={found.value} was never seen, these are the slots it has all the same. "
        f"{found.known_values:,} values of {found.feature} are known{near}"
    )
