"""Splits as SQL: the clause that selects one split's rows from the examples.

A split is a rule with its boundaries resolved on a snapshot, never a copy of rows. The clauses use
only functions whose results are fixed by a standard (comparison, MD5, row numbers over a total
order), so another engine, or this one years later, selects the same rows.

Examples that the label drops belong to no split. They are taken away first: fractions are those of the
others, and a user's last examples are the last of the others.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.spec import SPLITS, Label, SplitRule

FILE = "file"
"""The column that says which file an example was read from, where the split is one by files."""
BUCKETS = 1_000_000
"""A random split compares a hash modulo this, so fractions are exact to one in a million."""


@dataclass(frozen=True)
class Splits:
    """A rule with its boundaries and the rows that each split has in one snapshot.

    boundaries: for ``time`` the first unix second of validation and of test; for ``random`` and
    ``files`` the first bucket of each; for ``leave_last`` none. dropped: the rows that are in none, for
    the label drops them.
    """

    rule: SplitRule
    label: Label
    boundaries: tuple[int, ...]
    rows: Mapping[str, int]
    dropped: int = 0

    def clause(self, split: str) -> str:
        """Return the `clause` that selects ``split``."""
        return clause(self.rule, self.label, self.boundaries, split)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's form."""
        form = {"kind": self.rule.kind, "boundaries": list(self.boundaries), "rows": dict(self.rows)}
        return form | ({"dropped": self.dropped} if self.dropped else {})


def bucket_boundaries(rule: SplitRule) -> tuple[int, ...]:
    """Return the boundaries of a random split, or of one by files."""
    if rule.kind == "files":
        return round(BUCKETS * (1 - rule.validation_fraction)), BUCKETS + 1
    return tuple(round(BUCKETS * part) for part in itertools.accumulate(rule.fractions[:-1]))


def clause(rule: SplitRule, label: Label, boundaries: tuple[int, ...], split: str) -> str:
    """Return the WHERE clause, and QUALIFY for ranks, that selects ``split`` from the examples."""
    inside = condition(place(rule), rule, boundaries, split)
    if rule.kind == "leave_last":  # ranks come after WHERE: they count the kept rows alone
        return f"WHERE {kept(label)} QUALIFY {inside}"
    return f"WHERE {kept(label)} AND {inside}"


def kept(label: Label) -> str:
    """Return SQL that holds for the examples that the label does not drop."""
    listed = ", ".join(f"{value!r}::FLOAT" for value in label.drop)  # ratings are 32-bit floats
    return f"{label.column} NOT IN ({listed})" if listed else "true"


def place(rule: SplitRule) -> str:
    """Return SQL for the number that decides an example's split: its event time, bucket or rank.

    A bucket is the last eight bytes of an MD5, as a little-endian number. A rank counts from each
    user's last example, which has rank 1; no two are equal, for a user rates a movie once. By files, the
    examples of train have their bucket, those of validation and of test one of two that follow the last.
    """
    bucket = f"(md5_number_lower(concat_ws('/', user_id, movie_id, {rule.seed})) % {BUCKETS})::BIGINT"
    return {
        "time": "timestamp",
        "random": bucket,
        "leave_last": "row_number() OVER (PARTITION BY user_id ORDER BY timestamp DESC, movie_id DESC)",
        "files": _place_by_file(rule, bucket if rule.validation_fraction else "0"),
    }[rule.kind]


def _place_by_file(rule: SplitRule, bucket: str) -> str:
    places = ((rule.train, bucket), (rule.validation, f"{BUCKETS}"), (rule.test, f"{BUCKETS + 1}"))
    cases = [
        f"WHEN {FILE} IN ({', '.join(map(quoted, names))}) THEN {value}" for names, value in places if names
    ]
    return f"CASE {' '.join(cases)} END"


def quoted(text: str) -> str:
    """Return ``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


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
