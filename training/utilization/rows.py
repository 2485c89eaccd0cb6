"""Which rows of a table the values of a snapshot have, and what training saw of them: asked in SQL.

A *group* is the values of one feature that have one row, however many of a value's lookups lead there. A
value is *trained* where an example of the train split has it. Notation: F features, G groups, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featurestore.database import identifier
from featurestore.errors import ArtifactError
from featurestore.paths import typed
from featurestore.spec import Feature
from featurestore.splits import quoted
from featurestore.store import FeatureStore
from training.comparison.measures import COLLISIONS, Doubles, Flags, RowLoads, Whole

KINDS = (*COLLISIONS, "new")
"""Kinds of values: `COLLISIONS`, other values being the trained ones, for no other disturbs a row; and
``new``, a value that is not trained itself, so that its rows know nothing of it."""

USES = ("no value", "left out", "held out", "trained")
"""What becomes of rows. ``no value`` of the vocabulary hashes to them; ``left out``: their values are in no
split, for the label drops their examples; ``held out``: in validation or test but not in train."""

SHARES = ("one value", "within", "between")
"""How rows that have values are shared: not at all, by values of one feature, by features."""

DOMINANT = 0.9
"""The share of a row's traffic from which a feature dominates it."""


def text_of(feature: Feature) -> str:
    """Return SQL for a feature's value in an example, as the vocabulary has it."""
    return f"coalesce({identifier(feature.column)}::VARCHAR, '')"


def count_values(store: FeatureStore) -> None:
    """Count what training saw of each value, into two tables of the store's database in memory.

    ``value_use``: feature, value, examples, train and held_out, the examples of the value in all, in train,
    in validation and test. ``row_use``, the groups: slot, feature, ``members`` values, ``trained`` of them,
    and the sums train and held_out.

    Raises:
        ArtifactError: the vocabulary is empty.
    """
    counts = " UNION ALL ".join(
        f"SELECT {quoted(feature.name)} AS feature, {text_of(feature)} AS value, "  # noqa: S608  # quoted
        f"{quoted(split)} AS split, count(*) AS n FROM {split} GROUP BY ALL"
        for feature in store.spec.features
        for split in store.splits.rows
    )
    store.sql(
        f"""CREATE OR REPLACE TABLE value_use AS
        SELECT feature, value, any_value(vocabulary.count) AS examples,
            coalesce(sum(n) FILTER (split = 'train'), 0)::BIGINT AS train,
            coalesce(sum(n) FILTER (split <> 'train'), 0)::BIGINT AS held_out
        FROM vocabulary LEFT JOIN ({counts}) USING (feature, value) GROUP BY feature, value"""  # noqa: S608
    )
    store.sql(
        """CREATE OR REPLACE TABLE row_use AS
        SELECT slot, feature, count(*) AS members, count(*) FILTER (train > 0) AS trained,
            sum(train)::BIGINT AS train, sum(held_out)::BIGINT AS held_out
        FROM (SELECT DISTINCT slot, feature, value FROM slots) JOIN value_use USING (feature, value)
        GROUP BY slot, feature"""
    )
    if not store.sql("SELECT count(*) AS n FROM value_use")["n"][0].as_py():
        raise no_vocabulary(store)


def no_vocabulary(store: FeatureStore) -> ArtifactError:
    """Return the error of a snapshot whose vocabulary is empty."""
    return ArtifactError(
        f"snapshot {store.snapshot.manifest.id} of {store.path} has no vocabulary, which says whose rows "
        f"are whose: `slotstore ingest SOURCE --store {typed(store.path)}` makes a snapshot with one"
    )


def name_kinds(store: FeatureStore) -> None:
    """Say of each value which of `KINDS` it is, into the table ``value_kinds``: feature, value, kind.

    Call `count_values` before.
    """
    new, within, between, clean = (KINDS.index(kind) for kind in ("new", "within", "between", "clean"))
    store.sql(
        f"""CREATE OR REPLACE TABLE value_kinds AS
        WITH whole AS (SELECT slot, sum(trained) AS trained FROM row_use GROUP BY slot)
        SELECT feature, value, CASE WHEN any_value(value_use.train) = 0 THEN {new}
            WHEN max(row_use.trained) > 1 THEN {within} WHEN max(whole.trained) > 1 THEN {between}
            ELSE {clean} END AS kind
        FROM slots JOIN value_use USING (feature, value) JOIN row_use USING (slot, feature)
            JOIN whole USING (slot)
        GROUP BY feature, value"""  # noqa: S608  # numbers
    )


@dataclass(frozen=True)
class FeatureRows:
    """The rows of one feature.

    values: of the vocabulary. rows: that they have. shares: of these rows, by `SHARES`. dominated: rows of
    whose traffic at least `DOMINANT` is the feature's; dominated_shared: those of them that features share.
    mean_norm: L2, of the rows that it dominates; None of none.
    """

    feature: str
    values: int
    rows: int
    shares: dict[str, int]
    dominated: int
    dominated_shared: int
    mean_norm: float | None


@dataclass(frozen=True)
class RowUse:
    """The groups of a table of R rows, int64 (G,) each.

    row, feature: which. members: values. train, held_out: examples of these values, added up.
    """

    num_rows: int
    row: Whole
    feature: Whole
    members: Whole
    train: Whole
    held_out: Whole

    @classmethod
    def read(cls, store: FeatureStore) -> "RowUse":
        """Read the groups that `count_values` has counted; features are numbered as in the spec."""
        names = [quoted(feature.name) for feature in store.spec.features]
        number = f"list_position([{', '.join(names)}], feature) - 1"
        found = store.sql(
            f"SELECT slot, {number}, members, train, held_out FROM row_use ORDER BY ALL"  # noqa: S608
        )
        return cls(
            store.spec.table.num_slots, *(column.to_numpy().astype(np.int64) for column in found.columns)
        )

    def total(self, of_groups: Whole) -> Whole:
        """Add up numbers of groups (G,) by row: int64 (R,), exact below 2**53."""
        return np.bincount(self.row, of_groups, self.num_rows).astype(np.int64)

    def uses(self) -> dict[str, int]:
        """Count the rows by `USES`; together they are all."""
        loads, held_out, train = (self.total(each) for each in (self.members, self.held_out, self.train))
        steps = [loads > 0, held_out + train > 0, train > 0]
        levels = np.sum(steps, axis=0)
        return dict(zip(USES, np.bincount(levels, minlength=len(USES)).tolist(), strict=True))

    def shares(self) -> Whole:
        """Return how each row is shared, its number in `SHARES`, -1 without a value: int64 (R,)."""
        features, loads = np.bincount(self.row, minlength=self.num_rows), self.total(self.members)
        shares: Whole = np.select([loads == 0, loads == 1, features == 1], [-1, 0, 1], 2)
        return shares

    def dominating(self) -> Flags:
        """Return which groups have at least `DOMINANT` of the traffic of their row, where there is any."""
        of_row = self.total(self.train)[self.row]
        flags: Flags = (of_row > 0) & (self.train >= DOMINANT * of_row)
        return flags

    def loads(self, norms: Doubles) -> RowLoads:
        """Return norms (R,) beside the values and the traffic of the rows."""
        return RowLoads(norms, self.total(self.members), self.total(self.train))

    def features(self, names: Sequence[str], values: Sequence[int], norms: Doubles) -> list[FeatureRows]:
        """Return the rows of each feature, from its number of values and the norms (R,) of the rows."""
        shares, dominating = self.shares()[self.row], self.dominating()
        found = []
        for number, (name, count) in enumerate(zip(names, values, strict=True)):
            mine = self.feature == number
            dominated = mine & dominating
            found.append(
                FeatureRows(
                    name,
                    count,
                    int(mine.sum()),
                    {share: int((shares[mine] == each).sum()) for each, share in enumerate(SHARES)},
                    int(dominated.sum()),
                    int((dominated & (shares == SHARES.index("between"))).sum()),
                    float(norms[self.row[dominated]].mean()) if dominated.any() else None,
                )
            )
        return found
