import json
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from featurestore.errors import NotFound, SpecError, TrainingError
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.job import train
from training.stream import FEEDS
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


def test_the_checkpoint_is_that_of_the_best_epoch(config):
    result = train(config(epochs=4, patience=9, learning_rate=0.02))
    best = min(result.epochs, key=lambda epoch: epoch.score)
    checkpoint = load_checkpoint(result.checkpoint)
    assert result.best_epoch == checkpoint.epoch == best.epoch < 4
    assert checkpoint.state["history"][-1]["validation"]["loss"] == best.score


def test_a_split_of_several_windows_trains_as_well(config, trained):
    streamed = train(config(window_rows=3000))
    assert streamed.epochs[-1].validation.loss == pytest.approx(trained.epochs[-1].validation.loss, rel=0.05)


@pytest.mark.parametrize("window_rows", [1 << 20, 3000], ids=["whole", "in windows"])
def test_the_feed_changes_nothing(config, window_rows):
    first, *others = [train(config(feed=feed, window_rows=window_rows)) for feed in FEEDS]
    for other in others:
        assert losses(other) == losses(first)
        assert other.test == first.test


def test_a_binary_label_has_a_log_loss_and_an_auc(config, binary_store):
    result = train(config(binary_store, epochs=3))
    assert set(result.test.values) == {"log_loss", "auc"}
    assert result.epochs[-1].validation.values["auc"] > 0.55


def test_a_model_learns_from_what_a_label_does_not_drop(config, paper_store):
    result = train(config(paper_store, epochs=3))
    assert result.epochs[-1].validation.values["auc"] > 0.6
    assert result.test.values["auc"] > 0.6


def test_without_validation_and_test_rows_training_goes_by_its_own_loss(
    config, synthetic_source, ingest_folder, tmp_path
):
    store = ingest_split(ingest_folder, synthetic_source, tmp_path, "2030-01-01")
    result = train(config(store, epochs=2))
    assert [epoch.validation for epoch in result.epochs] == [None, None]
    assert result.test is None
    assert result.best_epoch == 2


def ingest_split(ingest_folder, source, folder, boundary, num_slots=64, dim=2):
    """Ingest with all examples before, or after, a time that none is near."""
    spec = folder / "split.toml"
    spec.write_text(
        f'[table]\nnum_slots = {num_slots}\ndim = {dim}\n[[features]]\nname = "user_id"\nlookups = 1\n'
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


def test_a_loss_that_explodes_is_an_error(config, any_rate):
    with pytest.raises(TrainingError, match=r"lower the learning rate"):
        train(config(learning_rate=1e30))


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    with pytest.raises(SpecError) as raised:
        TrainConfig(
            tmp_path, device="tpu", epochs=0, batch_size=-1, learning_rate=float("nan"), weight_decay=-1.0,
            patience=0, seed=-1, window_rows=0, threads=0, run_name="a/b", model="articel", optimizer="x",
            feed="ram", step="graf", precision="fp8", clip_norm=0.0, table_learning_rate=-1.0,
            checkpoint_seconds=-1.0,
        )  # fmt: skip
    assert raised.value.problems == [
        "--epochs must be at least 1, got 0",
        "--batch-size must be at least 1, got -1",
        "--patience must be at least 1, got 0",
        "--seed must be at least 0, got -1",
        "--window-rows must be at least 1, got 0",
        "--threads must be at least 1, got 0",
        "--lr must be a number above 0 and at most 10, got nan",
        "--table-lr must be a number above 0 and at most 10, got -1.0",
        "--clip-norm must be a number above 0, got 0.0",
        "--weight-decay must be a number of at least 0, got -1.0",
        "--checkpoint-seconds must be a number of at least 0, got -1.0",
        "--model: unknown model 'articel' (did you mean 'article'?)",
        "--optimizer: unknown optimizer 'x' (known: adam, rowwise_adagrad)",
        "--feed: unknown feed 'ram' (did you mean 'stream'?)",
        "--step: unknown step 'graf' (did you mean 'graph'?)",
        "--precision: unknown precision 'fp8' (known: fp32, tf32, bf16)",
        "--run-name must be text without slashes, got 'a/b'",
        "--device: unknown device 'tpu', expected auto, cpu, cuda or cuda:N",
    ]


@pytest.mark.parametrize("name", ["learning_rate", "table_learning_rate"])
def test_rates_that_train_nothing_are_refused(config, name):
    config(optimizer="rowwise_adagrad", **{name: 10.0})
    with pytest.raises(SpecError, match=r"-lr must be a number above 0 and at most 10, got 1e\+30"):
        config(optimizer="rowwise_adagrad", **{name: 1e30})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_where_there_is_none_is_an_error(config, device):
    with pytest.raises(SpecError, match=rf"--device {device}: this torch sees no CUDA device"):
        config(device=device)


def test_a_device_that_is_not_there_is_an_error(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SpecError, match=r"--device cuda:2: this torch sees 2 CUDA devices, from cuda:0 on"):
        config(device="cuda:2")


def test_a_table_too_large_for_memory_is_an_error_that_says_what_to_lower(
    config, synthetic_source, ingest_folder, tmp_path
):
    store = ingest_split(
        ingest_folder, synthetic_source, tmp_path, "2030-01-01", num_slots=2**31 - 1, dim=4096
    )
    with pytest.raises(TrainingError) as raised:
        train(config(store, batch_size=77))
    assert "out of memory on cpu: " in str(raised.value)
    assert "The table, 2,147,483,647 slots x 4096, takes 35,184,372,072,448 bytes" in str(raised.value)
    assert "Lower --batch-size (now 77)" in str(raised.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_learns_as_the_cpu_does(config, trained):
    result = train(config(device="cuda"))
    for mine, theirs in zip(losses(result), losses(trained), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resume": " "}, "--resume names no run"),
        ({"seed": 2**64}, "--seed must be at most"),
        ({"threads": 10**6}, "--threads must be at most 1024"),
        ({"step": "compile", "optimizer": "rowwise_adagrad"}, "--step compile is for --optimizer adam"),
        ({"table_learning_rate": 0.1}, "--table-lr is for --optimizer rowwise_adagrad"),
        ({"optimizer": "rowwise_adagrad", "weight_decay": 100.0}, "--weight-decay times --table-lr"),
    ],
)
def test_settings_that_do_not_go_together_are_told(config, options, said):
    with pytest.raises(SpecError, match=said):
        config(**options)


def test_settings_of_a_resumed_run_are_checked_when_they_are_all_known(config, tmp_path):
    run = tmp_path / "run"
    options = {"optimizer": "rowwise_adagrad", "checkpoint_dir": run}
    train(config(epochs=1, **options))
    words = ["--store", config().store, "--resume", run, "--epochs", 2, "--table-lr", 0.1]
    assert invoke(*words, "--json").exit_code == 0
    assert load_checkpoint(run / "last.pt").config["table_learning_rate"] == 0.1


def test_tracking_without_mlflow_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr("training.config.installed", lambda name: name != "mlflow")
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
    feed, folder, first, _ = result.stderr.splitlines()
    assert folder == f"checkpoints {tmp_path}"
    assert feed.startswith("feed memory: the splits take 0 MB as packed slots, ")
    assert first.startswith("epoch 1/2  train rmse ")
    assert first.endswith("rows/s  best so far")


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
