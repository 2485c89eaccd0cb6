import json
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from featurestore.errors import FingerprintError, NotFound, SpecError, TrainingError
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.job import train
from training.train import command


def losses(result):
    return [(epoch.train.loss, epoch.validation and epoch.validation.loss) for epoch in result.epochs]


def test_it_learns_and_reports(trained, tiny):
    first, last = losses(trained)
    assert last < first
    assert trained.snapshot == tiny.snapshot.manifest.id
    assert trained.best_epoch == 2
    assert set(trained.test.values) == {"rmse", "mae"}
    assert trained.rows_per_second > 0
    assert [epoch.rows for epoch in trained.epochs] == [tiny.splits.rows["train"]] * 2


def test_the_same_seed_gives_the_same_losses(config, trained):
    again = train(config(seed=0))
    assert losses(again) == losses(trained)
    assert again.test == trained.test
    assert losses(train(config(seed=1))) != losses(trained)


def test_training_leaves_the_random_state_and_the_threads_alone(config):
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    train(config(epochs=1, threads=2))
    assert torch.rand(3).equal(expected)
    assert torch.get_num_threads() == threads


def test_a_resumed_training_is_as_one_that_never_stopped(config, tmp_path):
    whole = train(config(epochs=3, patience=9, checkpoint_dir=tmp_path / "whole"))
    part = train(config(epochs=2, patience=9, checkpoint_dir=tmp_path / "part"))
    resumed = train(config(epochs=3, patience=9, resume=part.checkpoint, checkpoint_dir=tmp_path / "resumed"))
    assert part.best_epoch == 2
    assert losses(resumed) == losses(whole)[2:]
    assert resumed.test == whole.test


def test_a_resumed_training_that_gets_no_better_keeps_the_checkpoint_it_came_from(config, trained, tmp_path):
    resumed = train(
        config(epochs=3, resume=trained.checkpoint, learning_rate=0.5, checkpoint_dir=tmp_path / "new")
    )
    assert not resumed.epochs[0].best
    assert (resumed.checkpoint, resumed.best_epoch) == (trained.checkpoint, 2)
    assert resumed.test == trained.test


def test_resuming_refuses_a_snapshot_of_another_spec(config, trained, binary_store):
    with pytest.raises(FingerprintError, match=trained.fingerprint):
        train(config(binary_store, epochs=3, resume=trained.checkpoint))


def test_resuming_needs_epochs_to_train(config, trained):
    with pytest.raises(SpecError, match=r"--epochs must be above the 2"):
        train(config(resume=trained.checkpoint))


def test_the_checkpoint_is_that_of_the_best_epoch(config):
    result = train(config(epochs=4, patience=9, learning_rate=0.02))
    best = min(result.epochs, key=lambda epoch: epoch.score)
    checkpoint = load_checkpoint(result.checkpoint)
    assert result.best_epoch == checkpoint.epoch == best.epoch < 4
    assert checkpoint.score == best.score


def test_a_split_larger_than_the_buffer_trains_as_well(config, trained):
    streamed = train(config(buffer_rows=3000))
    assert streamed.epochs[-1].validation.loss == pytest.approx(trained.epochs[-1].validation.loss, rel=0.05)


def test_a_binary_label_has_a_log_loss_and_an_auc(config, binary_store):
    result = train(config(binary_store, epochs=3))
    assert set(result.test.values) == {"log_loss", "auc"}
    assert result.epochs[-1].validation.values["auc"] > 0.55


def test_without_validation_and_test_rows_training_goes_by_its_own_loss(
    config, synthetic_source, ingest_folder, tmp_path
):
    store = ingest_split(ingest_folder, synthetic_source, tmp_path, "2030-01-01")
    result = train(config(store, epochs=2))
    assert [epoch.validation for epoch in result.epochs] == [None, None]
    assert result.test is None
    assert result.best_epoch == 2


def ingest_split(ingest_folder, source, folder, boundary):
    """Ingest with all examples before, or after, a time that none is near."""
    spec = folder / "split.toml"
    spec.write_text(
        '[table]\nnum_slots = 64\ndim = 2\n[[features]]\nname = "user_id"\nlookups = 1\n'
        f'[label]\ncolumn = "rating"\n[split]\nkind = "time"\nboundaries = ["{boundary}"]\n'
    )
    ingest_folder(source, folder / "store", spec=str(spec))
    return folder / "store"


def test_an_empty_train_split_is_an_error(config, synthetic_source, ingest_folder, tmp_path):
    store = ingest_split(ingest_folder, synthetic_source, tmp_path, "1990-01-01")
    with pytest.raises(TrainingError, match=r"the train split of .* is empty: `slotstore splits`"):
        train(config(store))


def test_an_unknown_snapshot_or_store_is_an_error(config, tmp_path):
    with pytest.raises(NotFound, match=r"no snapshot 'zzz'"):
        train(config(snapshot="zzz"))
    with pytest.raises(NotFound, match=r"slotstore ingest"):
        train(config(tmp_path / "nowhere"))


def test_a_loss_that_explodes_is_an_error(config):
    with pytest.raises(TrainingError, match=r"lower the learning rate"):
        train(config(learning_rate=1e30))


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    with pytest.raises(SpecError) as raised:
        TrainConfig(
            tmp_path, device="tpu", epochs=0, batch_size=-1, learning_rate=float("nan"), weight_decay=-1.0,
            patience=0, seed=-1, buffer_rows=0, threads=0, run_name="a/b",
        )  # fmt: skip
    assert raised.value.problems == [
        "--epochs must be at least 1, got 0",
        "--batch-size must be at least 1, got -1",
        "--patience must be at least 1, got 0",
        "--seed must be at least 0, got -1",
        "--buffer-rows must be at least 1, got 0",
        "--threads must be at least 1, got 0",
        "--lr must be a number above 0, got nan",
        "--weight-decay must be a number of at least 0, got -1.0",
        "--device: unknown device 'tpu', expected auto, cpu, cuda",
        "--run-name must be text without slashes, got 'a/b'",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_an_error(config):
    with pytest.raises(SpecError, match=r"--device cuda: this torch sees no CUDA device"):
        config(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_learns_as_the_cpu_does(config, trained):
    result = train(config(device="cuda"))
    for mine, theirs in zip(losses(result), losses(trained), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_tracking_without_mlflow_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr("training.config._installed", lambda name: name != "mlflow")
    with pytest.raises(
        SpecError, match=r"tracking needs mlflow: pip install 'slotstore\[track\]', .*--no-tracking"
    ):
        TrainConfig(tmp_path)
    assert not TrainConfig(tmp_path, tracking=False).tracking


def invoke(*args):
    return CliRunner().invoke(command, [*map(str, args)], catch_exceptions=False)


def test_the_command_shows_epochs_result_and_next_commands(tiny_store, tmp_path):
    result = invoke("--store", tiny_store, "--no-tracking", "--epochs", 2, "--checkpoint-dir", tmp_path)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["epoch", "train", "rmse", "validation", "rmse", "validation", "mae", "rows/s"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert f"checkpoint  {tmp_path / 'best.pt'}" in lines
    assert f"slotstore predict {tmp_path / 'best.pt'} user_id=" in lines[-1]
    assert result.stderr.splitlines()[0].startswith("epoch 1/2  train rmse ")
    assert result.stderr.splitlines()[0].endswith("rows/s  best so far")


def test_the_command_prints_json(tiny_store, trained, tmp_path):
    result = invoke(
        "--store", tiny_store, "--no-tracking", "--epochs", 2, "--checkpoint-dir", tmp_path, "--json"
    )
    found = json.loads(result.stdout)
    assert found["test"] == trained.test.to_dict()
    assert [epoch["validation"] for epoch in found["epochs"]] == [
        epoch.validation.to_dict() for epoch in trained.epochs
    ]
    assert found["checkpoint"] == str(tmp_path / "best.pt")
    assert found["tracked"] is None


def test_checkpoints_go_into_the_store_by_default(tiny_store, config, tmp_path):
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    result = train(config(copy, epochs=1, checkpoint_dir=None, run_name="mine"))
    assert result.checkpoint.parent.parent == copy / "checkpoints"
    assert result.checkpoint.parent.name.endswith("-mine")


def test_wrong_options_are_told_as_soon_as_they_are_parsed():
    with pytest.raises(SpecError, match=r"--epochs must be at least 1"):
        command.make_context("train", ["--store", "nowhere", "--no-tracking", "--epochs", "0"])


def test_help_teaches():
    text = invoke("--help").output
    assert "slotstore train --store store" in text
    assert "--no-tracking" in text


@pytest.fixture(scope="module")
def lean_run(tiny_store, tmp_path_factory):
    """A training where only what the project depends on can be imported."""
    optional = ["mlflow", "matplotlib", "pandas", "sklearn", "scipy", "apache_beam", "polars"]
    program = f"""
import runpy, sys
for name in {optional}:
    sys.modules[name] = None  # importing it raises
sys.argv = ["train", *sys.argv[1:]]
runpy.run_module("training.train", run_name="__main__")
"""
    folder = tmp_path_factory.mktemp("lean")
    options = ["--store", str(tiny_store), "--epochs", "1", "--no-tracking", "--checkpoint-dir", str(folder)]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *options], capture_output=True, text=True
    )


def test_training_needs_neither_mlflow_nor_beam(lean_run):
    assert lean_run.returncode == 0, lean_run.stderr
    assert "best epoch  1" in lean_run.stdout


def test_a_users_mistake_is_a_message_and_a_status():
    options = ["--store", "nowhere", "--no-tracking"]
    result = subprocess.run(
        [sys.executable, "-m", "training.train", *options], capture_output=True, text=True
    )
    assert result.returncode == 4
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
