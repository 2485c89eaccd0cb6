"""Which values a slot has, and which slots a value has."""

import json
import os

import pytest
from click.testing import CliRunner

from featurestore.cli import cli, run_command
from featurestore.collisions_command import slots_command, who_command
from featurestore.errors import NotFound, SpecError
from featurestore.hashing import MAX_SLOTS, slot, xxh32
from featurestore.snapshot import MANIFEST
from featurestore.store import FeatureStore
from featurestore.whereabouts import parse_words, slots_of_value, who


@pytest.fixture(scope="module")
def tiny(tiny_store):
    with FeatureStore(tiny_store) as opened:
        yield opened


def known_uses(opened, slots):
    """{slot: [(count, feature, value, lookup)]} of the vocabulary, hashed here, hottest first."""
    found = {}
    for row in opened.sql("SELECT feature, value, count FROM vocabulary").to_pylist():
        for lookup, seed in enumerate(opened.spec.feature(row["feature"]).seeds):
            use = (-row["count"], row["feature"], row["value"], lookup)
            found.setdefault(slot(row["value"], seed, slots), []).append(use)
    return {number: sorted(uses) for number, uses in found.items()}


@pytest.mark.parametrize("slots", [50, 1_000, 32_768])
def test_who_is_in_a_slot(tiny, slots):
    known = known_uses(tiny, slots)
    for number in sorted(known)[:20]:
        found = who(tiny, number, slots)
        assert [(-use.count, use.feature, use.value, use.lookup) for use in found] == known[number]
        total = sum(use.count for use in found)
        assert [use.share for use in found] == pytest.approx([use.count / total for use in found])


def test_nobody_is_in_a_slot(tiny):
    assert who(tiny, MAX_SLOTS - 1, MAX_SLOTS) == []


@pytest.mark.parametrize(("number", "slots"), [(-1, 10), (10, 10), (32_768, 32_768)])
def test_a_slot_that_is_not_there(tiny, number, slots):
    with pytest.raises(SpecError, match=rf"expected 0 to {slots - 1}.* got {number}"):
        who(tiny, number, slots)


def test_the_slots_of_a_known_value(tiny):
    known = known_uses(tiny, 1_000)
    row = tiny.sql("FROM vocabulary WHERE feature = 'movie_id' ORDER BY count DESC, value").to_pylist()[0]
    found = slots_of_value(tiny, "movie_id", row["value"], 1_000)
    assert (found.count, found.nearest) == (row["count"], None)
    assert found.known_values == len(
        {use[2] for uses in known.values() for use in uses if use[1] == "movie_id"}
    )
    assert [own.lookup for own in found.slots] == [0, 1]
    for own, seed, number in zip(
        found.slots, tiny.spec.feature("movie_id").seeds, row["hashes"], strict=True
    ):
        assert (own.seed, own.hash, own.slot) == (seed, number, slot(row["value"], seed, 1_000))
        others = [use[:3] for use in known[own.slot] if use[1:3] != ("movie_id", row["value"])]
        others = sorted(set(others))
        assert own.others == len(others) > 0
        assert own.others_count == -sum(use[0] for use in others)
        assert own.hottest == [
            {"feature": feature, "value": value, "count": -count} for count, feature, value in others[:5]
        ]


def test_a_value_that_was_never_seen_has_slots(tiny):
    found = slots_of_value(tiny, "gender", "Females", 97)
    assert (found.count, found.nearest, found.known_values) == (None, None, 2)
    assert sorted(found.known) == ["F", "M"]
    seed = tiny.spec.feature("gender").seeds[0]
    assert [(own.seed, own.hash, own.slot) for own in found.slots] == [
        (seed, xxh32("Females", seed), slot("Females", seed, 97))
    ]
    assert slots_of_value(tiny, "gender", "M?", 97).nearest == "M"


def test_of_the_nearest_values_the_most_frequent(tiny):
    """Either value of gender is one edit from two letters that begin or end with it."""
    expected = tiny.sql(
        "SELECT value FROM vocabulary WHERE feature = 'gender' ORDER BY count DESC"
    ).to_pylist()
    found = slots_of_value(tiny, "gender", "FM", 97)
    assert found.nearest == expected[0]["value"]
    assert found.known == [row["value"] for row in expected]
    assert slots_of_value(tiny, "gender", "Q", 97).nearest is None


def test_an_odd_value_is_only_text(tiny):
    for value in ("", "é'\"; DROP VIEW slots", "%", "a=b"):
        found = slots_of_value(tiny, "zip", value, 10)
        assert found.slots[0].hash == xxh32(value, tiny.spec.feature("zip").seeds[0])


def test_one_slot_for_all(tiny):
    """Every other value shares it, once, however many lookups it has."""
    row = tiny.sql("FROM vocabulary WHERE feature = 'gender' ORDER BY value").to_pylist()[0]
    found = slots_of_value(tiny, "gender", row["value"], 1)
    others, traffic = tiny.sql("SELECT count(*) - 1, sum(count) FROM vocabulary").to_pylist()[0].values()
    assert (found.slots[0].slot, found.slots[0].others) == (0, others)
    assert found.slots[0].others_count == traffic - row["count"]


def test_words(tiny):
    words = ["user_id=1", "zip=", "user_id=2", "zip=a=b"]
    assert parse_words(words, tiny.spec) == [("user_id", "1"), ("zip", ""), ("user_id", "2"), ("zip", "a=b")]
    with pytest.raises(SpecError) as error:
        parse_words(["usr_id=1", "zip", "=3", "zip=1"], tiny.spec)
    assert len(error.value.problems) == 3
    assert "no feature 'usr_id' (did you mean 'user_id'?)" in error.value.problems
    assert "expected FEATURE=VALUE, got 'zip'" in error.value.problems


def test_without_a_vocabulary(store):
    path = next(store.glob(f"snapshots/*/{MANIFEST}"))
    data = json.loads(path.read_text())
    data["shards"]["vocabulary"] = []
    path.write_text(json.dumps(data))
    with FeatureStore(store) as opened:
        for ask in (lambda: who(opened, 1, 10), lambda: slots_of_value(opened, "user_id", "1", 10)):
            with pytest.raises(NotFound, match="has no vocabulary"):
                ask()


# The commands


def output(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=False).stdout


def test_both_directions_agree(tiny, tiny_store):
    data = json.loads(output(slots_command, "user_id=1", "--store", tiny_store, "--num-slots", 500, "--json"))
    assert data["num_slots"] == 500
    (found,) = data["values"]
    assert (found["feature"], found["value"]) == ("user_id", "1")
    for own in found["slots"]:
        told = output(who_command, "--slot", own["slot"], "--num-slots", 500, "--store", tiny_store, "--json")
        answer = json.loads(told)
        assert (answer["slot"], answer["num_slots"]) == (own["slot"], 500)
        mine = [use for use in answer["uses"] if (use["feature"], use["value"]) == ("user_id", "1")]
        assert own["lookup"] in [use["lookup"] for use in mine]
        assert {use["count"] for use in mine} == {found["count"]}


def test_the_number_of_slots_is_the_snapshots(tiny, tiny_store):
    own = slots_of_value(tiny, "gender", "F", 32_768).slots[0]
    lines = [
        line.split() for line in output(who_command, "--slot", own.slot, "--store", tiny_store).splitlines()
    ]
    assert lines[0] == ["feature", "lookup", "value", "count", "share"]
    assert ["gender", "0", "F"] in [line[:3] for line in lines]
    told = output(slots_command, "gender=F", "--store", tiny_store)
    assert str(own.slot) in told.split()
    assert "never seen" not in told


def test_what_a_person_reads_of_a_value_never_seen(tiny_store):
    told = output(slots_command, "gender=Fs", "gender=Female", "zip=", "--store", tiny_store)
    assert "gender=Female was never seen, these are the slots it has all the same" in told
    assert "2 values of gender are known; the nearest is 'F'" in told
    assert "2 values of gender are known, such as 'M', 'F'" in told
    assert "zip= was never seen" in told


def test_a_value_asked_for_twice_is_told_once(tiny_store):
    words = ["gender=F", "gender=M", "gender=F"]
    found = json.loads(output(slots_command, *words, "--store", tiny_store, "--json"))
    assert [one["value"] for one in found["values"]] == ["F", "M"]


def test_bytes_that_are_no_text_are_refused(tiny):
    with pytest.raises(SpecError, match=r"gender: values are UTF-8, got b'F\\xff'"):
        parse_words([os.fsdecode(b"gender=F\xff")], tiny.spec)


def test_an_empty_slot_is_said_to_be(tiny_store):
    told = output(who_command, "--slot", MAX_SLOTS - 1, "--num-slots", MAX_SLOTS, "--store", tiny_store)
    assert told == "no known value has slot 2,147,483,646 of 2,147,483,647\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["who", "--slot", "32768"], "expected 0 to 32767, for the table has 32,768 slots, got 32768"),
        (["who", "--slot", "-1"], "got -1"),
        (["who", "--slot", "x"], "not a valid integer"),
        (["who", "--slot", "1", "--num-slots", "0"], "--num-slots"),
        (["who"], "--slot"),
        (["slots", "usr_id=1"], "did you mean 'user_id'?"),
        (["slots", "user_id"], "expected FEATURE=VALUE, got 'user_id'"),
        (["slots", "user_id=1", "--num-slots", "2147483648"], "--num-slots"),
        (["slots"], "FEATURE=VALUE"),
    ],
)
def test_mistakes(tiny_store, args, said, capsys):
    with pytest.raises(SystemExit) as done:
        run_command(cli, [*args, "--store", str(tiny_store)])
    assert done.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.real_data
def test_a_real_user(ml100k_article_store):
    """User 196 is the first of u.data; the article's seeds of user_id are 0 and 1."""
    with FeatureStore(ml100k_article_store) as opened:
        found = slots_of_value(opened, "user_id", "196", 1_000)
    assert found.count == 39
    assert [own.slot for own in found.slots] == [slot("196", 0, 1_000), slot("196", 1, 1_000)]
