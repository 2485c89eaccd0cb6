"""Of a page: the splits, and when their examples happened."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.output import moment
from featurestore.splits import kept, quoted
from featurestore.store import FeatureStore
from training.objective import target_sql
from training.report import charts
from training.report.parts import Figure, Part, Section, Table, Words

LEFT_OUT = "left out"
"""The examples that the label drops: they are in no split."""
MOST_BARS = 70
_DAY = 86_400
UNITS = {
    "hour": _DAY // 24,
    "day": _DAY,
    "week": 7 * _DAY,
    "month": 30 * _DAY,
    "quarter": 91 * _DAY,
    "year": 0,
}
"""What a bar of the timeline may be long, in seconds; a year where nothing else gives few enough bars."""

Counted = Sequence[Mapping[str, Any]]


def splits_section(store: FeatureStore) -> Section:
    """Return how many examples each split has, of when, and with what mean label."""
    names = [*store.splits.rows, *([LEFT_OUT] if store.splits.label.drop else [])]
    store.sql(f"CREATE OR REPLACE VIEW examples_of_splits AS {_examples_of_splits(store)}")
    counted = store.sql(
        "SELECT split, count(*) AS n, min(timestamp) AS first, max(timestamp) AS last, avg(label) AS mean "
        "FROM examples_of_splits GROUP BY split"
    ).to_pylist()
    if not counted:
        return Section("splits", "Splits over time", [Words(["The snapshot has no examples."])])
    parts: list[Part] = [_table(names, {row["split"]: row for row in counted})]
    unit = unit_for(min(row["first"] for row in counted), max(row["last"] for row in counted))
    parts.append(_timeline(by_time(store, unit), names, unit))
    return Section("splits", "Splits over time", parts)


def _examples_of_splits(store: FeatureStore) -> str:
    """Return SQL for split, timestamp and label (0 and 1 where it is binary) of all examples."""
    label = store.spec.label
    columns = f"timestamp, {target_sql(label)} AS label"
    parts = [
        f"SELECT {quoted(split)} AS split, {columns} FROM {split}"  # noqa: S608  # quoted
        for split in store.splits.rows
    ]
    if label.drop:
        parts.append(f"SELECT {quoted(LEFT_OUT)} AS split, {columns} FROM examples WHERE NOT ({kept(label)})")  # noqa: S608
    return " UNION ALL ".join(parts)


def _table(names: Sequence[str], counted: Mapping[str, Mapping[str, Any]]) -> Table:
    whole = sum(row["n"] for row in counted.values())
    rows = [
        (name, row["n"], f"{row['n'] / whole:.1%}", moment(row["first"]), moment(row["last"]), row["mean"])
        if (row := counted.get(name))
        else (name, 0, "0.0%", None, None, None)
        for name in names
    ]
    return Table("Splits", ["split", "examples", "share", "first", "last", "mean label"], rows)


def unit_for(first: int, last: int) -> str:
    """Return the shortest unit with which the time between two unix seconds has few enough bars."""
    return next(unit for unit, seconds in UNITS.items() if not seconds or last - first < seconds * MOST_BARS)


def by_time(store: FeatureStore, unit: str) -> Counted:
    """Return split, start and end (unix milliseconds), n and mean label of each bar, from the view."""
    query = """
        SELECT split, epoch_ms(start) AS start, epoch_ms(start + $length::INTERVAL) AS end, count(*) AS n,
            avg(label) AS mean
        FROM (SELECT split, label, date_trunc($unit, make_timestamp(timestamp * 1000000)) AS start
            FROM examples_of_splits)
        GROUP BY ALL ORDER BY start, split"""
    length = "3 months" if unit == "quarter" else f"1 {unit}"
    rows: Counted = store.sql(query, {"unit": unit, "length": length}).to_pylist()
    return rows


def _timeline(counted: Counted, names: Sequence[str], unit: str) -> Figure:
    return Figure(
        "Examples over time",
        "A split by time shows as blocks one after another; where the splits lie over one another, training "
        "sees events that are later than some it is tested on.",
        charts.timeline(stacked(counted, names, unit), names, unit),
        Table(f"Examples by {unit}", [unit, *names, "mean label"], _by_start(counted, names, unit)),
    )


def stacked(counted: Counted, names: Sequence[str], unit: str) -> list[dict[str, object]]:
    """Return the bars of a timeline, those of one time on top of one another in the order of ``names``."""
    heights: dict[int, int] = {}
    bars = []
    for row in sorted(counted, key=lambda row: (row["start"], names.index(row["split"]))):
        low = heights.get(row["start"], 0)
        heights[row["start"]] = low + row["n"]
        bars.append(
            {
                "name": row["split"],
                "start": row["start"],
                "end": row["end"],
                "low": low,
                "high": heights[row["start"]],
                "examples": row["n"],
                "mean": row["mean"],
                "told": _told(row["start"], unit),
            }
        )
    return bars


def _told(milliseconds: int, unit: str) -> str:
    start = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return start.strftime({"hour": "%Y-%m-%d %H:00", "year": "%Y", "month": "%Y-%m"}.get(unit, "%Y-%m-%d"))


def _by_start(counted: Counted, names: Sequence[str], unit: str) -> list[tuple[object, ...]]:
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in counted:
        found.setdefault(row["start"], {})[row["split"]] = row
    rows: list[tuple[object, ...]] = []
    for start, splits in found.items():
        counts = [splits[name]["n"] if name in splits else 0 for name in names]
        mean = sum(row["n"] * row["mean"] for row in splits.values()) / sum(counts)
        rows.append((_told(start, unit), *counts, mean))
    return rows
