"""Advice: curves with known answers, which candidate is chosen, a spec that can be ingested."""

import dataclasses
import json
import re
import shlex
import shutil
import tomllib

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from featurestore.cli import cli, run_command
from featurestore.errors import SpecError, TrainingError
from featurestore.hashing import slot
from featurestore.layouts import mixed_dims, unified_narrow
from featurestore.plans import Field
from featurestore.reslot import reslot
from featurestore.snapshot import latest, open_snapshot
from featurestore.spec import Table, load_spec, parse_spec, shipped_specs
from featurestore.store import FeatureStore
from training.comparison.advice import (
    STORABLE,
    advise,
    floats_for,
    other_sizes,
    outlooks,
    reached,
    spec_toml,
    storable_spec,
)
from training.comparison.advise_command import command
from training.comparison.curve import fit_curve
from training.comparison.data import Coded, load_coded
from training.comparison.setup import CellResult, Setup

SETUP = Setup(dim=6, epochs=1, batch_size=512)
ARGUMENTS = ["--dim", "6", "--epochs", "1", "--batch-size", "512", "--jobs", "1"]


@pytest.fixture(scope="module")
def coded(tiny_store):
    with FeatureStore(tiny_store) as store:
        return load_coded(store, SETUP)


def trained(qualities, loss=lambda _: 0.5):
    """Return a trainer whose cells have the validation AUC of their layout."""

    def train(cells):
        return [
            CellResult(
                cell.layout, cell.seed, 4 * cell.floats, 4 * cell.floats, {"auc": 0.0},
                {"auc": qualities.get(cell.layout, 0.5), "log_loss": loss(4 * cell.floats)}, 1, [], 1.0,
            )
            for cell in cells
        ]  # fmt: skip

    return train


@given(st.floats(0.5, 1.0), st.floats(0.01, 5.0), st.sampled_from([0.25, 0.5, 1.0]), st.sampled_from([-1, 1]))
def test_a_curve_that_is_one_is_found(limit, gain, power, sign):
    sizes = [1000, 4000, 16_000, 64_000]
    curve = fit_curve(sizes, [limit - sign * gain * size**-power for size in sizes])
    assert curve.limit == pytest.approx(limit, abs=1e-6)
    assert curve.power == pytest.approx(power)
    assert curve.spread == pytest.approx(0, abs=1e-6)
    assert curve.at(8000) == pytest.approx(limit - sign * gain * 8000**-power, abs=1e-6)
    assert curve.size_for(curve.at(8000)) == pytest.approx(8000, rel=1e-2)


def test_noise_is_seen_in_the_spread():
    sizes = [1000, 4000, 16_000, 64_000]
    clean = np.array([0.9 - 3 * size**-0.5 for size in sizes])
    assert fit_curve(sizes, clean + np.array([0, 0.01, -0.01, 0])).spread > 0.01


def test_what_no_table_reaches_has_no_size():
    curve = fit_curve([1000, 4000, 16_000], [0.7, 0.8, 0.85])
    assert curve.size_for(curve.limit + 0.01) is None
    with pytest.raises(ValueError, match="needs 3 different sizes, got 2"):
        fit_curve([1, 1, 2], [1, 2, 3])


def test_the_best_is_chosen_and_what_is_level_with_it_by_order(coded):
    floats = coded.values * 6
    spec = load_spec("movielens")
    for qualities, best in (
        ({"exact_lowdim": 0.8, "mixed_dim": 0.7}, "exact_lowdim"),
        ({STORABLE: 0.8, "mixed_dim": 0.7985, "exact_lowdim": 0.799}, "mixed_dim"),
        ({STORABLE: 0.8, "mixed_dim": 0.797, "exact_lowdim": 0.799}, STORABLE),
    ):
        advice = advise(spec, coded, SETUP, floats, trained(qualities))
        assert advice.best.layout == best


def test_with_less_than_a_float_a_value_hashing_layouts_are_tried(coded):
    spec, qualities = load_spec("movielens"), {"mixed_dim": 0.9, "robe": 0.85}
    roomy, tight = (
        advise(spec, coded, SETUP, floats, trained(qualities)) for floats in (coded.values, coded.values - 1)
    )
    assert (roomy.best.layout, tight.best.layout) == ("mixed_dim", "robe")
    assert {each.layout for each in tight.trained} == {"robe", STORABLE}
    assert tight.storable.layout == STORABLE
    level = advise(spec, coded, SETUP, coded.values - 1, trained({"robe": 0.8, STORABLE: 0.799}))
    assert level.best.layout == STORABLE


def test_small_vocabularies_get_few_lookups(coded):
    advice = advise(load_spec("movielens"), coded, SETUP, coded.values, trained({}))
    assert advice.storable.layout == STORABLE
    assert {each.feature: each.lookups for each in advice.outlooks} == {
        "user_id": 6, "movie_id": 6, "gender": 2, "age": 2, "occupation": 2, "zip": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("floats", "exact", "others"),
    [
        (100, 100, [25, 6]),  # the whole of it: only smaller ones
        (100, 400, [400, 25]),
        (100, 1599, [400, 25]),
        (100, 1600, [400, 1600]),  # a small part: smaller ones would say little, and take long
        (1600, 100, [400, 100]),
        (3, 5, []),
        (4, 5, [1]),
    ],
)
def test_a_curve_is_of_sizes_around_the_budget(floats, exact, others):
    assert other_sizes(floats, exact) == others


def test_a_curve_needs_three_sizes(coded):
    floats = coded.values * 6
    whole = advise(load_spec("movielens"), coded, SETUP, floats, trained({}))
    sizes = sorted(each.budget // 4 for each in whole.trained if each.layout == STORABLE)
    assert sizes == [floats // 16, floats // 4, floats]
    assert whole.curve is not None
    few = [Field(field.name, field.values[:1], (1,)) for field in coded.fields]
    small = advise(load_spec("movielens"), Coded(few, {}, {}), SETUP, 3, trained({}))
    assert small.curve is None


def test_the_advised_spec_has_the_slots_that_were_trained(coded):
    result = CellResult(STORABLE, 0, 400, 400, {}, {}, 1, [], 1.0)
    spec = storable_spec(load_spec("movielens"), result, coded, SETUP)
    assert spec.table == Table(100, 1, 6)
    plan = unified_narrow(coded.fields, 6, 100, small=2)
    for field, feature, slots in zip(coded.fields, spec.features, plan.slots, strict=True):
        assert slots[1].tolist() == [slot(field.values[1], seed, 100) for seed in feature.seeds]


@pytest.mark.parametrize("name", shipped_specs())
def test_a_spec_is_the_same_after_it_was_written(name):
    spec = load_spec(name)
    text = spec_toml(spec, ["why", "because"])
    assert text.startswith("# why\n# because\n")
    assert parse_spec(tomllib.loads(text), "x", "x").to_dict() == spec.to_dict()


def test_whether_the_target_is_met_is_told(coded):
    floats = coded.values * 6
    advice = advise(load_spec("movielens"), coded, SETUP, floats, trained({}, loss=lambda _: 0.41))
    met = reached(advice, SETUP, 0.42)
    assert (met.met, met.found, met.bytes) == (True, 0.41, 4 * floats)
    assert str(met).endswith("has 0.4100: met")
    assert str(reached(advice, SETUP, 0.4)).endswith("has 0.4100: missed by 0.0100: ask for a lower one")


def test_a_target_is_turned_into_bytes(coded):
    train = trained({}, loss=lambda size: 0.4 + 2 * size**-0.5)
    floats = floats_for(0.41, coded, SETUP, train)
    assert 4 * floats == pytest.approx(40_000, rel=0.05)
    with pytest.raises(TrainingError, match=r"no table is foretold .* levels off at 0.4000"):
        floats_for(0.39, coded, SETUP, train)


def test_the_command_writes_a_spec_that_trains(tiny_store, tmp_path):
    output, real = tmp_path / "advised.toml", tmp_path / "real.toml"
    real.write_text("before")
    output.symlink_to(real)
    result = CliRunner().invoke(
        command,
        ["--store", str(tiny_store), "--budget", "0.5x", "--output", str(output), *ARGUMENTS, "--json"],
    )
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (output.is_symlink(), set(tmp_path.iterdir())) == (True, {output, real})
    spec = load_spec(output)
    assert spec.to_dict() == said["spec"]
    assert spec.table.num_slots * spec.table.dim * 4 <= said["budget"]
    assert {each["layout"] for each in said["trained"]} == {"mixed_dim", STORABLE, "exact_lowdim"}
    text = CliRunner().invoke(command, ["--store", str(tiny_store), "--budget", "0.5x", *ARGUMENTS])
    assert f"share {spec.table}; 24 lookups an example, 6 a feature, 2 where that has fewer" in text.stdout
    apart = re.search(r"\(mixed_dim\): apart all values of (.*); shared (.*)\n", text.stdout)
    hashed = {each["feature"]: each["hashed"] for each in said["features"]}
    assert apart[1].split(", ") == [name for name, values in hashed.items() if not values]
    assert apart[2] == " and ".join(f"{n:,} rare values of {name}" for name, n in hashed.items() if n)


def test_what_it_says_to_try_next_can_be_tried(tiny_store, tmp_path, capsys):
    """Also where the snapshot that it is about is not the newest any more."""
    store = shutil.copytree(tiny_store, tmp_path / "a store")
    about = latest(store)
    reslot(store, spec=dataclasses.replace(load_spec("movielens"), table=Table(7, 2)))
    output = tmp_path / "it's advised.toml"
    words = ["--store", str(store), "--snapshot", about, "--budget", "0.5x", *ARGUMENTS]
    told = CliRunner().invoke(command, [*words, "--weight-decay", "0.001", "--output", str(output)]).stdout
    first, second = (shlex.split(line) for line in told.splitlines()[-2:])
    assert first[:2] == ["slotstore", "reslot"]
    run_command(cli, first[1:])
    made = open_snapshot(store).manifest
    assert (made.parent, made.load_spec()) == (about, load_spec(output))
    assert second[:2] == ["slotstore", "train"]
    assert second[second.index("--weight-decay") + 1] == "0.001"
    capsys.readouterr()
    run_command(cli, [*second[1:], "--no-tracking", "--json"])
    assert json.loads(capsys.readouterr().out)["snapshot"] == made.id


def test_where_advice_cannot_be_written_nothing_is_trained(tiny_store, tmp_path):
    words = ["--store", str(tiny_store), *ARGUMENTS, "--budget", "0.5x", "--dim", "2", "--output"]
    kept = {path.name for path in (tiny_store / "comparisons").glob("*")}
    for output in (tmp_path / "no" / "a.toml", tmp_path):
        result = CliRunner().invoke(command, [*words, str(output)])
        assert result.exit_code == 2
    assert {path.name for path in (tiny_store / "comparisons").glob("*")} == kept


def test_a_target_is_advised_on_and_told(tiny_store):
    result = CliRunner().invoke(
        command, ["--store", str(tiny_store), *ARGUMENTS, "--target-loss", "0.65", "--json"]
    )
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    target = said["target"]
    assert (target["metric"], target["wanted"]) == ("log_loss", 0.65)
    assert target["found"] == said["storable"]["validation"]["log_loss"]
    assert target["met"] == (target["found"] <= 0.65)
    assert said["why"][0].startswith("target: log_loss 0.65 on validation rows; unified")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --budget or --target-loss"),
        (["--budget", "1x", "--target-loss", "1"], "give either"),
        (["--budget", "1x,2x"], "expected one budget, got 2"),
        (["--budget", "lots"], "give bytes"),
        (["--budget", ""], "--budget: 1 problem\n  - none given"),
        (["--target-loss", "nan"], "--target-loss: 1 problem\n  - expected a number above 0, got nan"),
        (["--target-loss", "-1"], "expected a number above 0, got -1.0"),
        (["--target-loss", "inf"], "expected a number above 0, got inf"),
        (["--budget", "1x", "--lr", "0"], "settings: 1 problem\n  - --lr must be"),
        (["--budget", "3"], "expected 4 to 1,099,511,627,776 bytes, got 3"),
    ],
)
def test_what_cannot_be_advised_on(tiny_store, arguments, said):
    result = CliRunner().invoke(command, ["--store", str(tiny_store), *ARGUMENTS, *arguments])
    assert isinstance(result.exception, SpecError)
    assert said in str(result.exception)


def test_features_are_told_what_to_expect():
    many, one = Field("id", tuple(map(str, range(100))), (1,) * 100), Field("kind", ("x",), (100,))
    coded, known = Coded((many, one), {}, {}), load_spec("movielens")
    result = CellResult("unified_narrow:lookups=2:small=1", 0, 4000, 4000, {}, {}, 1, [], 1.0)
    spec = storable_spec(dataclasses.replace(known, features=known.features[:2]), result, coded, SETUP)
    large, small = outlooks(coded, spec, SETUP, 20)
    dims = mixed_dims(coded.fields, 6, 20)[0]
    assert (large.values, large.lookups, large.hashed) == (100, 2, int((dims == 0).sum()))
    assert (small.values, small.lookups, small.hashed) == (1, 1, 0)
    assert large.floats == pytest.approx(dims.mean())
    # 201 lookups in 1,000 slots, of which 199 are not those of the value itself, and 200 not of the other's
    missed, same = 1 - 1 / 1000, 1 / 1000
    assert small.shared == small.all_shared == pytest.approx(1 - missed**200)
    assert large.shared == pytest.approx(same * (1 - missed**199) + missed * (1 - (1 - 2 / 1000) ** 199))
    assert large.all_shared == pytest.approx(same * (1 - missed**199) + missed * (1 - missed**199) ** 2)
