"""Of a page: which features share slots, and how the slots are loaded."""

from collections.abc import Iterator, Sequence

from featurestore.collisions import Collisions, Load, collisions
from featurestore.occupancy import expected_between
from featurestore.store import FeatureStore
from training.report import charts
from training.report.parts import Facts, Figure, Part, Section, Table, Words

MOST_BARS = 30


def collisions_section(store: FeatureStore) -> Section:
    """Return who shares slots in the snapshot's own table, beside what chance makes.

    Raises:
        NotFound: the snapshot has no vocabulary.
    """
    found = collisions(store, store.spec.table.num_slots)
    names = [feature.name for feature in store.spec.features]
    parts = _parts(found, names) if found.pairs else [Words(["The vocabulary is empty: nothing collides."])]
    return Section("collisions", "Collisions", list(parts))


def _parts(found: Collisions, names: Sequence[str]) -> Iterator[Part]:
    yield Words(list(found.findings) or ["There is nothing that chance does not explain."])
    yield _heat_map(found, names)
    yield _sharing(found, names)
    yield _load_facts(found.load, found.num_slots)
    yield _load(found)
    yield _hottest(found.load)


def _heat_map(found: Collisions, names: Sequence[str]) -> Figure:
    traffic = {one.feature: one.count for one in found.features}
    cells = []
    for pair in found.pairs:
        both = [(pair.feature, pair.other, pair.values, pair.count)]
        if pair.feature != pair.other:
            both.append((pair.other, pair.feature, pair.other_values, pair.other_count))
        cells += [
            {
                "feature": feature,
                "other": other,
                "share": count / traffic[feature],
                "values": values,
                "pairs": pair.pairs.observed,
                "expected": pair.pairs.expected,
                "z": pair.pairs.z,
            }
            for feature, other, values, count in both
        ]
    shares = {(cell["feature"], cell["other"]): f"{cell['share']:.1%}" for cell in cells}
    rows = [(name, *(shares.get((name, other)) for other in names)) for name in names]
    return Figure(
        "Which features share slots",
        "The share of the examples whose value of the row's feature has a slot with a value of the column's. "
        "It is not the same both ways: one hot value is much of its feature's traffic.",
        charts.heat_map(cells, names),
        Table("Share of the examples that shares a slot with a feature", ["traffic of", *names], rows),
    )


def _sharing(found: Collisions, names: Sequence[str]) -> Figure:
    some = [one for one in found.features if one.sharing_with == "any"]
    bars = [
        {
            "feature": one.feature,
            "share": one.shared.observed / one.values,
            "expected": one.shared.expected / one.values,
            "sharing": one.shared.observed,
            "traffic": one.shared_count.observed / one.count,
        }
        for one in some
    ]
    rows = [
        (
            one.feature,
            one.values,
            one.shared.observed,
            round(one.shared.expected, 1),
            one.all_shared.observed,
            f"{one.shared_count.observed / one.count:.1%}",
        )
        for one in some
    ]
    columns = [
        "feature",
        "values",
        "share a slot",
        "expected",
        "share all slots",
        "traffic that shares one",
    ]
    return Figure(
        "Values that share a slot with any other",
        "More values collide where the table is small. Features of few values scatter widely about what is "
        "expected; what chance does not explain is said above.",
        charts.sharing(bars, names),
        Table("Values that share a slot", columns, rows),
    )


def _load_facts(load: Load, num_slots: int) -> Facts:
    return Facts(
        {
            "slots in use": f"{load.used.observed:,} of {num_slots:,}, {load.used.expected:,.0f} expected",
            "never used": f"{load.never_used:,} ({load.never_used / num_slots:.1%})",
            "uses": f"{load.uses:,}, {load.uses / num_slots:.2f} a slot",
            "fullest slot": f"{load.fullest.observed:,} uses, {load.fullest.expected:.3g} expected",
        }
    )


def _load(found: Collisions) -> Figure:
    bars = load_bars(found)
    rows = [(bar["told"], bar["slots"], bar["expected"], bar["reads"]) for bar in bars]
    return Figure(
        "How the slots are loaded",
        "A use is one value under one of its lookups; an example reads one slot for each. The lines are what "
        "uniform hashes would make.",
        charts.load(bars),
        Table("Slots by their uses", ["uses", "slots", "expected", "reads"], rows),
    )


def load_bars(found: Collisions) -> list[dict[str, object]]:
    """Return the histogram of loads, by ranges of one width where there are many; no use is a bar."""
    steps = found.load.histogram
    most = max(step.uses for step in steps)
    width = max(1, -(-most // MOST_BARS))
    bars = []
    for first in (0, *range(1, most + 1, width)):
        last = first + width - 1 if first else 0
        inside = [step for step in steps if first <= step.uses <= last]
        bars.append(
            {
                "told": "-".join(dict.fromkeys(map(str, (first, last)))),
                "slots": sum(step.slots.observed for step in inside),
                "expected": expected_between(first, last, found.load.uses, found.num_slots),
                "reads": sum(step.count for step in inside),
            }
        )
    return bars


def _hottest(load: Load) -> Table:
    rows = [
        (str(one.slot), one.count, f"{one.share:.2%}", one.uses, ", ".join(one.members))
        for one in load.hottest
    ]
    return Table("The hottest slots", ["slot", "reads", "of all", "uses", "hottest of its values"], rows)
