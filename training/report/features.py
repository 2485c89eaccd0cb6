"""Of a page: the features of a snapshot, and how the traffic spreads over their values."""

from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.store import FeatureStore
from training.report import charts
from training.report.parts import Figure, Part, Section, Table

PARTS = {"half": 0.5, "most": 0.9, "nearly": 0.99}
"""Shares of the traffic for which the number of values is told."""
HOTTEST = 5
Found = Mapping[str, Mapping[str, Any]]
RANKS = tuple(digit * 10**power for power in range(10) for digit in (1, 2, 5))
"""Numbers of hottest values at which the curve of the traffic is drawn, beside the last."""

_RANKED = """
    SELECT feature, value, count, row_number() OVER hottest AS rank,
        count(*) OVER (PARTITION BY feature) AS values, sum(count) OVER (PARTITION BY feature) AS total,
        sum(count) OVER (hottest ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS reached
    FROM vocabulary WINDOW hottest AS (PARTITION BY feature ORDER BY count DESC, value)"""
_SUMMARY = f"""
    SELECT feature, count(*) AS values, count(*) FILTER (count = 1) AS once, sum(count)::BIGINT AS examples,
        count(*) FILTER (reached - count < $half * total) AS half,
        count(*) FILTER (reached - count < $most * total) AS most,
        count(*) FILTER (reached - count < $nearly * total) AS nearly
    FROM ({_RANKED}) GROUP BY feature"""  # noqa: S608  # ours
_DRAWN = f"""
    SELECT feature, value, count, rank, total, (reached / total)::DOUBLE AS share FROM ({_RANKED})
    WHERE rank IN (SELECT unnest($ranks)) OR rank <= $hottest OR rank = values
    ORDER BY feature, rank"""  # noqa: S608  # ours


def features_section(store: FeatureStore) -> Section:
    """Return the features, each with its vocabulary and how much of the traffic a few of its values have."""
    found = {row["feature"]: row for row in store.sql(_SUMMARY, PARTS).to_pylist()}
    parts: list[Part] = [_table(store, found)]
    if found:
        rows = store.sql(_DRAWN, {"ranks": RANKS, "hottest": HOTTEST}).to_pylist()
        parts += [_traffic(store, found, rows), _hottest(store, rows)]
    return Section("features", "Features", parts)


def _table(store: FeatureStore, found: Found) -> Table:
    counts = ("values", "once", "examples", *PARTS)
    rows = [
        (
            feature.name,
            feature.column,
            len(feature.seeds),
            *(found.get(feature.name, {}).get(name, 0) for name in counts),
        )
        for feature in store.spec.features
    ]
    shares = [f"{part:.0%}" for part in PARTS.values()]
    names = ["feature", "column", "lookups", "values", "seen once", "examples", *shares]
    title = f"Features and their vocabularies; {shares[0]}: how many hottest values have half of the examples"
    return Table(title, names, rows)


def _traffic(store: FeatureStore, found: Found, rows: Sequence[Mapping[str, Any]]) -> Figure:
    names = [feature.name for feature in store.spec.features if feature.name in found]
    largest = sorted(names, key=lambda name: -found[name]["values"])[: charts.MOST_NAMES]
    drawn = [name for name in names if name in largest]
    left = f" Drawn are the {len(drawn)} features with most values." if len(drawn) < len(names) else ""
    points = [
        {"feature": row["feature"], "rank": row["rank"], "share": row["share"]}
        for row in rows
        if row["feature"] in drawn and (row["rank"] in RANKS or row["share"] == 1)
    ]
    return Figure(
        "How the traffic spreads over the values",
        "Where a line rises steeply a few values have most of the examples; where it rises slowly the tail "
        f"is long, and its rare values are those for which a row of their own costs most.{left}",
        charts.traffic(points, drawn),
        Table("Share of the examples by hottest values", ["hottest values", *drawn], _wide(points, drawn)),
    )


def _wide(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[object, ...]]:
    shares = {(row["feature"], row["rank"]): f"{row['share']:.1%}" for row in rows}
    ranks = sorted({row["rank"] for row in rows})
    return [(rank, *(shares.get((name, rank)) for name in names)) for rank in ranks]


def _hottest(store: FeatureStore, rows: Sequence[Mapping[str, Any]]) -> Table:
    told: dict[str, list[str]] = {}
    for row in rows:
        if row["rank"] <= HOTTEST:
            value = f"{row['value'] or '(empty)'} {row['count'] / row['total']:.1%}"
            told.setdefault(row["feature"], []).append(value)
    names = [feature.name for feature in store.spec.features]
    title = f"The {HOTTEST} hottest values, and their share of the examples"
    return Table(title, ["feature", "values"], [(name, ", ".join(told.get(name, []))) for name in names])
