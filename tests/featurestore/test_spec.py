import dataclasses
import datetime
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SpecError
from featurestore.hashing import MAX_SEED, MAX_SLOTS, default_seed
from featurestore.spec import (
    DEFAULT_SPEC,
    LAST_SECOND,
    MAX_LOOKUPS,
    Feature,
    FeatureSpec,
    Label,
    SplitRule,
    Table,
    load_spec,
    parse_spec,
    shipped_specs,
)

ARTICLE_SEEDS = {"user_id": (0, 1), "movie_id": (2, 3), "age": (4,), "occupation": (5,), "zip": (6,)}


def minimal(**changes):
    """The least spec; ``changes`` replace its sections, None removes one."""
    data = {
        "table": {"num_slots": 10, "dim": 2},
        "features": [{"name": "user_id", "lookups": 1}],
        "label": {"column": "rating"},
        "split": {"kind": "time", "fractions": [0.8, 0.2]},
    }
    return {key: value for key, value in {**data, **changes}.items() if value is not None}


def problems(data):
    with pytest.raises(SpecError) as caught:
        parse_spec(data, "bad", "spec bad.toml")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("spec bad.toml: ")
    return caught.value.problems


# The shipped specs


def test_the_article_is_what_the_article_says():
    spec = load_spec("article")
    assert {feature.name: feature.seeds for feature in spec.features} == ARTICLE_SEEDS
    assert [feature.column for feature in spec.features] == list(ARTICLE_SEEDS)
    assert spec.table == Table(num_slots=1000, dim=10)
    assert spec.label == Label("rating")
    assert spec.split == SplitRule("time", fractions=(0.5, 0.5))
    assert spec.slot_columns == (
        "user_id_slot_0", "user_id_slot_1", "movie_id_slot_0", "movie_id_slot_1",
        "age_slot_0", "occupation_slot_0", "zip_slot_0",
    )  # fmt: skip


def test_the_default_has_every_feature_of_ml_1m():
    spec = load_spec(DEFAULT_SPEC)
    assert [feature.name for feature in spec.features] == [
        "user_id", "movie_id", "gender", "age", "occupation", "zip",
    ]  # fmt: skip
    assert spec.split == SplitRule("time", fractions=(0.8, 0.1, 0.1))
    assert all(
        feature.seeds == tuple(default_seed(feature.name, lookup) for lookup in range(len(feature.seeds)))
        for feature in spec.features
    )


def test_ml100k_u1_is_the_default_with_another_split():
    spec, default = load_spec("ml100k_u1"), load_spec(DEFAULT_SPEC)
    assert (spec.table, spec.features, spec.label) == (default.table, default.features, default.label)
    assert spec.split == SplitRule("files", train=("u1.base",), test=("u1.test",), validation_fraction=0.1)
    assert spec.to_dict()["split"] == {
        "kind": "files", "fractions": [], "boundaries": [], "seed": 0, "last": 1,
        "train": ["u1.base"], "test": ["u1.test"], "validation_fraction": 0.1,
    }  # fmt: skip


def test_the_paper_has_the_bytes_of_the_collision_free_table_of_ml_1m():
    spec, default = load_spec("paper"), load_spec(DEFAULT_SPEC)
    assert [(feature.name, len(feature.seeds)) for feature in spec.features] == [
        (feature.name, 1) for feature in default.features
    ]
    assert spec.table.num_slots == 6040 + 3706 + 2 + 7 + 21 + 3439
    assert spec.table.num_slots * spec.table.dim * 4 == 1_585_800
    assert spec.label == Label("rating", 4.0, (3.0,))
    assert spec.split == SplitRule("random", fractions=(0.8, 0.1, 0.1))


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("article", "a43775688f99c26a"),
        ("movielens", "3255a5e2f9e58c9a"),
        ("paper", "509ec0b4fb7fb6c7"),
        ("ml100k_u1", "8db00cb3e3d68b61"),
    ],
)
def test_fingerprints_never_change(name, fingerprint):
    assert load_spec(name).fingerprint == fingerprint


def test_shipped_specs_are_listed():
    assert shipped_specs() == ["article", "ml100k_u1", "movielens", "paper"]


# Loading


def test_a_file_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[table]\nnum_slots = 9\ndim = 1\n[[features]]\nname = "zip"\ncolumn = "postcode"\nseeds = [7]\n'
        "[label]\nthreshold = 4\n[split]\nboundaries = [2000-12-31, 2001-01-31T12:00:00Z]\n"
    )
    spec = load_spec(path)
    assert spec.name == "mine"
    assert spec.features == (Feature("zip", "postcode", (7,)),)
    assert spec.label == Label("rating", 4.0)
    assert spec.label.is_binary
    assert spec.split == SplitRule("time", boundaries=(978220800, 980942400))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("artikel", "did you mean 'article'"),
        ("nothing-like-it.toml", "known: article, ml100k_u1, movielens, paper"),
        (".", "readable"),
    ],
)
def test_no_such_spec(name, said):
    with pytest.raises(SpecError, match="neither a shipped spec nor a readable file") as caught:
        load_spec(name)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"[table", b"\xff\xfe", b'name = "a'])
def test_not_toml(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match="not TOML"):
        load_spec(path)


def test_a_vector_is_said_and_kept_and_its_absence_leaves_fingerprints_alone():
    plain, wide = (
        parse_spec(minimal(table={"num_slots": 9, "dim": 1, **more}), "x", "x") for more in ({}, WIDE)
    )
    assert (plain.table, wide.table) == (Table(9, 1), Table(9, 1, 30))
    assert plain.to_dict()["table"] == {"num_slots": 9, "dim": 1}
    assert parse_spec(wide.to_dict(), "x", "x") == wide
    assert wide.fingerprint != plain.fingerprint
    assert str(plain.table) == "9 slots x 1"
    assert str(wide.table) == "9 slots x 1, read as vectors of 30"


WIDE = {"vector": 30}


@pytest.mark.parametrize("vector", [0, -1, 65_537, 1.5, "wide", True])
def test_a_vector_that_cannot_be(vector):
    assert problems(minimal(table={"num_slots": 9, "dim": 1, "vector": vector})) == [
        f"table.vector must be a whole number in 1..65536, got {vector!r}"
    ]


def test_a_projection_that_is_too_large():
    table = {"num_slots": 9, "dim": 64, "vector": 65_536}
    (said,) = problems(minimal(table=table, features=[{"name": "user_id", "lookups": 2}]))
    assert said.startswith(
        "table.vector makes 65536 floats of 2 lookups of 64: a projection of 8388608 signs, "
    )
    spec = parse_spec(minimal(table=table), "x", "x")
    with pytest.raises(SpecError, match="of 2 lookups of 64"):
        spec.resized(lookups={"user_id": 2})


def test_the_spec_of_a_snapshot_is_read_from_its_manifest(tmp_path):
    path, spec = tmp_path / "manifest.json", load_spec("paper")
    path.write_text(json.dumps({"id": "x", "spec": spec.to_dict()}))
    assert load_spec(path) == spec
    for content in ("{}", "[]", "7"):
        path.write_text(content)
        with pytest.raises(SpecError, match="not the manifest of a snapshot: it has no spec"):
            load_spec(path)
    path.write_text("{")
    with pytest.raises(SpecError, match="not JSON"):
        load_spec(path)


# Problems


def test_all_problems_at_once():
    data = {
        "tabel": 1,
        "table": {"num_slots": 0, "dims": 3},
        "features": [{"name": "user-id", "lookups": 2, "seeds": [1]}, {"name": "zip", "seeds": [1, 1]}, 7],
        "label": {"column": "rating", "treshold": 4},
        "split": {"kind": "tim"},
    }
    assert problems(data) == [
        "unknown key tabel (did you mean 'table'?)",
        "unknown key table.dims (did you mean 'dim'?)",
        "table.num_slots must be a whole number in 1..2147483647, got 0",
        "table.dim must be a whole number in 1..65536, got nothing",
        "features[2] must be a table, got 7",
        "features[0].name must be a name of letters, digits and _, got 'user-id'",
        "features[0]: give either lookups = k or seeds = [...], not both",
        "features[1].seeds must be 1..64 distinct whole numbers in 0..4294967295, got [1, 1]",
        "unknown key label.treshold (did you mean 'threshold'?)",
        "split.kind must be one of time, random, leave_last, files, got 'tim'",
    ]


def test_a_missing_section_is_one_problem():
    assert problems({}) == [
        "[table] is missing",
        "at least one [[features]] entry is needed",
        "[label] is missing",
        "[split] is missing",
    ]


FILES = {"kind": "files", "train": ["a"], "test": ["b"]}


def test_all_problems_of_a_split_by_files_at_once():
    split = {"kind": "files", "test": ["b", "b"], "validation_fraction": 2, "boundaries": [1], "tain": ["a"]}
    assert problems(minimal(split=split)) == [
        "unknown key split.tain (did you mean 'train'?)",
        "split.test must be distinct names of files in the source's folder, got ['b', 'b']",
        "split.validation_fraction must be a number of at least 0 and below 1, got 2",
        "a files split needs split.train, the names of one or more files",
        "split.boundaries does not apply to a files split",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"table": {}}, "table.num_slots must be a whole number in 1..2147483647, got nothing"),
        ({"table": 3}, "[table] must be a table, got 3"),
        ({"table": {"num_slots": MAX_SLOTS + 1, "dim": 1}}, "table.num_slots must be"),
        ({"table": {"num_slots": True, "dim": 1}}, "table.num_slots must be"),
        ({"table": {"num_slots": 10.0, "dim": 1}}, "table.num_slots must be"),
        ({"features": {"name": "zip"}}, "at least one [[features]] entry is needed"),
        ({"features": []}, "at least one [[features]] entry is needed"),
        ({"features": [{"name": "zip"}]}, "features[0]: give either lookups = k or seeds = [...], got none"),
        ({"features": [{"lookups": 1}]}, "features[0].name must be a name of letters"),
        ({"features": [{"name": "zip", "lookups": 0}]}, "features[0].lookups must be a whole number"),
        ({"features": [{"name": "zip", "lookups": 65}]}, "features[0].lookups must be a whole number"),
        ({"features": [{"name": "zip", "seeds": []}]}, "features[0].seeds must be"),
        ({"features": [{"name": "zip", "seeds": [-1]}]}, "features[0].seeds must be"),
        ({"features": [{"name": "zip", "seeds": [2**32]}]}, "features[0].seeds must be"),
        ({"features": [{"name": "zip", "seeds": [True]}]}, "features[0].seeds must be"),
        ({"features": [{"name": "zip", "seeds": "12"}]}, "features[0].seeds must be"),
        ({"features": [{"name": "zip", "column": 3, "lookups": 1}]}, "features[0].column must be a name"),
        ({"features": [{"name": "zip_SLOT_3", "lookups": 1}]}, "features[0].name must be a name that"),
        ({"features": [{"name": "a", "lookups": 1}] * 3}, "feature 'a' is listed twice"),
        (
            {"features": [{"name": "a", "lookups": 1}, {"name": "A", "lookups": 1}]},
            "features 'a' and 'A' differ only in case, which SQL does not tell apart",
        ),
        ({"label": {"column": "stars"}}, "label.column must be 'rating', the only label MovieLens has"),
        ({"label": {"threshold": "4"}}, "label.threshold must be a number, got '4'"),
        ({"label": {"threshold": True}}, "label.threshold must be a number"),
        ({"label": {"threshold": float("nan")}}, "label.threshold must be a number"),
        ({"label": {"drop": 3.0}}, "label.drop must be distinct numbers of at most 1000000, got 3.0"),
        ({"label": {"drop": [3, 3.0]}}, "label.drop must be distinct numbers"),
        ({"label": {"drop": ["3"]}}, "label.drop must be distinct numbers"),
        ({"label": {"drop": [float("inf")]}}, "label.drop must be distinct numbers"),
        ({"label": {"drop": [1e300]}}, "label.drop must be distinct numbers"),
        ({"label": {"dorp": [3.0]}}, "unknown key label.dorp (did you mean 'drop'?)"),
        ({"split": {}}, "a time split needs exactly one of fractions or boundaries, got none"),
        ({"split": {"kind": ["time"]}}, "split.kind must be one of"),
        ({"split": {"kind": "random"}}, "a random split needs exactly one of fractions, got none"),
        (
            {"split": {"fractions": [0.5, 0.5], "boundaries": [1]}},
            "a time split needs exactly one of fractions or boundaries, got fractions and boundaries",
        ),
        ({"split": {"fractions": [0.5, 0.4]}}, "split.fractions must be 2 or 3 numbers"),
        ({"split": {"fractions": [1.0]}}, "split.fractions must be"),
        ({"split": {"fractions": [0.4, 0.2, 0.2, 0.2]}}, "split.fractions must be"),
        ({"split": {"fractions": [0, 1]}}, "split.fractions must be"),
        ({"split": {"fractions": [1.5, -0.5]}}, "split.fractions must be"),
        ({"split": {"fractions": ["0.5", 0.5]}}, "split.fractions must be"),
        ({"split": {"fractions": 0.5}}, "split.fractions must be"),
        ({"split": {"boundaries": [2, 1]}}, "split.boundaries must be 1 or 2 rising times"),
        ({"split": {"boundaries": [1, 2, 3]}}, "split.boundaries must be"),
        ({"split": {"boundaries": ["soon"]}}, "split.boundaries must be"),
        ({"split": {"boundaries": [datetime.time(1)]}}, "split.boundaries must be"),
        ({"split": {"boundaries": [1.5]}}, "split.boundaries must be"),
        ({"split": {"boundaries": [978300760000]}}, "split.boundaries must be"),  # milliseconds
        ({"split": {"kind": "random", "fractions": [0.5, 0.5], "seed": -1}}, "split.seed must be a whole"),
        ({"split": {"kind": "leave_last", "last": 0}}, "split.last must be a whole number in 1..1000000"),
        ({"split": {"kind": "leave_last", "fractions": [0.5, 0.5]}}, "split.fractions does not apply to a"),
        ({"split": {"kind": "random", "boundaries": [1], "fractions": [0.5, 0.5]}}, "split.boundaries does"),
        ({"split": {"fractions": [0.5, 0.5], "seed": 4}}, "split.seed does not apply to a time split"),
        ({"split": {"fractions": [0.5, 0.5], "last": 2}}, "split.last does not apply to a time split"),
        ({"split": {"fractions": [0.5, 0.5], "lats": 2}}, "unknown key split.lats (did you mean 'last'?)"),
        ({"split": {"kind": "files", "test": ["b"]}}, "a files split needs split.train, the names of one"),
        ({"split": {"kind": "files", "train": ["a"], "test": []}}, "a files split needs split.test, the"),
        ({"split": FILES | {"train": "a"}}, "split.train must be distinct names of files in the source's"),
        ({"split": FILES | {"train": ["a", "a"]}}, "split.train must be distinct names of files"),
        ({"split": FILES | {"train": ["x/a"]}}, "split.train must be distinct names of files"),
        ({"split": FILES | {"train": [".."]}}, "split.train must be distinct names of files"),
        ({"split": FILES | {"train": ["a\n"]}}, "split.train must be distinct names of files"),
        ({"split": FILES | {"validation": ["c", "a"]}}, "file 'a' is in train and validation: a file"),
        ({"split": FILES | {"test": ["a"]}}, "file 'a' is in train and test: a file belongs to one split"),
        ({"split": FILES | {"validation_fraction": 1}}, "split.validation_fraction must be a number"),
        ({"split": FILES | {"validation_fraction": -0.1}}, "split.validation_fraction must be a number"),
        ({"split": FILES | {"validation_fraction": "x"}}, "split.validation_fraction must be a number, got"),
        (
            {"split": FILES | {"validation": ["c"], "validation_fraction": 0.1}},
            "split.validation_fraction does not apply where split.validation names files",
        ),
        ({"split": FILES | {"fractions": [0.5, 0.5]}}, "split.fractions does not apply to a files split"),
        ({"split": FILES | {"tests": ["b"]}}, "unknown key split.tests (did you mean 'test'?)"),
        ({"split": {"fractions": [0.5, 0.5], "train": ["a"]}}, "split.train does not apply to a time split"),
        ({"name": 3}, "name must be text, got 3"),
    ],
)  # fmt: skip
def test_each_problem_is_told_once(change, said):
    found = problems(minimal(**change))
    assert found[-1].startswith(said) or found[0].startswith(said)
    assert len(found) == (2 if change == {"table": {}} else 1)


@pytest.mark.parametrize(
    "boundary", [978220800, "2000-12-31", datetime.date(2000, 12, 31), "2000-12-31T01:00:00+01:00"]
)
def test_ways_to_write_a_time(boundary):
    spec = parse_spec(minimal(split={"boundaries": [boundary]}), "times", "test")
    assert spec.split.boundaries == (978220800,)


# Canonical form

names = st.from_regex(r"[a-z][a-z_]{0,6}", fullmatch=True).filter(lambda name: "_slot_" not in name)
seeds = st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=4, unique=True).map(tuple)
fractions = st.integers(1, 99).map(lambda part: (part / 100, 1 - part / 100)) | st.just((0.8, 0.1, 0.1))
splits = st.one_of(
    st.builds(SplitRule, st.just("time"), fractions),
    st.builds(
        SplitRule,
        st.just("time"),
        boundaries=st.lists(st.integers(0, LAST_SECOND), min_size=1, max_size=2).map(
            lambda x: tuple(sorted(x))
        ),
    ),
    st.builds(SplitRule, st.just("random"), fractions, seed=st.integers(0, MAX_SEED)),
    st.builds(SplitRule, st.just("leave_last"), last=st.integers(1, 1000)),
    st.builds(
        SplitRule,
        st.just("files"),
        train=st.just(("u1.base", "it's")),
        validation=st.just(()),
        test=st.just(("u1.test",)),
        validation_fraction=st.sampled_from([0.0, 0.1]),
        seed=st.integers(0, MAX_SEED),
    ),
    st.just(SplitRule("files", train=("a",), validation=("b", "c"), test=("d",))),
)
specs = st.builds(
    FeatureSpec,
    name=st.text(max_size=5),
    table=st.builds(Table, st.integers(1, MAX_SLOTS), st.integers(1, 65_536)),
    features=st.lists(
        st.builds(Feature, names, names, seeds),
        min_size=1,
        max_size=4,
        unique_by=lambda feature: feature.name,
    ).map(tuple),
    label=st.builds(
        Label,
        st.just("rating"),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.sets(st.floats(0, 5)).map(lambda values: tuple(sorted(values))),
    ),
    split=splits,
)


@given(specs)
def test_round_trip_of_the_canonical_form(spec):
    stored = json.loads(json.dumps(spec.to_dict()))
    again = parse_spec(stored, "other", "test")
    assert again == spec
    assert again.fingerprint == spec.fingerprint


@given(specs, st.text())
def test_the_name_is_not_in_the_fingerprint(spec, name):
    assert dataclasses.replace(spec, name=name).fingerprint == spec.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"table": {"num_slots": 11, "dim": 2}},
        {"table": {"num_slots": 10, "dim": 3}},
        {"features": [{"name": "user_id", "lookups": 2}]},
        {"features": [{"name": "user_id", "seeds": [0]}]},
        {"features": [{"name": "user_id", "column": "x", "lookups": 1}]},
        {"label": {"threshold": 4}},
        {"label": {"drop": [3]}},
        {"split": {"fractions": [0.7, 0.3]}},
        {"split": {"kind": "leave_last"}},
        {"split": {"kind": "files", "train": ["a"], "test": ["b"]}},
    ],
)
def test_everything_else_is(change):
    assert parse_spec(minimal(**change), "a", "a").fingerprint != parse_spec(minimal(), "a", "a").fingerprint


def test_a_label_that_drops_nothing_says_nothing_of_it():
    """So that specs of the time before keep their fingerprint."""
    plain, empty = (parse_spec(minimal(label=label), "a", "a") for label in ({}, {"drop": []}))
    assert empty.to_dict()["label"] == {"column": "rating", "threshold": None}
    assert empty.fingerprint == plain.fingerprint


def test_what_a_label_drops_has_no_order():
    one, other = (
        parse_spec(minimal(label={"threshold": 4, "drop": drop}), "a", "a") for drop in ([3, 2.5], [2.5, 3])
    )
    assert one.label == Label("rating", 4.0, (2.5, 3.0))
    assert one.to_dict()["label"]["drop"] == [2.5, 3.0]
    assert one.fingerprint == other.fingerprint


def test_lookups_are_seeds_made_from_the_name():
    made = parse_spec(minimal(), "a", "a")
    listed = parse_spec(
        minimal(features=[{"name": "user_id", "seeds": [default_seed("user_id", 0)]}]), "b", "b"
    )
    assert made.fingerprint == listed.fingerprint
    most = parse_spec(minimal(features=[{"name": "user_id", "lookups": MAX_LOOKUPS}]), "c", "c")
    assert len(set(most.features[0].seeds)) == MAX_LOOKUPS


# Fitting a source


def test_fit_drops_what_the_source_lacks():
    spec = load_spec("article")
    fitted, dropped = spec.fit(["user_id", "movie_id", "zip", "rating"])
    assert dropped == ["age", "occupation"]
    assert fitted.features == tuple(f for f in spec.features if f.name in ("user_id", "movie_id", "zip"))
    assert spec.fit([*ARTICLE_SEEDS]) == (spec, [])


def test_fit_refuses_to_drop_everything():
    with pytest.raises(SpecError, match="no feature has its column in"):
        load_spec("article").fit(["title"])


def test_check_columns_names_every_missing_one():
    spec = load_spec("article")
    spec.check_columns([*ARTICLE_SEEDS, "title"], "here")
    with pytest.raises(SpecError) as caught:
        spec.check_columns(["user_id", "movie_id", "ages", "occupation"], "ml-10m")
    assert caught.value.where == "spec 'article' does not fit ml-10m"
    age, postcode = caught.value.problems
    assert age == "feature 'age' needs column 'age', which the source does not have (did you mean 'ages'?)"
    assert postcode.startswith(
        "feature 'zip' needs column 'zip', which the source does not have (known: user_id,"
    )


def test_feature_by_name():
    spec = load_spec("article")
    assert spec.feature("zip") == Feature("zip", "zip", (6,))
    with pytest.raises(ValueError, match=r"no feature 'zipp' in spec 'article' \(did you mean 'zip'\?\)"):
        spec.feature("zipp")
