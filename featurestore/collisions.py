"""Who shares a slot with whom, counted by the macros of collisions.sql, beside what theory expects.

Everything is counted over the vocabulary of a snapshot, for any number of slots. Sharing is about rows of the
table, so it does not matter under which lookups two values meet: both train that row. That no lookup
separates two values of a feature is about what a model sees, and it sees each lookup's row at a place of its
own: their slots are the same, lookup by lookup. Values of two features are always at different places.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.errors import SpecError
from featurestore.hashing import MAX_SLOTS
from featurestore.occupancy import (
    HASHES,
    Measure,
    all_shared_probability,
    expected_maximum,
    expected_sharing,
    expected_used,
    expected_with_load,
    maximum_is_unlikely,
    pairs_measure,
    pairs_of,
    sharing_deviation,
    sharing_probability,
    used_deviation,
)
from featurestore.store import FeatureStore

HOTTEST = 10
"""Slots that are shown with their values."""
GROUPS = 3
"""Groups of inseparable values that are shown for each feature."""
MEMBERS = 5
"""Values of a slot or of a group that are shown, the hottest first."""
_TO_SEEDS = "unlikely by chance: look at the seeds"


@dataclass(frozen=True)
class Sharing:
    """A feature's values that share a slot with others: of the ``same`` feature, of ``others``, of ``any``.

    shared: at least one of their slots; all_shared: all of them. The counts are their traffic.
    """

    feature: str
    sharing_with: str
    values: int
    count: int
    shared: Measure
    shared_count: Measure
    all_shared: Measure
    all_shared_count: Measure


@dataclass(frozen=True)
class Inseparable:
    """A feature's values that have another one's slots, lookup by lookup, and the pairs that they make.

    shown: the hottest groups, each with its hottest values.
    """

    feature: str
    pairs: Measure
    values: int
    count: int
    shown: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Lookup:
    """One lookup's slots in use, values and pairs of values that share one, and equal 32-bit hashes.

    repeated: values for which an earlier lookup took the same slot. hash_pairs does not depend on the slots.
    """

    feature: str
    lookup: int
    values: int
    used: Measure
    shared: Measure
    pairs: Measure
    repeated: Measure
    hash_pairs: Measure


@dataclass(frozen=True)
class FeaturePair:
    """Two features, or one with itself: slots of both, pairs of uses in one slot, values, their traffic."""

    feature: str
    other: str
    slots: int
    pairs: Measure
    values: int
    count: int
    other_values: int
    other_count: int


@dataclass(frozen=True)
class LoadStep:
    """How many slots have so many uses, and their traffic."""

    uses: int
    slots: Measure
    count: int


@dataclass(frozen=True)
class HotSlot:
    """One of the slots that examples read most often.

    share: of all reads. members: feature=value of a few, hottest first.
    """

    slot: int
    uses: int
    values: int
    count: int
    share: float
    members: Sequence[str]


@dataclass(frozen=True)
class Load:
    """How the uses of all features spread over the slots. fullest: the most uses that a slot has."""

    uses: int
    used: Measure
    never_used: int
    fullest: Measure
    histogram: Sequence[LoadStep]
    hottest: Sequence[HotSlot]


@dataclass(frozen=True)
class Collisions:
    """All that a table of ``num_slots`` makes values share. findings: lines on what is no chance."""

    num_slots: int
    features: Sequence[Sharing]
    inseparable: Sequence[Inseparable]
    lookups: Sequence[Lookup]
    pairs: Sequence[FeaturePair]
    load: Load
    findings: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a measure becomes its observed and expected number and z."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON holds
    match value:
        case Measure():
            z = value.z if value.z is None or math.isfinite(value.z) else None
            return {"observed": value.observed, "expected": value.expected, "z": z}
        case list() | tuple():
            return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


@dataclass(frozen=True)
class Shape:
    """What theory needs of a feature: its values, their traffic, its lookups."""

    values: int
    count: int
    lookups: int

    @property
    def uses(self) -> int:
        """Values times lookups."""
        return self.values * self.lookups


def shapes(store: FeatureStore) -> dict[str, Shape]:
    """Return the shape of each feature, in the spec's order."""
    counted = (
        "SELECT feature, count(*) AS values, sum(count)::BIGINT AS count FROM vocabulary GROUP BY feature"
    )
    found = {row["feature"]: row for row in store.sql(counted).to_pylist()}
    nothing = {"values": 0, "count": 0}
    return {
        feature.name: Shape(row["values"], row["count"], len(feature.seeds))
        for feature in store.spec.features
        for row in [found.get(feature.name, nothing)]
    }


def check_countable(store: FeatureStore, num_slots: int) -> None:
    """Raise NotFound if the snapshot has no vocabulary, SpecError if no table can have ``num_slots`` rows."""
    store.snapshot.vocabulary()
    if not 1 <= num_slots <= MAX_SLOTS:
        raise SpecError("num_slots", [f"expected 1 to {MAX_SLOTS}, got {num_slots}"])


def collisions(store: FeatureStore, num_slots: int) -> Collisions:
    """Count what a table of ``num_slots`` rows makes the values of a snapshot share.

    Raises:
        NotFound: the snapshot has no vocabulary.
        SpecError: a table cannot have so many rows.
    """
    check_countable(store, num_slots)
    known = shapes(store)
    sharing = _sharing(store, known, num_slots)
    apart = _inseparable(store, known, num_slots)
    lookups = _lookups(store, known, num_slots)
    pairs = _pairs(store, known, num_slots)
    load = _load(store, known, num_slots)
    findings = [*_lookup_findings(lookups), *_value_findings(apart, pairs), *_load_findings(load, num_slots)]
    return Collisions(num_slots, sharing, apart, lookups, pairs, load, findings)


def _ask(store: FeatureStore, sql: str, num_slots: int, **parameters: object) -> list[dict[str, Any]]:
    """Return the rows of a query over the macros, with ``$n`` slots."""
    rows: list[dict[str, Any]] = store.sql(sql, {"n": num_slots, **parameters}).to_pylist()
    return rows


def _ordered(rows: Iterable[dict[str, Any]], known: Iterable[str], *then: str) -> list[dict[str, Any]]:
    place = {feature: number for number, feature in enumerate(known)}
    return sorted(rows, key=lambda row: (place[row["feature"]], *(row[key] for key in then)))


def sharing_chances(
    known: Mapping[str, Shape], feature: str, num_slots: int
) -> dict[str, tuple[float, float]]:
    """Return how likely a value shares a slot, and all of its slots, by whom it shares them with."""
    one = known[feature]
    everyone = sum(shape.uses for shape in known.values()) - one.lookups
    same = max(one.uses - one.lookups, 0)
    others = {"same": same, "others": max(everyone - same, 0), "any": max(everyone, 0)}
    return {
        name: (
            sharing_probability(one.lookups, uses, num_slots),
            all_shared_probability(one.lookups, uses, num_slots),
        )
        for name, uses in others.items()
    }


def _sharing(store: FeatureStore, known: Mapping[str, Shape], num_slots: int) -> list[Sharing]:
    chances = {feature: sharing_chances(known, feature, num_slots) for feature in known}
    scopes = list(next(iter(chances.values())))
    found = []
    for row in _ask(store, "FROM collisions($n)", num_slots):
        some, all_of_them = chances[row["feature"]][row["sharing_with"]]
        expected = {"shared": some, "all_shared": all_of_them}
        measures = {
            name + suffix: Measure(row[name + suffix], row[total] * chance)
            for name, chance in expected.items()
            for suffix, total in (("", "values"), ("_count", "count"))
        }
        found.append(Sharing(**{**row, **measures}))
    names = list(known)
    return sorted(found, key=lambda one: (names.index(one.feature), scopes.index(one.sharing_with)))


def _inseparable(store: FeatureStore, known: Mapping[str, Shape], num_slots: int) -> list[Inseparable]:
    query = """
        SELECT feature, sum(pairs)::BIGINT AS pairs, sum(values)::BIGINT AS values,
            sum(count)::BIGINT AS count, min_by(members[:$members], (-count, slots), $groups) AS shown
        FROM inseparable($n) GROUP BY feature"""
    rows = {row["feature"]: row for row in _ask(store, query, num_slots, members=MEMBERS, groups=GROUPS)}
    nothing = {"pairs": 0, "values": 0, "count": 0, "shown": []}
    found = []
    for feature, shape in known.items():
        row = {**nothing, **rows.get(feature, {}), "feature": feature}
        chance = float(num_slots) ** -shape.lookups
        row["pairs"] = pairs_measure(row["pairs"], pairs_of(shape.values), chance)
        found.append(Inseparable(**row))
    return found


def _lookups(store: FeatureStore, known: Mapping[str, Shape], num_slots: int) -> list[Lookup]:
    query = """
        FROM lookup_collisions($n) LEFT JOIN
            (SELECT feature, lookup, sum(pairs)::BIGINT AS hash_pairs FROM hash_collisions GROUP BY ALL)
            USING (feature, lookup)"""
    return [_lookup(row, num_slots) for row in _ordered(_ask(store, query, num_slots), known, "lookup")]


def _lookup(row: Mapping[str, Any], num_slots: int) -> Lookup:
    values = row["values"]
    pairs = pairs_of(values)
    return Lookup(
        feature=row["feature"],
        lookup=row["lookup"],
        values=values,
        used=Measure(row["used"], expected_used(values, num_slots), used_deviation(values, num_slots)),
        shared=Measure(
            row["shared"], expected_sharing(values, num_slots), sharing_deviation(values, num_slots)
        ),
        pairs=pairs_measure(row["pairs"], pairs, 1 / num_slots),
        repeated=pairs_measure(row["repeated"], values, sharing_probability(1, row["lookup"], num_slots)),
        hash_pairs=pairs_measure(row["hash_pairs"] or 0, pairs, 1 / HASHES),
    )


def _pairs(store: FeatureStore, known: Mapping[str, Shape], num_slots: int) -> list[FeaturePair]:
    rows = {
        frozenset((row["feature"], row["other"])): row
        for row in _ask(store, "FROM feature_pairs($n)", num_slots)
    }
    found = []
    for feature, other in itertools.combinations_with_replacement(known, 2):
        if (row := rows.get(frozenset((feature, other)))) is None:
            continue  # one of them has no values
        if row["feature"] != feature:  # the macro orders names, we features
            row |= {"values": row["other_values"], "other_values": row["values"],
                    "count": row["other_count"], "other_count": row["count"]}  # fmt: skip
        one, another = known[feature], known[other]
        possible = pairs_of(one.values) * one.lookups**2 if feature == other else one.uses * another.uses
        pairs = pairs_measure(row["pairs"], possible, 1 / num_slots)
        found.append(FeaturePair(**{**row, "feature": feature, "other": other, "pairs": pairs}))
    return found


def _load(store: FeatureStore, known: Mapping[str, Shape], num_slots: int) -> Load:
    uses = sum(shape.uses for shape in known.values())
    reads = sum(shape.count * shape.lookups for shape in known.values())
    steps = [
        LoadStep(
            row["uses"], Measure(row["slots"], expected_with_load(row["uses"], uses, num_slots)), row["count"]
        )
        for row in _ask(store, "FROM slot_histogram($n)", num_slots)
    ]
    query = """
        WITH hot AS (
            SELECT slot FROM slots($n) GROUP BY slot ORDER BY sum(count) DESC, slot LIMIT $hottest),
        held AS (
            SELECT slot, feature, value, count, count(*) AS uses
            FROM slots($n) SEMI JOIN hot USING (slot) GROUP BY slot, feature, value, count)
        SELECT slot, sum(uses)::BIGINT AS uses, count(*) AS values, sum(uses * count)::BIGINT AS count,
            min_by(feature || '=' || value, (-count, feature, value), $members) AS members
        FROM held GROUP BY slot ORDER BY count DESC, slot"""
    hottest = _ask(store, query, num_slots, hottest=HOTTEST, members=MEMBERS)
    unused = steps[0].slots.observed
    return Load(
        uses=uses,
        used=Measure(num_slots - unused, expected_used(uses, num_slots), used_deviation(uses, num_slots)),
        never_used=unused,
        fullest=Measure(max(step.uses for step in steps), expected_maximum(uses, num_slots)),
        histogram=steps,
        hottest=[HotSlot(**row, share=row["count"] / reads) for row in hottest],
    )


# What chance does not explain


def _lookup_findings(lookups: Sequence[Lookup]) -> Iterator[str]:
    for one in lookups:
        where = f"{one.feature}, lookup {one.lookup}"
        yield from _finding(one.pairs, f"{where}: pairs of values in one slot")
        yield from _finding(one.repeated, f"{where}: values whose slot an earlier lookup of theirs has")
        yield from _finding(one.hash_pairs, f"{where}: pairs of values with one 32-bit hash")


def _value_findings(apart: Sequence[Inseparable], pairs: Sequence[FeaturePair]) -> Iterator[str]:
    for group in apart:
        yield from _finding(group.pairs, f"{group.feature}: pairs that no lookup separates")
    for pair in pairs:
        names = "with itself" if pair.feature == pair.other else f"and {pair.other}"
        yield from _finding(pair.pairs, f"{pair.feature} {names}: pairs of uses in one slot")


def _load_findings(load: Load, num_slots: int) -> Iterator[str]:
    yield from _finding(load.used, "the table: slots in use", more_is_bad=False)
    full = load.fullest
    if maximum_is_unlikely(full.observed, load.uses, num_slots):
        yield f"the fullest slot: {full.observed:,} uses, {full.expected:.4g} expected: {_TO_SEEDS}"


def _finding(measure: Measure, what: str, *, more_is_bad: bool = True) -> Iterator[str]:
    """Yield a line if chance explains ``measure`` badly; fewer collisions than expected do no harm."""
    z = measure.z
    if z is None or not measure.is_unlikely:
        return
    told = f"{what}: {measure.observed:,}, {measure.expected:.4g} expected (z = {z:+.1f})"
    yield f"{told}: {_TO_SEEDS if (z > 0) == more_is_bad else 'unlikely by chance, but to the good'}"
