"""Who has which rows: by hand, and in SQL against a loop over the raw examples."""

import collections

import numpy as np
import pytest

from featurestore.errors import ArtifactError
from training.utilization.rows import KINDS, RowUse, count_values, name_kinds


@pytest.fixture
def use():
    """Seven rows: 0 without a value; 1, 2 of one; 3 of two values of A; 4, 5, 6 of A and B, 6 of three."""
    groups = [  # row, feature, members, train, held_out
        (1, 0, 1, 10, 1),
        (2, 0, 1, 0, 5),
        (3, 0, 2, 7, 0),
        (4, 0, 1, 90, 0),
        (4, 1, 1, 10, 0),
        (5, 0, 1, 89, 0),
        (5, 1, 1, 11, 0),
        (6, 0, 2, 0, 0),
        (6, 1, 1, 0, 0),
    ]
    return RowUse(7, *(np.array(column) for column in zip(*groups, strict=True)))


def test_every_row_has_one_use(use):
    assert use.uses() == {"no value": 1, "left out": 1, "held out": 1, "trained": 4}


def test_rows_are_shared_within_a_feature_or_between_features(use):
    assert use.shares().tolist() == [-1, 0, 0, 1, 2, 2, 2]


def test_a_feature_dominates_from_nine_tenths_of_the_traffic_on(use):
    assert use.dominating().tolist() == [True, False, True, True, False, False, False, False, False]


def test_the_rows_of_features_are_told(use):
    one, other = use.features(["A", "B"], [9, 3], np.arange(7.0))
    assert (one.values, one.rows, one.shares) == (9, 6, {"one value": 2, "within": 1, "between": 3})
    assert (one.dominated, one.dominated_shared, one.mean_norm) == (3, 1, (1 + 3 + 4) / 3)
    assert (other.rows, other.shares) == (3, {"one value": 0, "within": 0, "between": 3})
    assert (other.dominated, other.dominated_shared, other.mean_norm) == (0, 0, None)


def test_norms_are_told_by_the_load_of_rows(use):
    assert use.loads(np.arange(7.0)).to_list() == [
        {"load": "0", "rows": 1, "mean_norm": 0.0, "mean_traffic": 0.0},
        {"load": "1", "rows": 2, "mean_norm": 1.5, "mean_traffic": 5.0},
        {"load": "2", "rows": 3, "mean_norm": 4.0, "mean_traffic": (7 + 100 + 100) / 3},
        {"load": "3", "rows": 1, "mean_norm": 6.0, "mean_traffic": 0.0},
    ]


FEATURES = ("user_id", "movie_id", "zip")


@pytest.fixture
def seen(opened):
    """How many examples of each split, and in all, each (feature, value) has: counted row by row."""
    found = collections.defaultdict(collections.Counter)
    for split in ("train", "validation", "test", "examples"):
        for row in opened.sql(f"SELECT {', '.join(FEATURES)} FROM {split}").to_pylist():
            for feature in FEATURES:
                found[feature, row[feature]][split] += 1
    return found


def test_the_store_has_all_that_can_become_of_a_value(seen, small):
    assert len(small.slots("user_id", "1")) == 1 < len(small.slots("user_id", "2"))
    kinds = {(count["train"] > 0, count["validation"] + count["test"] > 0) for count in seen.values()}
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


def test_sql_counts_what_a_loop_counts(opened, small, seen):
    expected = collections.defaultdict(lambda: [0, 0, 0])
    for (feature, value), count in seen.items():
        for each in small.slots(feature, value):
            held_out = count["validation"] + count["test"]
            counts = expected[each, FEATURES.index(feature)]
            for place, more in enumerate((1, count["train"], held_out)):
                counts[place] += more
    count_values(opened)
    use = RowUse.read(opened)
    columns = (use.row, use.feature, use.members, use.train, use.held_out)
    found = {(row, feature): rest for row, feature, *rest in np.stack(columns, 1).tolist()}
    assert found == dict(expected)
    assert sum(use.uses().values()) == use.num_rows == 24


def test_a_value_is_of_the_kind_that_comparing_all_slots_gives(opened, small, seen):
    def kind(feature, value):
        if not seen[feature, value]["train"]:
            return "new"
        others = {
            other
            for (other, text), count in seen.items()
            if count["train"]
            and (other, text) != (feature, value)
            and small.slots(other, text) & small.slots(feature, value)
        }
        return "within" if feature in others else "between" if others else "clean"

    count_values(opened)
    name_kinds(opened)
    rows = opened.sql("FROM value_kinds").to_pylist()
    found = {(row["feature"], row["value"]): KINDS[row["kind"]] for row in rows}
    assert found == {key: kind(*key) for key in seen}
    assert set(found.values()) == set(KINDS)


def test_a_snapshot_without_vocabulary_says_how_to_make_one(opened):
    opened.sql(
        "CREATE OR REPLACE VIEW vocabulary AS SELECT ''::VARCHAR AS feature, ''::VARCHAR AS value, "
        "0::BIGINT AS count, []::UINTEGER[] AS hashes WHERE false"
    )
    with pytest.raises(ArtifactError, match=r"has no vocabulary.*`slotstore ingest SOURCE --store "):
        count_values(opened)
