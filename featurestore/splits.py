"""Splits as SQL: the clause that selects one split's rows from the examples.

A split is a rule with its boundaries resolved on a snapshot, never a copy of rows. The clauses use
only functions whose results are fixed by a standard (comparison, MD5, row numbers over a total
order), so another engine, or this one years later, selects the same rows.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.spec import SPLITS, SplitRule

BUCKETS = 1_000_000
"""A random split compares a hash modulo this, so fractions are exact to one in a million."""


@dataclass(frozen=True)
class Splits:
    """A rule with its boundaries and the rows that each split has in one snapshot.

    boundaries: for ``time`` the first unix second of validation and of test; for ``random`` the
    first bucket of each; for ``leave_last`` none.
    """

    rule: SplitRule
    boundaries: tuple[int, ...]
    rows: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {"kind": self.rule.kind, "boundaries": list(self.boundaries), "rows": dict(self.rows)}


def bucket_boundaries(rule: SplitRule) -> tuple[int, ...]:
    """Return the boundaries of a random split."""
    return tuple(round(BUCKETS * part) for part in itertools.accumulate(rule.fractions[:-1]))


def clause(rule: SplitRule, boundaries: tuple[int, ...], split: str) -> str:
    """Return the WHERE or QUALIFY clause that selects ``split`` from the examples."""
    word = "QUALIFY" if rule.kind == "leave_last" else "WHERE"
    return f"{word} {condition(place(rule), rule, boundaries, split)}"


def place(rule: SplitRule) -> str:
    """Return SQL for the number that decides an example's split: its event time, bucket or rank.

    A bucket is the last eight bytes of an MD5, as a little-endian number. A rank counts from each
    user's last example, which has rank 1; no two are equal, for a user rates a movie once.
    """
    return {
        "time": "timestamp",
        "random": f"(md5_number_lower(concat_ws('/', user_id, movie_id, {rule.seed})) % {BUCKETS})::BIGINT",
        "leave_last": "row_number() OVER (PARTITION BY user_id ORDER BY timestamp DESC, movie_id DESC)",
    }[rule.kind]


def condition(value: str, rule: SplitRule, boundaries: tuple[int, ...], split: str) -> str:
    """Return SQL that holds where ``value``, an example's `place`, lies in ``split``."""
    low: int | None
    high: int | None
    if rule.kind == "leave_last":
        first, second = rule.last + 1, 2 * rule.last + 1
        low, high = {"test": (None, first), "validation": (first, second), "train": (second, None)}[split]
        return _between(value, low, high)
    index = SPLITS.index(split)
    if index > len(boundaries):
        return "false"
    edges = [None, *boundaries, None]
    return _between(value, edges[index], edges[index + 1])


def _between(value: str, low: int | None, high: int | None) -> str:
    """Return SQL for ``low <= value < high``, a missing bound being open."""
    bounds = [f"{value} >= {low}"] if low is not None else []
    bounds += [f"{value} < {high}"] if high is not None else []
    return " AND ".join(bounds) or "true"
