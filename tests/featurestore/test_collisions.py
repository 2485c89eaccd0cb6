"""Collisions, by the macros and with the theory beside them, against counts by hand and in plain Python."""

import itertools
import json
from collections import Counter, defaultdict

import duckdb
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.cli import cli, run_command
from featurestore.collisions import collisions
from featurestore.collisions_command import collisions_command
from featurestore.errors import NotFound, QueryError, SpecError
from featurestore.hashing import MAX_SLOTS, slot, xxh32
from featurestore.manifest import Manifest
from featurestore.snapshot import MANIFEST
from featurestore.store import FeatureStore

FEATURES = [
    {"name": "a", "column": "user_id", "lookups": 2},
    {"name": "b", "column": "user_id", "lookups": 1},
    {"name": "c", "column": "movie_id", "lookups": 3},
]
HAND_MADE = [
    ("a", "a1", 8, [3, 7]),
    ("a", "a2", 4, [13, 17]),  # with 10 slots in those of a1
    ("a", "a3", 2, [7, 3]),  # in both of them too, but the other way round
    ("a", "a4", 1, [5, 5]),  # in one slot twice
    ("b", "b1", 10, [5]),
    ("b", "b2", 5, [9]),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, publish, make_spec, make_table):
    """A store of features a, b, c with 2, 1, 3 lookups, whose vocabulary `fill` replaces."""
    folder = tmp_path_factory.mktemp("made")
    publish(folder, make_table(20), make_spec(features=FEATURES))
    with FeatureStore(folder) as opened:
        opened.sql(
            'CREATE TABLE filled (feature VARCHAR, "value" VARCHAR, "count" BIGINT, hashes UINTEGER[])'
        )
        opened.sql("CREATE OR REPLACE VIEW vocabulary AS FROM filled")
        yield opened


def fill(opened, rows):
    opened.sql("DELETE FROM filled")
    if rows:
        columns = dict(zip(("f", "v", "c", "h"), map(list, zip(*rows, strict=True)), strict=True))
        opened.sql("INSERT INTO filled SELECT unnest($f), unnest($v), unnest($c), unnest($h)", columns)
    return opened


def rows(opened, query, **parameters):
    return [tuple(row.values()) for row in opened.sql(query, parameters or None).to_pylist()]


# By hand


def test_sharing_by_hand(made):
    fill(made, HAND_MADE)
    assert rows(made, "FROM collisions(10) ORDER BY feature, sharing_with") == [
        ("a", "any", 4, 15, 4, 15, 4, 15),
        ("a", "others", 4, 15, 1, 1, 1, 1),
        ("a", "same", 4, 15, 3, 14, 3, 14),
        ("b", "any", 2, 15, 1, 10, 1, 10),
        ("b", "others", 2, 15, 1, 10, 1, 10),
        ("b", "same", 2, 15, 0, 0, 0, 0),
    ]
    assert rows(made, "FROM value_collisions(10) ORDER BY value") == [
        ("a", "a1", 8, 2, 2, 0, 2),
        ("a", "a2", 4, 2, 2, 0, 2),
        ("a", "a3", 2, 2, 2, 0, 2),
        ("a", "a4", 1, 1, 0, 1, 1),
        ("b", "b1", 10, 1, 0, 1, 1),
        ("b", "b2", 5, 1, 0, 0, 0),
    ]


def test_lookups_and_pairs_by_hand(made):
    fill(made, HAND_MADE)
    assert rows(made, "FROM lookup_collisions(10) ORDER BY ALL") == [
        ("a", 0, 4, 15, 3, 2, 12, 1, 0),
        ("a", 1, 4, 15, 3, 2, 12, 1, 1),
        ("b", 0, 2, 15, 2, 0, 0, 0, 0),
    ]
    assert rows(made, "FROM feature_pairs(10) ORDER BY ALL") == [
        ("a", "a", 2, 6, 3, 14, 3, 14),
        ("a", "b", 1, 2, 1, 1, 1, 10),
        ("b", "b", 0, 0, 0, 0, 0, 0),
    ]


def test_no_lookup_separates_two_values_with_the_same_slots_in_the_same_order(made):
    """a3 is in the slots of a1 and a2, but a model reads them at other places."""
    fill(made, HAND_MADE)
    assert rows(made, "FROM inseparable(10)") == [("a", [3, 7], 2, 1, 12, ["a1", "a2"])]
    assert rows(made, "FROM inseparable(20)") == []


def test_load_by_hand(made):
    fill(made, HAND_MADE)
    assert rows(made, "FROM slot_load(10) ORDER BY slot") == [
        (3, 3, 3, 1, 14),
        (5, 3, 2, 2, 12),
        (7, 3, 3, 1, 14),
        (9, 1, 1, 1, 5),
    ]
    assert rows(made, "FROM slot_histogram(10)") == [(0, 6, 0), (1, 1, 5), (3, 3, 40)]
    assert rows(made, "FROM value_slots(10) SELECT value, slots WHERE value = 'a2'") == [("a2", [3, 7])]
    assert rows(made, "FROM taken_slots(10) SELECT slot, uses WHERE value = 'a4'") == [(5, 2)]


def test_equal_hashes_are_equal_under_one_lookup_only(made):
    fill(made, [("a", "x", 1, [5, 6]), ("a", "y", 9, [5, 5]), ("a", "z", 2, [6, 7]), ("b", "x", 1, [5])])
    assert rows(made, "FROM hash_collisions") == [("a", 0, 5, 2, 1, 10, ["y", "x"])]


def test_slots_without_a_number_are_the_snapshots(made):
    fill(made, HAND_MADE)
    assert rows(made, "SELECT num_slots()") == [(97,)]
    assert rows(made, "FROM slots ORDER BY ALL") == rows(made, "FROM slots(97) ORDER BY ALL")
    assert rows(made, "FROM collisions() ORDER BY ALL") == rows(made, "FROM collisions(97) ORDER BY ALL")


def test_nothing_to_count(made):
    fill(made, [])
    for macro in ("collisions", "feature_pairs", "lookup_collisions", "inseparable", "slot_load"):
        assert rows(made, f"FROM {macro}(10)") == []
    assert rows(made, "FROM slot_histogram(10)") == [(0, 10, 0)]
    found = collisions(made, 10)
    assert (found.features, found.pairs, found.load.hottest, found.findings) == ([], [], [], [])


@pytest.mark.parametrize("number", ["0", "-1", "2147483648", "2.5", "NULL"])
@pytest.mark.parametrize("macro", ["slots", "collisions", "feature_pairs", "slot_histogram", "inseparable"])
def test_a_table_cannot_have_so_many_slots(made, macro, number):
    fill(made, HAND_MADE)
    with pytest.raises(QueryError, match=f"whole number from 1 to 2147483647, got {number}"):
        made.sql(f"FROM {macro}({number})")


# Against plain Python


def vocabularies():
    """Any rows of features a, b, c, with hashes so small that they often meet."""
    counts = st.integers(1, 9)
    row = {
        feature["name"]: st.tuples(
            st.just(feature["name"]),
            st.sampled_from("pqrstuvwxy"),
            counts,
            st.lists(st.integers(0, 40), min_size=feature["lookups"], max_size=feature["lookups"]),
        )
        for feature in FEATURES
    }
    return st.lists(st.one_of(*row.values()), max_size=16, unique_by=lambda one: one[:2])


def uses_by_slot(vocabulary, slots):
    """{slot: [(feature, value, lookup, count)]}, slot by slot."""
    found = defaultdict(list)
    for feature, value, count, hashes in vocabulary:
        for lookup, number in enumerate(hashes):
            found[number % slots].append((feature, value, lookup, count))
    return found


def sharers(vocabulary, slots, value, is_other):
    """Whether each of a value's distinct slots has another value of a feature that ``is_other``."""
    by_slot = uses_by_slot(vocabulary, slots)
    return [
        any(use[:2] != value[:2] and is_other(use[0]) for use in by_slot[number])
        for number in {each % slots for each in value[3]}
    ]


def plain_sharing(vocabulary, slots):
    found = []
    for feature in sorted({row[0] for row in vocabulary}):
        mine = [row for row in vocabulary if row[0] == feature]
        scopes = {
            "any": lambda _: True,
            "others": lambda other, feature=feature: other != feature,
            "same": lambda other, feature=feature: other == feature,
        }
        for scope, is_other in scopes.items():
            shared = {row[1]: sharers(vocabulary, slots, row, is_other) for row in mine}
            some = [row for row in mine if any(shared[row[1]])]
            every = [row for row in mine if all(shared[row[1]])]
            counts = [
                figure
                for group in (mine, some, every)
                for figure in (len(group), sum(row[2] for row in group))
            ]
            found.append((feature, scope, *counts))
    return found


def plain_pairs(vocabulary, slots):
    by_slot = uses_by_slot(vocabulary, slots)
    names = sorted({row[0] for row in vocabulary})
    found = []
    for one, other in itertools.combinations_with_replacement(names, 2):
        pairs, shared, here, there = 0, set(), {}, {}
        for number, uses in by_slot.items():
            for left, right in (
                itertools.product(uses, uses) if one != other else itertools.combinations(uses, 2)
            ):
                if (left[0], right[0]) == (one, other) and left[:2] != right[:2]:
                    pairs += 1
                    shared.add(number)
                    here[left[1]], there[right[1]] = left[3], right[3]
        if one == other:
            here = there = here | there
        sums = [figure for group in (here, there) for figure in (len(group), sum(group.values()))]
        found.append((one, other, len(shared), pairs, *sums))
    return found


def plain_lookups(vocabulary, slots):
    found = []
    for feature, lookup in sorted({(row[0], lookup) for row in vocabulary for lookup in range(len(row[3]))}):
        mine = [row for row in vocabulary if row[0] == feature]
        taken = Counter(row[3][lookup] % slots for row in mine)
        shared = [row for row in mine if taken[row[3][lookup] % slots] > 1]
        pairs = sum(
            one[3][lookup] % slots == other[3][lookup] % slots
            for one, other in itertools.combinations(mine, 2)
        )
        repeated = sum(row[3][lookup] % slots in [each % slots for each in row[3][:lookup]] for row in mine)
        sums = [figure for group in (mine, shared) for figure in (len(group), sum(row[2] for row in group))]
        found.append((feature, lookup, *sums[:2], len(taken), *sums[2:], pairs, repeated))
    return found


def plain_inseparable(vocabulary, slots):
    groups = defaultdict(list)
    for feature, value, count, hashes in vocabulary:
        groups[feature, tuple(number % slots for number in hashes)].append((-count, value))
    return sorted(
        (feature, list(taken), len(group), len(group) * (len(group) - 1) // 2,
         -sum(count for count, _ in group),
         [value for _, value in sorted(group)])
        for (feature, taken), group in groups.items()
        if len(group) > 1
    )  # fmt: skip


def plain_load(vocabulary, slots):
    return sorted(
        (
            number,
            len(uses),
            len({use[:2] for use in uses}),
            len({use[0] for use in uses}),
            sum(use[3] for use in uses),
        )
        for number, uses in uses_by_slot(vocabulary, slots).items()
    )


@settings(max_examples=60)
@given(vocabulary=vocabularies(), slots=st.one_of(st.integers(1, 12), st.integers(30, 50)))
def test_any_vocabulary_as_plain_python_counts_it(made, vocabulary, slots):
    fill(made, vocabulary)
    query = "FROM {}($n) ORDER BY ALL"
    assert rows(made, query.format("collisions"), n=slots) == plain_sharing(vocabulary, slots)
    assert rows(made, query.format("feature_pairs"), n=slots) == plain_pairs(vocabulary, slots)
    assert rows(made, query.format("lookup_collisions"), n=slots) == plain_lookups(vocabulary, slots)
    assert rows(made, query.format("inseparable"), n=slots) == plain_inseparable(vocabulary, slots)
    load = plain_load(vocabulary, slots)
    assert rows(made, query.format("slot_load"), n=slots) == load
    histogram = Counter(one[1] for one in load)
    counts = {uses: sum(one[4] for one in load if one[1] == uses) for uses in histogram}
    assert rows(made, "FROM slot_histogram($n)", n=slots) == [
        (0, slots - len(load), 0), *((uses, histogram[uses], counts[uses]) for uses in sorted(histogram)),
    ]  # fmt: skip


def test_slots_are_those_of_the_hash(made, tiny_store):
    """The macros over a real snapshot's vocabulary say what `featurestore.hashing` says."""
    with FeatureStore(tiny_store) as opened:
        for slots in (1, 1_000, MAX_SLOTS):
            sample = opened.sql("FROM slots($n) WHERE hash(value) % 50 = 0", {"n": slots}).to_pylist()
            assert len(sample) > 10
            for row in sample:
                assert row["hash"] == xxh32(row["value"], row["seed"])
                assert row["slot"] == slot(row["value"], row["seed"], slots)
        lists = opened.sql("SELECT feature, value, slots FROM value_slots(77) LIMIT 200").to_pylist()
        for row in lists:
            seeds = opened.spec.feature(row["feature"]).seeds
            assert row["slots"] == [slot(row["value"], seed, 77) for seed in seeds]


# Beside the theory


def test_what_is_expected_stands_beside(made):
    fill(made, HAND_MADE)
    found = collisions(made, 10)
    same = found.features[0]
    assert (same.feature, same.sharing_with, same.shared.observed, same.count) == ("a", "same", 3, 15)
    # the 6 uses of the other 3 values miss one slot with 0.9^6, two with 0.8^6; a value's are one with 1/10
    missed = 0.1 * 0.9**6 + 0.9 * 0.8**6
    assert same.shared.expected == pytest.approx(4 * (1 - missed))
    assert same.shared_count.expected == pytest.approx(15 * (1 - missed))
    others, everyone = found.features[1:3]  # 2 uses of b; these and the 6 of a
    assert (others.sharing_with, everyone.sharing_with) == ("others", "any")
    for one, uses in ((others, 2), (everyone, 8)):
        assert one.shared.expected == pytest.approx(4 * (1 - 0.1 * 0.9**uses - 0.9 * 0.8**uses))
    # two slots of a value, or one, each hit by one of the 6 uses
    hit = 1 - 0.9**6
    assert same.all_shared.expected == pytest.approx(4 * (0.1 * hit + 0.9 * hit**2))
    pair = found.pairs[1]
    assert (pair.feature, pair.other, pair.pairs.observed) == ("a", "b", 2)
    assert pair.pairs.expected == pytest.approx(8 * 2 / 10)
    assert found.inseparable[0].pairs.expected == pytest.approx(6 / 10**2)
    assert found.inseparable[0].shown == [["a1", "a2"]]
    first, second = found.lookups[:2]
    assert (first.feature, first.lookup, second.lookup) == ("a", 0, 1)
    assert (first.repeated.expected, second.repeated.expected) == pytest.approx((0, 4 / 10))
    assert first.pairs.expected == pytest.approx(6 / 10)
    assert first.hash_pairs.expected == pytest.approx(6 / 2**32)
    load = found.load
    assert (load.uses, load.never_used, load.fullest.observed) == (10, 6, 3)
    assert load.used.expected == pytest.approx(10 * (1 - 0.9**10))
    assert load.histogram[0].slots.expected == pytest.approx(10 * 0.9**10)
    assert [(hot.slot, hot.count, hot.members) for hot in load.hottest[:2]] == [
        (3, 14, ["a=a1", "a=a2", "a=a3"]),
        (7, 14, ["a=a1", "a=a2", "a=a3"]),
    ]
    assert load.hottest[0].share == pytest.approx(14 / 45)


def test_features_are_in_the_specs_order(tmp_path, publish, make_spec, make_table):
    features = [{"name": name, "column": "user_id", "lookups": 1} for name in ("z", "m", "a")]
    publish(tmp_path, make_table(300), make_spec(features=features))
    with FeatureStore(tmp_path) as opened:
        found = collisions(opened, 5)
    assert list(dict.fromkeys(one.feature for one in found.features)) == ["z", "m", "a"]
    assert [(one.feature, one.other) for one in found.pairs] == [
        ("z", "z"), ("z", "m"), ("z", "a"), ("m", "m"), ("m", "a"), ("a", "a"),
    ]  # fmt: skip
    with FeatureStore(tmp_path) as opened:
        expected = opened.sql("FROM feature_pairs(5) WHERE feature = 'm' AND other = 'z'").to_pylist()[0]
    swapped = found.pairs[1]
    assert (swapped.values, swapped.count) == (expected["other_values"], expected["other_count"])
    assert (swapped.other_values, swapped.other_count) == (expected["values"], expected["count"])


def two_features(seeds):
    """Features u and v of the same values, with one lookup each."""
    names = ("u", "v")
    return [
        {"name": name, "column": "movie_id", "seeds": [seed]} for name, seed in zip(names, seeds, strict=True)
    ]


@pytest.mark.parametrize(("seeds", "bad"), [((5, 5), True), ((5, 6), False)])
def test_two_features_with_one_seed_are_found(tmp_path, publish, make_spec, make_table, seeds, bad):
    publish(tmp_path, make_table(2_000, users=7, movies=900), make_spec(features=two_features(seeds)))
    with FeatureStore(tmp_path) as opened:
        findings = collisions(opened, 4096).findings
    assert any(line.startswith("u and v: pairs of uses in one slot") for line in findings) is bad
    assert all("look at the seeds" in line for line in findings)
    assert bool(findings) is bad


def random_rows(feature, lookups, number=400, start=0):
    """Values with hashes that are as good as any."""
    return [
        (feature, str(value), 1, [xxh32(f"{value}", start + lookup) for lookup in range(lookups)])
        for value in range(number)
    ]


def test_two_lookups_with_one_seed_are_found(made):
    """A spec cannot list a seed twice, a vocabulary that something else made can."""
    good = random_rows("a", 2)
    assert collisions(fill(made, good), 500).findings == []
    bad = [(*row[:3], [row[3][0], row[3][0]]) for row in good]
    said = "\n".join(collisions(fill(made, bad), 500).findings)
    assert "a, lookup 1: values whose slot an earlier lookup of theirs has: 400, 0.8 expected" in said
    assert "a: pairs that no lookup separates" in said
    assert said.count("look at the seeds") == len(said.splitlines())


def test_a_bad_hash_is_found(made):
    """One that keeps 6 bits: equal hashes, full slots, slots that are never used."""
    rows_of_a = [(*row[:3], [row[3][0] & 63]) for row in random_rows("b", 1)]
    said = "\n".join(collisions(fill(made, rows_of_a), 1_000).findings)
    for what in (
        "pairs of values in one slot",
        "pairs of values with one 32-bit hash",
        "slots in use",
        "fullest slot",
    ):
        assert what in said


def test_fewer_collisions_than_chance_makes_are_to_the_good(made):
    perfect = [("b", str(value), 1, [value]) for value in range(1_000)]
    findings = collisions(fill(made, perfect), 1_000).findings
    assert findings
    assert all(line.endswith("unlikely by chance, but to the good") for line in findings)


def test_a_good_hash_is_not_blamed(tiny_store):
    with FeatureStore(tiny_store) as opened:
        for slots in (100, 1_000, 32_768, MAX_SLOTS):
            assert collisions(opened, slots).findings == []


# Who may ask


def without_vocabulary(store):
    """Take the vocabulary out of a snapshot's manifest."""
    path = next(store.glob(f"snapshots/*/{MANIFEST}"))
    data = json.loads(path.read_text())
    data["shards"]["vocabulary"] = []
    path.write_text(json.dumps(data))
    Manifest.from_json(path.read_text())


def test_a_store_without_a_vocabulary(store):
    without_vocabulary(store)
    with FeatureStore(store) as opened:
        assert opened.sql("FROM vocabulary").num_rows == opened.sql("FROM slots").num_rows == 0
        assert opened.sql("FROM examples").num_rows == 300
        with pytest.raises(
            NotFound, match=r"(?s)has no vocabulary.*ingestion builds one.*Ingest the source again"
        ):
            collisions(opened, 10)


@pytest.mark.parametrize("number", [0, -3, MAX_SLOTS + 1])
def test_a_number_of_slots_that_no_table_has(store, number):
    with (
        FeatureStore(store) as opened,
        pytest.raises(SpecError, match=f"expected 1 to 2147483647, got {number}"),
    ):
        collisions(opened, number)


def test_the_macros_are_in_the_catalog(tiny_store):
    """For a plain client that knows nothing of slotstore, from any folder."""
    with FeatureStore(tiny_store) as opened:
        expected = opened.sql("FROM collisions(500) ORDER BY ALL").to_pylist()
    with duckdb.connect(str(tiny_store / "catalog.duckdb"), read_only=True) as plain:
        found = plain.sql("FROM collisions(500) ORDER BY ALL").to_arrow_table().to_pylist()
        macros = (
            "slot_load",
            "slot_histogram",
            "feature_pairs",
            "lookup_collisions",
            "inseparable",
            "value_collisions",
        )
        counted = [plain.execute(f"SELECT count(*) FROM {macro}()").fetchone()[0] for macro in macros]
        plain.execute("FROM hash_collisions")
    assert found == expected
    assert min(counted) > 0


# The command


def command(*args):
    return CliRunner().invoke(collisions_command, [str(arg) for arg in args], catch_exceptions=False)


def test_several_sizes_for_machines(tiny_store):
    sizes = ["--num-slots", 1000, "--num-slots", 65536, "--num-slots", 1000]
    data = json.loads(command("--store", tiny_store, "--json", *sizes).stdout)
    assert [table["num_slots"] for table in data["tables"]] == [1000, 65536]
    with FeatureStore(tiny_store) as opened:
        assert data["snapshot"] == opened.snapshot.manifest.id
        assert data["tables"][1] == json.loads(json.dumps(collisions(opened, 65536).to_dict()))
    first = data["tables"][0]
    assert list(first) == ["num_slots", "features", "inseparable", "lookups", "pairs", "load", "findings"]
    assert set(first["lookups"][0]["pairs"]) == {"observed", "expected", "z"}


def test_what_a_person_reads(tiny_store):
    told = command("--store", tiny_store).stdout
    assert told == command("--store", tiny_store, "--num-slots", 32768).stdout
    lines = told.splitlines()
    assert lines[0] == "32,768 slots"
    assert lines[-1] == "nothing that chance does not explain"
    with FeatureStore(tiny_store) as opened:
        found = collisions(opened, 32_768)
    words = [line.split() for line in lines]
    user = found.features[0]
    assert any(
        row[:5]
        == ["user_id", "itself", str(user.values), str(user.shared.observed), f"{user.shared.expected:.4g}"]
        for row in words
    )
    assert f"never used: {found.load.never_used:,}" in told


def test_a_long_histogram_is_told_in_ranges(tiny_store):
    lines = command("--store", tiny_store, "--num-slots", 40).stdout.splitlines()
    start = lines.index("load") + 2
    steps = [line.split() for line in lines[start : lines.index("", start)]]
    assert 3 < len(steps) <= 13
    assert sum(int(step[1]) for step in steps) == 40
    assert sum(float(step[2]) for step in steps) == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize("number", ["0", "-1", "2147483648", "many"])
def test_the_command_refuses_such_a_number(tiny_store, number, capsys):
    with pytest.raises(SystemExit) as done:
        run_command(cli, ["collisions", "--store", str(tiny_store), "--num-slots", number])
    assert done.value.code == 2
    assert "--num-slots" in capsys.readouterr().err


@pytest.mark.real_data
def test_real_values_collide_as_chance_would_have_it(ml100k_article_store):
    """With the article's seeds, ml-100k: nearly all users share a slot in a table of 1,000."""
    with FeatureStore(ml100k_article_store) as opened:
        found = {slots: collisions(opened, slots) for slots in (1_000, 32_768)}
    user = found[1_000].features[0]
    assert (user.feature, user.values, user.count) == ("user_id", 943, 100_000)
    assert user.shared.observed == pytest.approx(user.shared.expected, rel=0.1)
    assert found[32_768].features[0].shared.observed < user.shared.observed / 2
