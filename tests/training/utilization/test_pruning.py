"""`slotstore prune-table`: what it writes predicts the same and is smaller; what it refuses."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

import training.predictor
import training.train
from featurestore.errors import ArtifactError, FingerprintError, SpecError, VersionError
from featurestore.hashing import slot
from featurestore.store import FeatureStore
from training import checkpoint as checkpoint_module
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import TrainConfig
from training.embeddings import projects_table
from training.job import train
from training.optimizers import OPTIMIZERS, TABLE
from training.predictor import Predictor
from training.pruned import KEPT
from training.run_folder import RunFolder
from training.utilization.prune_command import command
from training.utilization.pruning import Bytes, Pruning, prune_table, used_slots
from training.utilization.report import measure_utilization


def run(*args):
    return CliRunner().invoke(command, [*map(str, args)], catch_exceptions=False).stdout


@pytest.fixture
def pruned(small, opened, tmp_path):
    """The small model's path, pruned."""
    output = tmp_path / "pruned.pt"
    prune_table(opened, load_checkpoint(small.checkpoint), small.checkpoint, output)
    return output


def known(store, predictor):
    return store.sql(f"SELECT {', '.join(predictor.columns)} FROM examples")


def test_people_are_told_what_is_gone_and_that_nothing_else_is(small, tmp_path):
    told = run("--store", small.store, "--output", tmp_path / "pruned.pt")
    assert f"into      {tmp_path / 'pruned.pt'}\n" in told
    assert "bit for bit, and so are the predictions of the 3 examples of test.\n" in told
    assert "\nuser_id   " in told
    before, after = small.checkpoint.stat().st_size, (tmp_path / "pruned.pt").stat().st_size
    assert after < before
    assert f"Gone: {before - after:,} of {before:,} bytes in the file" in told


def test_machines_are_told_all_bytes(small, opened, tmp_path):
    output = tmp_path / "new" / "pruned.pt"
    found = json.loads(run("latest", "--store", small.store, "-o", output, "--json"))
    kept = int(used_slots(opened).sum())
    seen = {(row["feature"], row["value"]) for row in opened.sql("FROM vocabulary").to_pylist()}
    assert kept == len(set().union(*(small.slots(*each) for each in seen))) < 24
    assert found["rows"] == {"kept": kept, "whole": 24}
    parts = {each["part"]: each for each in found["bytes"]}
    assert parts["table"] == {
        "part": "table",
        "file": [24 * 4 * 4, (kept + 1) * 4 * 4],
        "memory": [24 * 4 * 4, (kept + 1) * 4 * 4],
    }
    assert (parts["remap"]["file"], parts["remap"]["memory"]) == ([0, 4], [0, 8])
    network = 4 * ((4 * 4 + 1) * 64 + 64 + 1)
    assert parts["network"]["file"] == parts["network"]["memory"] == [network, network]
    assert parts["optimizer"]["file"][0] >= 2 * (24 * 4 * 4 + network)
    assert parts["optimizer"]["file"][1] == 0
    assert parts["whole"]["file"] == [small.checkpoint.stat().st_size, output.stat().st_size]
    sums = [sum(each["memory"][when] for each in found["bytes"][:-1]) for when in (0, 1)]
    assert parts["whole"]["memory"] == sums
    assert [each["feature"] for each in found["unseen"]] == ["user_id", "movie_id", "zip"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_stay_the_same_bits(tiny_store, tiny, tmp_path, optimizer, dtype):
    config = TrainConfig(
        tiny_store, epochs=1, tracking=False, checkpoint_dir=tmp_path / "run", optimizer=optimizer,
        weight_decay=0.01,
    )  # fmt: skip
    path = train(config).checkpoint
    checkpoint = load_checkpoint(path)
    weights = {name: weight.to(dtype) for name, weight in checkpoint.model.items()}
    save_checkpoint(path, dataclasses.replace(checkpoint, model=weights))
    pruning = prune_table(tiny, load_checkpoint(path), path, tmp_path / "pruned.pt")
    assert pruning.kept < 2000 < pruning.num_rows == 32768
    assert (tmp_path / "pruned.pt").stat().st_size < path.stat().st_size / 4
    whole, pruned = Predictor.load(path), Predictor.load(tmp_path / "pruned.pt", tiny.snapshot)
    rows = known(tiny, whole)
    assert whole.predict(rows).tobytes() == pruned.predict(rows).tobytes()
    assert len(np.unique(whole.predict(rows))) > 1000


def test_what_takes_more_than_before_is_told_as_that():
    parts = [Bytes("whole", (200, 100), (1000, 1256))]
    told = str(Pruning(Path("a"), Path("b"), "0123", 999, 1000, parts, "test", 0, []))
    assert "Gone: 100 of 200 bytes in the file (50.0%), none of 1,000 bytes in memory, " in told
    assert "where it takes 256 more.\nIn memory it is not worth it: " in told


def test_a_batch_for_which_the_table_is_multiplied_gives_the_same_bits(
    article_store, article_model, tmp_path
):
    output = tmp_path / "pruned.pt"
    told = run(article_model, "--store", article_store, "--output", output)
    assert " examples of validation.\n" in told  # its test split is empty
    whole, pruned = Predictor.load(article_model), Predictor.load(output)
    with FeatureStore(article_store) as store:
        rows = known(store, whole)
    assert projects_table(torch.zeros(len(rows), 7), 1000)
    assert whole.predict(rows).tobytes() == pruned.predict(rows).tobytes()


def test_rows_that_owe_decay_have_paid_it(small, opened, tmp_path):
    checkpoint = load_checkpoint(small.checkpoint)
    table = checkpoint.model[TABLE]
    owing = {"sum": torch.zeros(24), "decayed": torch.zeros(24, dtype=torch.float64), "log_decay": -1.0}
    optimizer = {"table": {"state": {0: owing}}, "dense": {"state": {}}}
    checkpoint = dataclasses.replace(checkpoint, optimizer=optimizer)
    prune_table(opened, checkpoint, small.checkpoint, tmp_path / "pruned.pt")
    kept = torch.from_numpy(used_slots(opened))
    found = load_checkpoint(tmp_path / "pruned.pt").model[TABLE][:-1]
    assert torch.allclose(found, table[kept] * torch.tensor(-1.0).exp())


def test_the_predict_command_says_the_same(small, pruned):
    words = ["user_id=2", "movie_id=3", "zip=70072", "--json"]
    told = [
        CliRunner().invoke(training.predictor.command, [str(path), *words], catch_exceptions=False).output
        for path in (small.checkpoint, pruned)
    ]
    assert told[0] == told[1]
    assert json.loads(told[0])["rating"] > 0


def test_a_value_never_seen_has_the_row_of_its_hash_if_that_is_kept_and_else_the_mean(small, opened, pruned):
    kept, loaded = used_slots(opened), load_checkpoint(pruned)
    table = load_checkpoint(small.checkpoint).model[TABLE]
    mean = table[~torch.from_numpy(kept)].double().mean(0).float()
    assert torch.allclose(loaded.model[TABLE][-1], mean, rtol=1e-6)
    unseen = [f"unseen {number}" for number in range(200)]
    rows = pa.table({"user_id": ["1"] * 200, "movie_id": unseen, "zip": ["48067"] * 200})
    whole, other = (Predictor.load(path).predict(rows) for path in (small.checkpoint, pruned))
    leads = np.array([kept[slot(value, 0, 24)] for value in unseen])
    assert (whole[leads] == other[leads]).all()
    assert len(set(other[~leads].tolist())) == 1 < len(set(whole[~leads].tolist()))


def test_the_model_keeps_its_spec(small, pruned, tiny):
    one, other = load_checkpoint(small.checkpoint), load_checkpoint(pruned)
    for name in ("spec", "fingerprint", "snapshot", "config", "state"):
        assert getattr(one, name) == getattr(other, name)
    with pytest.raises(FingerprintError, match=tiny.snapshot.manifest.fingerprint):
        Predictor.load(pruned, tiny.snapshot)


def test_a_pruned_model_says_how_the_whole_one_was_used(small, opened, pruned):
    whole, other = (
        measure_utilization(opened, load_checkpoint(path), path).to_dict()
        for path in (small.checkpoint, pruned)
    )
    same = ("uses", "shares", "features", "scores", "kinds")
    assert {name: whole[name] for name in same} == {name: other[name] for name in same}


def test_a_pruned_model_is_not_trained_on(small, pruned):
    config = TrainConfig(small.store, epochs=9, tracking=False, resume=str(pruned))
    with pytest.raises(SpecError, match=r"pruned.pt is a pruned model, .* go on from the run"):
        train(config)
    words = ["--store", str(small.store), "--resume", str(pruned), "--no-tracking"]
    with pytest.raises(SpecError, match=r"pruned.pt is a pruned model"):
        CliRunner().invoke(training.train.command, words, catch_exceptions=False)


def test_a_run_does_not_take_a_pruned_model_for_its_best(small, pruned, tmp_path):
    run, last = RunFolder(tmp_path / "run"), load_checkpoint(small.checkpoint)
    run.save_best(load_checkpoint(pruned))
    assert run.take_best(last, run) == last.state["history"][-1]["best"]
    assert not run.best.exists() or not load_checkpoint(run.best).is_pruned


def test_what_is_pruned_or_there_is_refused(small, pruned):
    with pytest.raises(SpecError) as refused:
        run(pruned, "--store", small.store, "--output", small.checkpoint)
    first, second = refused.value.problems
    assert "pruned.pt is pruned already: prune the checkpoint that it was made of" in first
    assert f"there is a file {small.checkpoint}" in second
    assert not load_checkpoint(small.checkpoint).is_pruned


def test_a_model_of_another_spec_is_refused(small, tiny_store, tmp_path):
    with pytest.raises(FingerprintError):
        run(small.checkpoint, "--store", tiny_store, "--snapshot", "latest", "-o", tmp_path / "pruned.pt")
    assert not (tmp_path / "pruned.pt").exists()


def without(opened, condition):
    opened.sql(f"CREATE OR REPLACE TABLE some_slots AS SELECT * FROM slots WHERE {condition}")
    opened.sql("CREATE OR REPLACE VIEW slots AS FROM some_slots")


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("false", r"has no vocabulary.*`slotstore ingest SOURCE --store "),
        ("feature = 'zip'", r"predictions of test differ: .* its vocabulary lacks.*verify"),
    ],
)
def test_what_would_predict_otherwise_is_not_written(small, opened, tmp_path, condition, said):
    without(opened, condition)
    with pytest.raises(ArtifactError, match=said):
        prune_table(opened, load_checkpoint(small.checkpoint), small.checkpoint, tmp_path / "pruned.pt")
    assert not (tmp_path / "pruned.pt").exists()


def change(model, **tensors):
    names = {"kept": KEPT, "weight": TABLE}
    return {**model, **{names[name]: tensor for name, tensor in tensors.items()}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: {name: each for name, each in model.items() if name != KEPT},
        lambda model: change(model, kept=model[KEPT] ^ 1),
        lambda model: change(model, kept=model[KEPT].long()),
        lambda model: change(model, kept=torch.cat([model[KEPT], model[KEPT]])),
        lambda model: change(model, kept=model[KEPT] | 1 << 25),
        lambda model: change(model, weight=model[TABLE][1:]),
    ],
    ids=["none", "a slot more or less", "type", "length", "beyond", "a row less"],
)
def test_a_damaged_remap_is_refused(pruned, damage):
    loaded = load_checkpoint(pruned)
    save_checkpoint(pruned, dataclasses.replace(loaded, model=damage(loaded.model)))
    with pytest.raises(ArtifactError, match=r"pruned.pt is no intact checkpoint"):
        Predictor.load(pruned)


def test_one_bit_of_the_file_is_found(pruned):
    content = bytearray(pruned.read_bytes())
    remap = load_checkpoint(pruned).model[KEPT].numpy().tobytes()
    (at,) = [place for place in range(len(content)) if content[place : place + 4] == remap]
    content[at] ^= 1
    pruned.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"pruned.pt is no intact checkpoint .*altered"):
        Predictor.load(pruned)


def test_a_slotstore_that_knows_no_pruned_models_refuses_them_by_version(pruned, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "PRUNED_VERSION", 99)
    with pytest.raises(VersionError, match=r"format version 3"):
        load_checkpoint(pruned)


def test_an_empty_split_is_told(small, opened, tmp_path):
    opened.splits.rows["test"] = 0
    opened.sql("CREATE OR REPLACE VIEW test AS SELECT * FROM examples WHERE false")
    found = prune_table(opened, load_checkpoint(small.checkpoint), small.checkpoint, tmp_path / "pruned.pt")
    assert (found.examples, found.unseen) == (0, [])
    assert "The test split is empty: no prediction to compare." in str(found)
