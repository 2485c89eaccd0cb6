"""Which values a slot has, and which slots a value has."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.collisions import MEMBERS, check_countable
from featurestore.errors import SpecError, did_you_mean
from featurestore.hashing import xxh32
from featurestore.spec import FeatureSpec
from featurestore.store import FeatureStore


@dataclass(frozen=True)
class Use:
    """A value under one of its lookups. share: its part of how often the slot is read."""

    feature: str
    lookup: int
    value: str
    count: int
    share: float


def who(store: FeatureStore, slot: int, num_slots: int) -> list[Use]:
    """Return who has a slot of a table of ``num_slots`` rows, hottest first.

    Raises:
        SpecError: the table has no such slot, or cannot have so many.
        NotFound: the snapshot has no vocabulary.
    """
    check_countable(store, num_slots)
    if not 0 <= slot < num_slots:
        what = f"expected 0 to {num_slots - 1}, for the table has {num_slots:,} slots, got {slot}"
        raise SpecError("--slot", [what])
    query = """
        SELECT feature, lookup, value, count, count / sum(count) OVER () AS share
        FROM slots($n) WHERE slot = $slot ORDER BY count DESC, feature, value, lookup"""
    return [Use(**row) for row in store.sql(query, {"n": num_slots, "slot": slot}).to_pylist()]


@dataclass(frozen=True)
class OwnSlot:
    """The slot of one lookup of a value, and who else has it. hottest: feature, value and count of a few."""

    lookup: int
    seed: int
    hash: int
    slot: int
    others: int
    others_count: int
    hottest: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ValueSlots:
    """Where a value lies. count: its examples; None if it was never seen.

    A value that was never seen has slots all the same, for they are made of its text alone. nearest: then the
    known value that it may be a slip for, if there is one. known_values: how many there are; ``known``: the
    most frequent of them.
    """

    feature: str
    value: str
    count: int | None
    nearest: str | None
    known_values: int
    known: Sequence[str]
    slots: Sequence[OwnSlot]


def parse_words(words: Iterable[str], spec: FeatureSpec) -> list[tuple[str, str]]:
    """Read words such as ``zip=98107`` as features and values; SpecError names every problem."""
    names = [feature.name for feature in spec.features]
    asked, problems = [], []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            problems.append(f"expected FEATURE=VALUE, got {word!r}")
        elif name not in names:
            problems.append(f"no feature {name!r}{did_you_mean(name, names)}")
        elif not _is_utf8(value):
            problems.append(f"{name}: values are UTF-8, got {os.fsencode(value)!r}")
        asked.append((name, value))
    if problems:
        raise SpecError("slots", problems)
    return list(dict.fromkeys(asked))


def _is_utf8(text: str) -> bool:
    """Whether a word of the command line was: other bytes come as surrogates, which no text holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def slots_of_value(store: FeatureStore, feature: str, value: str, num_slots: int) -> ValueSlots:
    """Return the slots of a value, seen or not, in a table of ``num_slots`` rows, and who shares them.

    The nearest known value is the one with the fewest edits (Levenshtein), of several the most frequent;
    there is none where over half of the letters would have to change.

    Raises:
        SpecError: a table cannot have so many rows.
        NotFound: the snapshot has no vocabulary.
        ValueError: no such feature.
    """
    check_countable(store, num_slots)
    seeds = store.spec.feature(feature).seeds
    query = """
        SELECT max(count) FILTER (value = $value) AS count, count(*) AS known_values,
            arg_min(value, (levenshtein(value, $value), -count, value)) FILTER (
                2 * levenshtein(value, $value) <= greatest(length(value), length($value))) AS nearest,
            min_by(value, (-count, value), $members) AS known
        FROM vocabulary WHERE feature = $feature"""
    asked = {"feature": feature, "value": value, "members": MEMBERS}
    row = store.sql(query, asked).to_pylist()[0]
    if row["count"] is not None:
        row["nearest"] = None
    hashes = [(seed, xxh32(value, seed)) for seed in seeds]
    taken = [number % num_slots for _, number in hashes]
    others = _others(store, feature, value, taken, num_slots)
    slots = [
        OwnSlot(lookup, seed, number, slot, *others.get(slot, (0, 0, [])))
        for lookup, ((seed, number), slot) in enumerate(zip(hashes, taken, strict=True))
    ]
    return ValueSlots(feature=feature, value=value, slots=slots, **row)


def _others(
    store: FeatureStore, feature: str, value: str, slots: Sequence[int], num_slots: int
) -> dict[int, tuple[int, int, list[dict[str, Any]]]]:
    """Return the other values in some slots: how many, their traffic, the hottest."""
    query = """
        SELECT slot, count(*) AS others, sum(count)::BIGINT AS others_count,
            min_by({'feature': feature, 'value': value, 'count': count}, (-count, feature, value), $members)
                AS hottest
        FROM (
            SELECT DISTINCT slot, feature, value, count FROM slots($n)
            WHERE slot IN $slots AND NOT (feature = $feature AND value = $value))
        GROUP BY slot"""
    asked = {"n": num_slots, "slots": slots, "feature": feature, "value": value, "members": MEMBERS}
    rows = store.sql(query, asked).to_pylist()
    return {row["slot"]: (row["others"], row["others_count"], row["hottest"]) for row in rows}
