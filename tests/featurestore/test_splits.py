import collections
import dataclasses
import hashlib
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore.database import Database, _timestamps_at, parquet, resolve_splits
from featurestore.spec import SPLITS, Label, SplitRule
from featurestore.splits import BUCKETS, Splits, bucket_boundaries

START = 978_300_000
# (user, movie) -> event time: no user rates a movie twice; few times, so that there are many ties.
ratings = st.dictionaries(
    st.tuples(st.integers(0, 4).map(str), st.integers(0, 12).map(str)),
    st.integers(START, START + 9),
    min_size=1,
    max_size=40,
)
ALL = Label("rating")  # which drops none
fractions = st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (0.34, 0.33, 0.33), (1.0, 0.0), (0.01, 0.0, 0.99)])


SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("movie_id", pa.string()),
        ("timestamp", pa.int64()),
        ("rating", pa.float32()),
        ("file", pa.string()),
    ]
)


def stars(movie):
    return 1 + 0.7 * (int(movie) % 5)  # 1.7 is no 32-bit float


def file_of(pair):
    return ("it's", "b", "c")[(ord(pair[0][-1]) + int(pair[1])) % 3]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A function (ratings, rule, label) -> the resolved splits and the (user, movie) pairs of each."""
    folder = tmp_path_factory.mktemp("cut")

    def resolve(rated, rule, label=ALL):
        rows = [(*pair, time, stars(pair[1]), file_of(pair)) for pair, time in rated.items()]
        table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
        files = [folder / "0.parquet", folder / "1.parquet"]
        pq.write_table(table.slice(0, len(rows) // 2), files[0])
        pq.write_table(table.slice(len(rows) // 2), files[1])
        splits = resolve_splits(files, rule, label)
        with_database = Database()
        members = {
            split: with_database.execute(
                f"SELECT user_id, movie_id FROM {parquet(files)} {splits.clause(split)}"
            )
            for split in SPLITS
        }
        with_database.close()
        return splits, members

    return resolve


def in_exactly_one(rated, splits, members):
    """Every row is in one split, and the stored counts are the clauses'."""
    assert sorted(itertools.chain.from_iterable(members.values())) == sorted(rated)
    assert splits.rows == {split: len(rows) for split, rows in members.items()}


@settings(max_examples=25)
@given(ratings, fractions)
@example({("1", "1"): START, ("1", "2"): START}, (0.5, 0.5))
@example({("1", "1"): START}, (0.8, 0.1, 0.1))
def test_time_fractions(cut, rated, parts):
    splits, members = cut(rated, SplitRule("time", fractions=parts))
    in_exactly_one(rated, splits, members)
    times = sorted(rated.values())
    ranks = [round(len(times) * part) for part in itertools.accumulate(parts[:-1])]
    edges = [times[rank] if rank < len(times) else times[-1] + 1 for rank in ranks]
    assert splits.boundaries == tuple(edges)
    edges = [times[0], *edges, *[times[-1] + 1] * (3 - len(edges))]
    for split, low, high in zip(SPLITS, edges, edges[1:], strict=False):
        assert {pair for pair, time in rated.items() if low <= time < high} == set(members[split])


def test_time_fractions_are_exact_without_ties(cut):
    rated = {("u", str(number)): START + 10 * number for number in range(100)}
    splits, _ = cut(rated, SplitRule("time", fractions=(0.8, 0.1, 0.1)))
    assert splits.rows == {"train": 80, "validation": 10, "test": 10}
    assert splits.boundaries == (START + 800, START + 900)


def test_equal_times_stay_together(cut):
    rated = {("u", str(number)): START + (number >= 3) for number in range(10)}
    splits, _ = cut(rated, SplitRule("time", fractions=(0.5, 0.5)))
    assert splits.rows == {"train": 3, "validation": 7, "test": 0}


@pytest.mark.parametrize(
    ("boundaries", "rows"),
    [
        ((START + 3,), {"train": 3, "validation": 7, "test": 0}),
        ((START + 3, START + 5), {"train": 3, "validation": 2, "test": 5}),
        ((START + 3, START + 3), {"train": 3, "validation": 0, "test": 7}),
        ((0, 1), {"train": 0, "validation": 0, "test": 10}),
        ((2**40,), {"train": 10, "validation": 0, "test": 0}),
    ],
)
def test_time_boundaries(cut, boundaries, rows):
    rated = {("u", str(number)): START + number for number in range(10)}
    splits, members = cut(rated, SplitRule("time", boundaries=boundaries))
    in_exactly_one(rated, splits, members)
    assert splits.boundaries == boundaries
    assert splits.rows == rows


@settings(max_examples=25)
@given(ratings, fractions, st.sampled_from([0, 1, 2**32 - 1]))
def test_random_is_an_md5_of_the_key(cut, rated, parts, seed):
    splits, members = cut(rated, SplitRule("random", fractions=parts, seed=seed))
    in_exactly_one(rated, splits, members)
    edges = [0, *(round(BUCKETS * part) for part in itertools.accumulate(parts[:-1])), BUCKETS]
    for pair in rated:
        digest = hashlib.md5("/".join([*pair, str(seed)]).encode()).digest()
        bucket = int.from_bytes(digest[8:], "little") % BUCKETS
        index = next(index for index, high in enumerate(edges[1:]) if bucket < high)
        assert pair in members[SPLITS[index]]


def test_random_fractions_are_about_right_and_seeds_differ(cut):
    rated = {(str(number // 100), str(number % 100)): START for number in range(2_000)}
    rule = SplitRule("random", fractions=(0.8, 0.1, 0.1), seed=1)
    splits, members = cut(rated, rule)
    assert splits.boundaries == bucket_boundaries(rule) == (800_000, 900_000)
    assert 1_550 < splits.rows["train"] < 1_650
    _, others = cut(rated, SplitRule("random", fractions=(0.8, 0.1, 0.1), seed=2))
    assert set(members["test"]) != set(others["test"])


@settings(max_examples=25)
@given(ratings, st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0, 7]))
def test_files_with_a_part_of_train_for_validation(cut, rated, part, seed):
    """That part is what a random split of train alone would take."""
    rule = SplitRule("files", train=("it's", "b"), test=("c",), validation_fraction=part, seed=seed)
    splits, members = cut(rated, rule)
    in_exactly_one(rated, splits, members)
    base = {pair: time for pair, time in rated.items() if file_of(pair) != "c"}
    assert set(members["test"]) == rated.keys() - base
    if base:
        _, expected = cut(base, SplitRule("random", fractions=(1 - part, part), seed=seed))
        assert {*members["train"]} == {*expected["train"]}
        assert {*members["validation"]} == {*expected["validation"]}


@settings(max_examples=25)
@given(ratings)
def test_files_of_every_split(cut, rated):
    rule = SplitRule("files", train=("c",), validation=("b",), test=("it's",))
    splits, members = cut(rated, rule)
    in_exactly_one(rated, splits, members)
    for split in SPLITS:
        assert {file_of(pair) for pair in members[split]} <= {*getattr(rule, split)}


@settings(max_examples=25)
@given(ratings, st.integers(1, 3))
def test_leave_last(cut, rated, last):
    splits, members = cut(rated, SplitRule("leave_last", last=last))
    in_exactly_one(rated, splits, members)
    assert splits.boundaries == ()
    expected = collections.defaultdict(set)
    for user in {user for user, _ in rated}:
        newest = sorted(
            ((time, movie) for (other, movie), time in rated.items() if other == user), reverse=True
        )
        for rank, (_, movie) in enumerate(newest):
            split = "test" if rank < last else "validation" if rank < 2 * last else "train"
            expected[split].add((user, movie))
    assert {split: set(rows) for split, rows in members.items()} == {
        split: expected[split] for split in SPLITS
    }


@pytest.mark.parametrize(
    "rule",
    [
        SplitRule("time", fractions=(0.8, 0.1, 0.1)),
        SplitRule("random", fractions=(0.5, 0.5)),
        SplitRule("leave_last"),
        SplitRule("files", train=("b",), test=("c",), validation_fraction=0.1),
    ],
    ids=lambda rule: rule.kind,
)
def test_no_examples(tmp_path, rule):
    pq.write_table(SCHEMA.empty_table(), tmp_path / "none.parquet")
    splits = resolve_splits([tmp_path / "none.parquet"], rule, Label("rating", drop=(1.7,)))
    assert (splits.rows, splits.dropped) == ({"train": 0, "validation": 0, "test": 0}, 0)


@settings(max_examples=25)
@given(
    ratings,
    st.sampled_from(
        [
            SplitRule("time", fractions=(0.8, 0.1, 0.1)),
            SplitRule("time", boundaries=(START + 3, START + 6)),
            SplitRule("random", fractions=(0.5, 0.3, 0.2)),
            SplitRule("leave_last", last=2),
            SplitRule("files", train=("it's", "b"), test=("c",), validation_fraction=0.3),
        ]
    ),
)
def test_what_the_label_drops_is_as_if_it_were_not_there(cut, rated, rule):
    """Fractions, boundaries and ranks are those of the examples that stay."""
    left = {pair: time for pair, time in rated.items() if int(pair[1]) % 5 not in (1, 2)}
    splits, members = cut(rated, rule, Label("rating", drop=(1.7, 2.4)))
    assert splits.dropped == len(rated) - len(left)
    in_exactly_one(left, splits, members)
    if left:
        others, expected = cut(left, rule)
        assert splits.boundaries == others.boundaries
        assert {split: set(rows) for split, rows in members.items()} == {
            split: set(rows) for split, rows in expected.items()
        }


def test_the_manifest_form():
    splits = Splits(SplitRule("time", boundaries=(5,)), ALL, (5,), {"train": 1, "validation": 2, "test": 0})
    assert splits.to_dict() == {
        "kind": "time",
        "boundaries": [5],
        "rows": {"train": 1, "validation": 2, "test": 0},
    }
    assert dataclasses.replace(splits, dropped=3).to_dict() == {**splits.to_dict(), "dropped": 3}


@pytest.fixture(scope="module")
def database():
    made = Database()
    yield made
    made.close()


times = st.one_of(
    st.lists(st.integers(0, 2**33), min_size=1, max_size=30),
    st.lists(st.integers(START, START + 3), min_size=1, max_size=30),
    st.lists(st.sampled_from([-(2**40), 0, 65_535, 65_536, 65_537, 2**40]), min_size=1, max_size=30),
    st.builds(lambda time, count: [time] * count, st.integers(0, 2**33), st.integers(1, 5)),
)


@settings(max_examples=60)
@given(times)
def test_timestamps_at_are_what_a_sort_finds(database, some_times):
    database.execute(
        "CREATE OR REPLACE TABLE examples AS SELECT unnest($t::BIGINT[]) AS timestamp", {"t": some_times}
    )
    ordered = np.sort(np.array(some_times))
    ranks = [0, len(ordered) // 3, len(ordered) - 1]
    assert _timestamps_at(database, ranks) == [ordered[rank] for rank in ranks]
