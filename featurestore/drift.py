"""How the values of a snapshot differ from those of another, and what that does to a table's collisions.

The traffic of a feature is a distribution over its values: p in the old snapshot, q in the new one. Two
distances say how far it moved; both are 0 where nothing did and 1 where no value is in both.

    total variation         1/2 sum |p - q|: the least share of the examples that would need another value
    Jensen-Shannon, bits    1/2 sum p log2(2p / (p+q)) + 1/2 sum q log2(2q / (p+q)): what one example tells of
                            which snapshot it is from; new and vanished values leave it finite

J. Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory 37(1),
1991. Two samples of one distribution differ too, the more so the more rare values there are: with n and m
examples expect a total variation of about sum sqrt(p (1/n + 1/m) / 2 pi), less where one grew from the other.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.collisions import Shape, shapes, sharing_chances
from featurestore.database import parquet
from featurestore.hashing import MAX_SLOTS
from featurestore.occupancy import slots_for
from featurestore.spec import FeatureSpec
from featurestore.store import FeatureStore

SHOWN = 5
"""New and vanished values of a feature that are shown, those with most examples."""
RISE = 0.02
"""By how much the expected share of values that share a slot may rise before a larger table is proposed."""


@dataclass(frozen=True)
class FeatureDrift:
    """What became of a feature's values.

    added, gone: values that only the new, only the old snapshot has; the traffic is their share of its
    examples. Distances and shares are None for a feature without values in that snapshot.
    """

    feature: str
    added: int
    added_traffic: float | None
    shown_added: Sequence[str]
    gone: int
    gone_traffic: float | None
    shown_gone: Sequence[str]
    total_variation: float | None
    jensen_shannon: float | None


@dataclass(frozen=True)
class Crowding:
    """How much of a snapshot shares a slot in a table of ``num_slots``, counted and expected.

    The shares are of values and of traffic. A value counts where one of its slots is another value's too, of
    whatever feature.
    """

    snapshot: str
    num_slots: int
    values: int
    shared: float
    expected_shared: float
    shared_traffic: float
    expected_shared_traffic: float


@dataclass(frozen=True)
class Drift:
    """What changed from one snapshot's vocabulary to another's.

    resize: the fewest slots with which the new values are expected to share no more than the old ones did, if
    the expected share rose by over `RISE`; None if it did not, or no table is large enough.
    """

    features: Sequence[FeatureDrift]
    crowding: Sequence[Crowding]
    resize: int | None
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


def drift(old: FeatureStore, new: FeatureStore) -> Drift:
    """Compare the values of two snapshots of one store, and the collisions that each table makes of them.

    Raises:
        NotFound: a snapshot has no vocabulary.
    """
    features = _features(old, new)
    sizes = sorted({store.spec.table.num_slots for store in (old, new)})
    crowding = [_crowding(store, size) for store in (old, new) for size in sizes]
    resize, advice = _advice(old, new)
    return Drift(features, crowding, resize, advice)


# Values and traffic


def _features(old: FeatureStore, new: FeatureStore) -> list[FeatureDrift]:
    sources = [parquet(store.snapshot.vocabulary()) for store in (old, new)]
    rows = {row["feature"]: row for row in old.sql(_query(*sources), {"shown": SHOWN}).to_pylist()}
    names = dict.fromkeys(feature.name for store in (old, new) for feature in store.spec.features)
    return [FeatureDrift(**rows[name]) for name in names if name in rows]


def _query(old: str, new: str) -> str:
    """Return SQL for the fields of `FeatureDrift`.

    Total variation is summed in whole numbers, so that the order of the rows does not matter.
    """
    return f"""
        WITH counted AS (
            SELECT feature, value, old, new, sum(old) OVER whole AS all_old, sum(new) OVER whole AS all_new
            FROM (SELECT feature, value, "count" AS old FROM {old})
            FULL JOIN (SELECT feature, value, "count" AS new FROM {new}) USING (feature, value)
            WINDOW whole AS (PARTITION BY feature)),
        shares AS (
            SELECT *, coalesce(old, 0) / all_old AS p, coalesce(new, 0) / all_new AS q,
                abs(coalesce(old, 0) * all_new - coalesce(new, 0) * all_old) AS apart
            FROM counted)
        SELECT feature,
            count(*) FILTER (old IS NULL) AS added,
            (coalesce(sum(new) FILTER (old IS NULL), 0) / any_value(all_new))::DOUBLE AS added_traffic,
            coalesce(min_by(value, (-new, value), $shown) FILTER (old IS NULL), []) AS shown_added,
            count(*) FILTER (new IS NULL) AS gone,
            (coalesce(sum(old) FILTER (new IS NULL), 0) / any_value(all_old))::DOUBLE AS gone_traffic,
            coalesce(min_by(value, (-old, value), $shown) FILTER (new IS NULL), []) AS shown_gone,
            (sum(apart) / any_value(all_old) / any_value(all_new) / 2)::DOUBLE AS total_variation,
            round(sum(
                CASE WHEN p > 0 THEN p * log2(2 * p / (p + q)) ELSE 0 END
                + CASE WHEN q > 0 THEN q * log2(2 * q / (p + q)) ELSE 0 END) / 2, 12) AS jensen_shannon
        FROM shares GROUP BY feature"""


# Collisions


def _crowding(store: FeatureStore, num_slots: int) -> Crowding:
    counted = store.sql(
        "SELECT sum(values)::BIGINT, sum(shared)::BIGINT, sum(count)::BIGINT, sum(shared_count)::BIGINT "
        "FROM collisions($n) WHERE sharing_with = 'any'",
        {"n": num_slots},
    )
    values, shared, count, shared_count = (number or 0 for number in counted.to_pylist()[0].values())
    known = shapes(store)
    expected, expected_traffic = expected_shares(known, num_slots)
    return Crowding(
        snapshot=store.snapshot.manifest.id,
        num_slots=num_slots,
        values=values,
        shared=shared / max(values, 1),
        expected_shared=expected,
        shared_traffic=shared_count / max(count, 1),
        expected_shared_traffic=expected_traffic,
    )


def expected_shares(known: Mapping[str, Shape], num_slots: int) -> tuple[float, float]:
    """Return which shares of values and of traffic are expected to be in a slot with any other value."""
    chances = {feature: sharing_chances(known, feature, num_slots)["any"][0] for feature in known}
    values, count = (sum(getattr(shape, name) for shape in known.values()) for name in ("values", "count"))
    return (
        sum(shape.values * chances[feature] for feature, shape in known.items()) / max(values, 1),
        sum(shape.count * chances[feature] for feature, shape in known.items()) / max(count, 1),
    )


def _are_read_alike(old: FeatureSpec, new: FeatureSpec) -> bool:
    """Return whether a shared slot costs the same: rows alike, and lookups of the features that both have."""
    before, after = ({one.name: len(one.seeds) for one in spec.features} for spec in (old, new))
    rows = ((spec.table.dim, spec.table.vector) for spec in (old, new))
    return len(set(rows)) == 1 and all(before[name] == after[name] for name in before.keys() & after.keys())


def _advice(old: FeatureStore, new: FeatureStore) -> tuple[int | None, str]:
    before, after = shapes(old), shapes(new)
    had, has = old.spec.table.num_slots, new.spec.table.num_slots
    was, now = expected_shares(before, had)[0], expected_shares(after, has)[0]
    told = f"values expected to share a slot: {was:.1%} of all with {had:,} slots, now {now:.1%} with {has:,}"
    if not _are_read_alike(old.spec, new.spec):
        return None, f"{told}. Lookups or rows are others, which that does not tell: `slotstore advise` does."
    if now - was <= RISE:
        return None, f"{told}. No need to re-size."
    enough = slots_for(lambda slots: expected_shares(after, slots)[0], was, MAX_SLOTS)
    if enough is None:
        return None, f"{told}. No table is large enough to bring them back: give the features more lookups."
    how = f"slotstore reslot --num-slots {enough}, and train again"
    return enough, f"{told}. Re-size: {enough:,} slots bring them back ({how})."
