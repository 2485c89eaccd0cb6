"""Of a page: the features of a snapshot, and how the traffic spreads over their values."""

from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.store import FeatureStore
from training.report import charts
from training.report.parts import Figure, Part, Section, Table

PARTS = (0.5, 0.9, 0.99)
"""Shares of the traffic for which the number of values is told."""
HOTTEST = 5
RANKS = tuple(digit * 10**power for power in range(10) for digit in (1, 2, 5))
"""Numbers of hottest values at which the curve of the traffic is drawn, beside the last."""

_RANKED = """
    CREATE OR REPLACE VIEW ranked_values AS
    SELECT feature, value, count, row_number() OVER hottest AS rank,
        count(*) OVER (PARTITION BY feature) AS values, sum(count) OVER (PARTITION BY feature) AS total,
        sum(count) OVER (hottest ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS reached
    FROM vocabulary WINDOW hottest AS (PARTITION BY feature ORDER BY count DESC, value)"""


def features_section(store: FeatureStore) -> Section:
    """Return the features, each with its vocabulary and how much of the traffic a few of its values have."""
    store.sql(_RANKED)
    summary = [_needed(store, part) for part in PARTS]
    parts: list[Part] = [_table(store, summary)]
    if summary[0]:
        parts += [_traffic(store), _hottest(store)]
    return Section("features", "Features", parts)


def _needed(store: FeatureStore, part: float) -> dict[str, Mapping[str, Any]]:
    """Return by feature its values, and how many of the hottest have this part of its examples."""
    query = """
        SELECT feature, count(*) AS values, count(*) FILTER (count = 1) AS once,
            sum(count)::BIGINT AS examples, count(*) FILTER (reached - count < $part * total) AS needed
        FROM ranked_values GROUP BY feature"""
    return {row["feature"]: row for row in store.sql(query, {"part": part}).to_pylist()}


def _table(store: FeatureStore, summary: Sequence[Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = [
        (
            feature.name,
            feature.column,
            len(feature.seeds),
            *(summary[0].get(feature.name, {}).get(name, 0) for name in ("values", "once", "examples")),
            *(found.get(feature.name, {}).get("needed", 0) for found in summary),
        )
        for feature in store.spec.features
    ]
    shares = [f"{part:.0%}" for part in PARTS]
    names = ["feature", "column", "lookups", "values", "seen once", "examples", *shares]
    title = f"Features and their vocabularies; {shares[0]}: how many hottest values have half of the examples"
    return Table(title, names, rows)


def _traffic(store: FeatureStore) -> Figure:
    query = """
        SELECT feature, rank, (reached / total)::DOUBLE AS share FROM ranked_values
        WHERE rank IN (SELECT unnest($ranks)) OR rank = values ORDER BY feature, rank"""
    rows = store.sql(query, {"ranks": RANKS}).to_pylist()
    names = [feature.name for feature in store.spec.features]
    return Figure(
        "How the traffic spreads over the values",
        "Where a line rises steeply a few values have most of the examples; where it rises slowly the tail "
        "is long, and its rare values are those for which a row of their own costs most.",
        charts.traffic(rows, names),
        Table(
            "Share of the examples by hottest values",
            ["hottest values", *names],
            _wide(rows, names),
        ),
    )


def _wide(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[object, ...]]:
    shares = {(row["feature"], row["rank"]): f"{row['share']:.1%}" for row in rows}
    ranks = sorted({row["rank"] for row in rows})
    return [(rank, *(shares.get((name, rank)) for name in names)) for rank in ranks]


def _hottest(store: FeatureStore) -> Table:
    query = "SELECT feature, value, count, total FROM ranked_values WHERE rank <= $hottest ORDER BY rank"
    found = store.sql(query, {"hottest": HOTTEST}).to_pylist()
    rows = [
        (
            feature.name,
            ", ".join(
                f"{row['value'] or '(empty)'} {row['count'] / row['total']:.1%}"
                for row in found
                if row["feature"] == feature.name
            ),
        )
        for feature in store.spec.features
    ]
    return Table(
        f"The {HOTTEST} hottest values, and their share of the examples", ["feature", "values"], rows
    )
