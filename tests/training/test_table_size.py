"""Training at another table size: on a snapshot that is made of the store's own, or found."""

import dataclasses
import json
import shutil

import pyarrow as pa
import pytest
from click.testing import CliRunner

from featurestore.errors import FingerprintError, NotFound, SpecError, StoreBusy
from featurestore.reslot import reslot
from featurestore.snapshot import latest, list_snapshots, open_snapshot
from featurestore.spec import SPECS, Table
from featurestore.staging import staging
from featurestore.store import FeatureStore
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.job import train
from training.predictor import Predictor
from training.predictor import command as predict_command
from training.train import command
from training.utilization.pruning import prune_table
from training.utilization.report import measure_utilization

VALUES = ["user_id=1", "movie_id=2", "gender=F", "age=25", "occupation=4", "zip=98107"]


@pytest.fixture
def store(tiny_store, tmp_path):
    """A store of its own, since something is made in it."""
    return shutil.copytree(tiny_store, tmp_path / "store")


def losses(result):
    return [(epoch.train.loss, epoch.validation.loss) for epoch in result.epochs]


def invoke(*args):
    done = CliRunner().invoke(command, [*map(str, args), "--no-tracking"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_another_size_is_trained_and_predicted_with(store, tmp_path):
    parent = latest(store)
    asked = ("--store", store, "--epochs", 1, "--num-slots", 501, "--lookups", "zip=2", "--json")
    first, again = (invoke(*asked, "--checkpoint-dir", tmp_path / name) for name in ("1", "2"))
    told, repeated = json.loads(first.stdout), json.loads(again.stdout)
    child = open_snapshot(store, told["snapshot"]).manifest
    assert (child.parent, repeated["snapshot"], latest(store)) == (parent, child.id, parent)
    assert f"{child.id}, made of {parent} in " in first.stderr
    assert "num_slots 32,768 -> 501, lookups of zip 1 -> 2" in first.stderr
    assert f"{child.id}, made of {parent} before: num_slots" in again.stderr
    assert len(list_snapshots(store)) == 2
    assert told["test"] == repeated["test"]
    checkpoint = load_checkpoint(tmp_path / "1" / "best.pt")
    assert checkpoint.model["embedding.weight"].shape == (501, 16)
    assert checkpoint.load_spec().fingerprint == child.fingerprint == checkpoint.fingerprint
    with pytest.raises(FingerprintError, match="their slots mean different things"):
        checkpoint.check_fits(open_snapshot(store))
    done = CliRunner().invoke(predict_command, [told["checkpoint"], *VALUES], catch_exceptions=False)
    assert 1 < float(done.stdout.split()[-1]) < 5
    assert len(Predictor.load(tmp_path / "1" / "best.pt").spec.feature("zip").seeds) == 2


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 1), (3600.0, 0)])
def test_a_long_re_slotting_tells_how_far_it_is(store, tmp_path, monkeypatch, seconds, steps):
    """After every shard but the last where all are long, never where all are short."""
    monkeypatch.setattr("training.job.NOTE_SECONDS", seconds)
    shards = len(open_snapshot(store).manifest.shards["examples"])
    asked = ("--store", store, "--epochs", 1, "--num-slots", 501, "--checkpoint-dir", tmp_path / "1")
    told = [line for line in invoke(*asked).stderr.splitlines() if line.startswith("re-slot")]
    assert told[0].startswith(f"re-slotting, shards: {shards}. It is done once")
    assert told[1:] == [f"re-slotted {done} of {shards} shards" for done in range(1, shards)] * steps
    assert shards > 1


def test_it_is_the_training_on_that_snapshot(config, store, ingest_folder, synthetic_source, tmp_path):
    """Loss for loss that of a store which was ingested with so many slots."""
    spec = tmp_path / "other.toml"
    spec.write_text((SPECS / "movielens.toml").read_text().replace("num_slots = 32768", "num_slots = 700"))
    ingest_folder(synthetic_source, tmp_path / "whole", spec=str(spec), shard_bytes=100_000)
    here, there = train(config(store, num_slots=700)), train(config(tmp_path / "whole"))
    assert (here.snapshot, losses(here), here.test) == (there.snapshot, losses(there), there.test)


def test_narrow_rows_are_trained_resumed_predicted_with_and_pruned(config, store, tmp_path):
    """A table whose rows make vectors by signs: all that a model is used for."""
    old = open_snapshot(store).manifest.load_spec()
    features = tuple(one.with_lookups(3) for one in old.features)
    spec = dataclasses.replace(old, table=Table(3000, 1, 8), features=features)
    reslot(store, spec=spec)
    whole, run = train(config(store)), tmp_path / "parts"
    train(config(store, epochs=1, checkpoint_dir=run))
    resumed = train(config(store, checkpoint_dir=run, resume=str(run / "last.pt")))
    assert losses(resumed) == losses(whole)
    assert whole.epochs[-1].train.loss < whole.epochs[0].train.loss
    predictor = Predictor.load(whole.checkpoint)
    assert predictor.model.combiner.lookups == (3,) * 6
    row = dict(word.split("=") for word in VALUES)
    (predicted,) = predictor.predict(pa.Table.from_pylist([row]))
    assert 1 < predicted < 5
    with FeatureStore(store) as opened:
        checkpoint, pruned = load_checkpoint(whole.checkpoint), tmp_path / "pruned.pt"
        parts = {each.part: each for each in prune_table(opened, checkpoint, whole.checkpoint, pruned).bytes}
        assert parts["remap"].memory[0] == 0  # what signs and projects is no part of it
        assert parts["network"].memory[0] == parts["network"].memory[1] > parts["network"].file[0]
        raw = opened.sql(f"SELECT {', '.join(predictor.columns)} FROM test")
        assert measure_utilization(opened, checkpoint, whole.checkpoint).num_rows == 3000
    assert Predictor.load(pruned).predict(raw).tolist() == predictor.predict(raw).tolist()


def test_the_size_that_it_has_makes_nothing(config, store):
    result = train(config(store, epochs=1, num_slots=32_768))
    assert result.snapshot == latest(store)
    assert len(list_snapshots(store)) == 1


def test_a_run_of_another_size_is_resumed_as_it_is(store, tmp_path):
    """It has its snapshot; what was asked for then is not asked for again."""
    folder = tmp_path / "run"
    asked = ("--store", store, "--epochs", 1, "--num-slots", 501, "--checkpoint-dir", folder, "--json")
    first = json.loads(invoke(*asked).stdout)
    resume = ("--store", store, "--resume", folder / "last.pt", "--json")
    told = json.loads(invoke(*resume, "--epochs", 2).stdout)
    assert told["snapshot"] == first["snapshot"] != latest(store)
    assert len(told["epochs"]) == 2
    with pytest.raises(FingerprintError, match="Use a snapshot of the model's spec"):
        invoke(*resume, "--epochs", 3, "--snapshot", latest(store))


def test_several_ranks_train_on_the_one_that_rank_0_makes(run_world, store, tmp_path):
    results = run_world(2, train_rank, store, tmp_path / "ranks")
    assert {result.snapshot for result in results} == {list_snapshots(store)[-1].manifest.id}
    assert losses(results[0]) == losses(results[1])
    assert len(list_snapshots(store)) == 2


def train_rank(world, store, folder):
    return train(
        TrainConfig(store, epochs=1, tracking=False, checkpoint_dir=folder, num_slots=501, batch_size=1000)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_slots": 0}, "--num-slots must be at least 1, got 0"),
        ({"num_slots": 2**31}, "--num-slots must be at most 2147483647, got 2147483648"),
        ({"num_slots": 5, "lookups": {"zip": 2}, "resume": "x"}, "--num-slots and --lookups cannot be"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(config, options, said):
    with pytest.raises(SpecError, match=said):
        config(**options)


def test_what_cannot_be_made(config, store):
    with pytest.raises(SpecError, match=r"no feature 'zp' \(did you mean 'zip'\?\)"):
        train(config(store, lookups={"zp": 2}))
    with pytest.raises(NotFound, match="no snapshot 'zzz'"):
        train(config(store, snapshot="zzz", num_slots=5))
    with staging(store), pytest.raises(StoreBusy, match="wait for it"):
        train(config(store, num_slots=5))
    assert len(list_snapshots(store)) == 1
