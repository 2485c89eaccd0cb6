"""A training that is killed, or stopped, and gone on with, against one that never was."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from featurestore.errors import (
    ArtifactError,
    FingerprintError,
    Interrupted,
    NotFound,
    SpecError,
    TrainingError,
)
from training.checkpoint import load_checkpoint
from training.job import train
from training.run_folder import RunFolder
from training.train import command


def losses(result):
    return [(epoch.train.loss, epoch.validation.loss) for epoch in result.epochs]


class StopAt:
    """Sends a signal to this process at a row of an epoch, as Ctrl-C would."""

    def __init__(self, epoch, rows, number=signal.SIGINT):
        self.at, self.number = (epoch, rows), number
        self.notes = []

    def on_note(self, text):
        self.notes.append(text)

    def on_start(self, rows):
        if self.at[1] == "last step":
            self.at = (self.at[0], rows)

    def on_step(self, epoch, rows, loss):
        if (epoch, rows) == self.at:
            signal.raise_signal(self.number)

    def on_epoch(self, result):
        if (result.epoch, "end") == self.at:
            signal.raise_signal(self.number)


def assert_same(folder, other, **kinds):
    """All that training changes is the same in two checkpoints, bit for bit."""
    for name in ("best.pt", "last.pt"):
        mine, theirs = load_checkpoint(folder / name), load_checkpoint(other / name)
        assert mine.model.keys() == theirs.model.keys()
        assert all(weights.equal(theirs.model[key]) for key, weights in mine.model.items())
        for key, state in mine.optimizer["state"].items():
            assert all(value.equal(theirs.optimizer["state"][key][field]) for field, value in state.items())
        times = {"seconds": 0.0}
        histories = [[{**one, **times} for one in each.state["history"]] for each in (mine, theirs)]
        assert histories[0] == histories[1]
        assert (mine.epoch, mine.rows) == (theirs.epoch, theirs.rows)


FEED = {"whole": {}, "in windows": {"window_rows": 3000}, "streamed": {"window_rows": 3000, "feed": "stream"}}


@pytest.mark.parametrize("feed", FEED.values(), ids=FEED)
@pytest.mark.parametrize("at", [(1, 1024), (2, 5 * 1024), (2, "last step"), (1, "end")])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(config, tmp_path, feed, at):
    options = {"epochs": 3, "patience": 9, **feed}
    whole = train(config(checkpoint_dir=tmp_path / "whole", **options))
    run = tmp_path / "run"
    with pytest.raises(
        Interrupted, match=r"(?s)stopped by SIGINT at epoch .*slotstore train --store .* --resume .*run"
    ):
        train(config(checkpoint_dir=run, **options), [StopAt(*at)])
    resumed = train(config(checkpoint_dir=run, resume=str(run), **options))
    assert losses(resumed) == losses(whole)
    assert resumed.test == whole.test
    assert_same(tmp_path / "whole", run)


def test_a_stopped_training_is_at_the_step_where_it_was_stopped(config, tmp_path):
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM at epoch 2, 3,072 rows into it"):
        train(config(checkpoint_dir=tmp_path), [StopAt(2, 3072, signal.SIGTERM)])
    assert load_checkpoint(tmp_path / "last.pt").rows == 3072


def test_a_wish_to_stop_that_comes_at_the_end_changes_nothing(config, tmp_path):
    result = train(config(checkpoint_dir=tmp_path), [StopAt(2, "end")])
    assert len(result.epochs) == 2
    assert load_checkpoint(tmp_path / "last.pt").epoch == 2


def test_the_handlers_of_signals_are_put_back(config, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        train(config(checkpoint_dir=tmp_path), [StopAt(1, 1024)])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


SLOWLY = """
import sys, time
import training.loop
from featurestore.cli import main

look = training.loop.look
def slow_look(*args):
    time.sleep(0.02)
    look(*args)
training.loop.look = slow_look
main()
"""


def start(store, run, *flags):
    """Start a training in a process of its own that writes a checkpoint at every step, slowly."""
    words = ["--store", store, "--no-tracking", "--epochs", 3, "--threads", 1, "--checkpoint-dir", run]
    words += ["--checkpoint-seconds", 0, *flags]
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "train", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(run, epoch, rows):
    """Wait until a run has come that far."""
    for _ in range(3000):
        try:
            found = load_checkpoint(run / "last.pt")
        except NotFound:
            found = None
        if found and (found.epoch + 1, found.rows) >= (epoch, rows):
            return
        time.sleep(0.02)
    raise AssertionError("it never came that far")


@pytest.fixture(scope="module")
def whole_run(tiny_store, tmp_path_factory):
    """The checkpoints of a training that nobody killed."""
    run = tmp_path_factory.mktemp("whole")
    process = start(tiny_store, run)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return run


@pytest.mark.parametrize("feed", ["memory", "stream"])
def test_a_training_killed_twice_ends_bit_for_bit_as_one_that_was_not(tiny_store, whole_run, tmp_path, feed):
    process = start(tiny_store, tmp_path, "--feed", feed)
    for epoch, rows in ((1, 3000), (2, 9000)):
        wait_for(tmp_path, epoch, rows)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        process = start(tiny_store, tmp_path, "--resume", tmp_path)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert re.search(r"resuming run .* at epoch [23], [\d,]+ rows into it", said)
    assert_same(whole_run, tmp_path)


def test_a_damaged_last_checkpoint_is_told_and_the_one_before_is_used(config, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(config(checkpoint_dir=run.path, checkpoint_seconds=0.0), [StopAt(1, 5120)])
    content = bytearray(run.last.read_bytes())
    content[len(content) // 2] ^= 1
    run.last.write_bytes(content)
    callback = StopAt(None, None)
    result = train(config(epochs=3, threads=1, checkpoint_dir=run.path, resume=str(run.path)), [callback])
    assert "last.pt is no intact checkpoint" in callback.notes[0]
    assert "Going on from the checkpoint before it: epoch 1, 4,096 rows into it." in callback.notes[0]
    assert_same(whole_run, run.path)
    assert len(result.epochs) == 3


def test_ctrl_c_says_how_to_go_on_and_that_command_does(tiny_store, whole_run, tmp_path):
    process = start(tiny_store, tmp_path)
    wait_for(tmp_path, 2, 2048)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "error: stopped by SIGINT at epoch" in said
    assert "Traceback" not in said
    words = shlex.split(re.search(r"Go on with: slotstore train (.*)", said).group(1))
    assert CliRunner().invoke(command, words, catch_exceptions=False).exit_code == 0
    assert_same(whole_run, tmp_path)


def test_a_resumed_run_has_the_settings_it_had(tiny_store, tmp_path):
    run = tmp_path / "run"
    given = ["--store", tiny_store, "--no-tracking", "--checkpoint-dir", run]
    first = [*given, "--epochs", 1, "--lr", 0.01, "--batch-size", 500, "--seed", 3, "--patience", 7]
    invoke(*first)
    invoke("--store", tiny_store, "--resume", run, "--epochs", 2, "--lr", 0.02)
    config = load_checkpoint(run / "last.pt").config
    names = ("epochs", "learning_rate", "batch_size", "seed", "patience", "tracking")
    assert [config[name] for name in names] == [2, 0.02, 500, 3, 7, False]


def invoke(*args):
    return CliRunner().invoke(command, [*map(str, args)], catch_exceptions=False)


def test_what_a_run_keeps_from_its_start_cannot_be_changed(config, trained):
    with pytest.raises(SpecError) as raised:
        train(config(epochs=3, seed=1, window_rows=77, resume=str(trained.checkpoint)))
    assert [problem.split(" in ")[0] for problem in raised.value.problems] == [
        "--seed is 0", f"--window-rows is {1 << 20}",
    ]  # fmt: skip


def test_a_resumed_training_that_gets_no_better_keeps_the_best_it_had(config, trained, tmp_path):
    resumed = train(
        config(epochs=3, resume=str(trained.checkpoint), learning_rate=0.5, checkpoint_dir=tmp_path / "new")
    )
    assert [epoch.best for epoch in resumed.epochs] == [True, True, False]
    assert (resumed.checkpoint, resumed.best_epoch) == (tmp_path / "new" / "best.pt", 2)
    assert resumed.test == trained.test


def test_resuming_refuses_a_snapshot_of_another_spec(config, trained, binary_store):
    with pytest.raises(FingerprintError, match=trained.fingerprint):
        train(config(binary_store, epochs=3, resume=str(trained.checkpoint)))


@pytest.fixture
def other_snapshot(synthetic_source, ingest_folder, tmp_path):
    """A store whose snapshot has the spec of the tiny one, and other examples."""
    folder = shutil.copytree(synthetic_source, tmp_path / "fewer")
    lines = (folder / "ratings.dat").read_text().splitlines(keepends=True)
    (folder / "ratings.dat").write_text("".join(lines[:-100]))
    ingest_folder(folder, tmp_path / "store", shard_bytes=100_000)
    return tmp_path / "store"


def test_in_the_middle_of_an_epoch_another_snapshot_is_refused(config, other_snapshot, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(checkpoint_dir=run), [StopAt(2, 1024)])
    with pytest.raises(FingerprintError, match=r"1,024 rows into an epoch of snapshot .*Give --snapshot"):
        train(config(other_snapshot, resume=str(run)))
    at_an_end = train(
        config(other_snapshot, epochs=3, resume=str(run / "best.pt"), checkpoint_dir=tmp_path / "b")
    )
    assert [epoch.epoch for epoch in at_an_end.epochs] == [1, 2, 3]


def test_a_run_that_is_over_says_what_to_raise(config, trained, tmp_path):
    ears = StopAt(None, None)
    again = train(config(resume=str(trained.checkpoint), checkpoint_dir=tmp_path / "again"), [ears])
    assert re.search(r"best.pt has had its 2 epochs: to train on, raise --epochs. Its best", ears.notes[-1])
    assert (again.test, losses(again)) == (trained.test, losses(trained))
    run = tmp_path / "run"
    ended = train(config(epochs=9, patience=1, learning_rate=0.02, checkpoint_dir=run))
    again = train(config(epochs=9, patience=1, checkpoint_dir=run, resume=str(run)), [ears])
    assert re.search(
        r"has ended after 1 epochs without a gain: to train on, raise --patience", ears.notes[-1]
    )
    assert (again.test, again.best_epoch) == (ended.test, ended.best_epoch)


def test_another_trainings_best_model_is_never_taken_for_ones_own(config, trained, tmp_path):
    """In the folder lies the best model of a training with another seed."""
    train(config(epochs=3, seed=5, checkpoint_dir=tmp_path))
    resumed = train(
        config(epochs=3, resume=str(trained.checkpoint), learning_rate=0.5, checkpoint_dir=tmp_path)
    )
    assert (resumed.best_epoch, resumed.test) == (2, trained.test)


def test_the_best_model_of_a_branch_that_was_left_is_not_kept(config, tmp_path):
    train(config(epochs=1, checkpoint_dir=tmp_path))
    first = shutil.copy(tmp_path / "last.pt", tmp_path / "first.pt")
    train(config(epochs=3, checkpoint_dir=tmp_path, resume=str(tmp_path)))
    left = train(config(epochs=2, checkpoint_dir=tmp_path, resume=str(first), learning_rate=1.0))
    assert [epoch.best for epoch in left.epochs] == [True, False]
    assert left.best_epoch == 1
    assert (
        load_checkpoint(left.checkpoint)
        .model["embedding.weight"]
        .equal(load_checkpoint(first).model["embedding.weight"])
    )


def test_a_run_killed_between_a_new_best_model_and_its_state_goes_on_as_if_it_had_not_been(config, tmp_path):
    """What it leaves: best.pt of the second epoch, last.pt of some step of it."""
    whole = train(config(epochs=3, checkpoint_dir=tmp_path / "whole"))
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(epochs=3, checkpoint_dir=run), [StopAt(2, 5120)])
    for name in ("best.pt", "best-before.pt"):
        (run / name).unlink(missing_ok=True)
    train(config(epochs=2, checkpoint_dir=tmp_path / "ahead"))
    for name in ("best.pt", "best-before.pt"):
        shutil.copy(tmp_path / "ahead" / name, run)
    resumed = train(config(epochs=3, checkpoint_dir=run, resume=str(run)))
    assert [epoch.best for epoch in resumed.epochs] == [epoch.best for epoch in whole.epochs]
    assert_same(tmp_path / "whole", run)


def test_where_the_best_model_is_lost_it_is_sought_anew_aloud(config, tmp_path):
    with pytest.raises(Interrupted):
        train(config(epochs=3, checkpoint_dir=tmp_path), [StopAt(2, 1024)])
    (tmp_path / "best.pt").unlink()
    ears = StopAt(None, None)
    result = train(config(epochs=3, checkpoint_dir=tmp_path, resume=str(tmp_path)), [ears])
    assert any("the best model of run" in note for note in ears.notes)
    assert [epoch.best for epoch in result.epochs][:2] == [False, True]


def test_a_damaged_last_checkpoint_never_takes_the_place_of_the_good_one(config, tmp_path):
    with pytest.raises(Interrupted):
        train(config(checkpoint_dir=tmp_path, checkpoint_seconds=0.0), [StopAt(1, 5120)])
    (tmp_path / "last.pt").write_bytes(b"damaged")
    with pytest.raises(Interrupted):
        train(config(checkpoint_dir=tmp_path, resume=str(tmp_path)), [StopAt(1, 6144)])
    assert load_checkpoint(tmp_path / "previous.pt").rows == 4096
    assert load_checkpoint(tmp_path / "last.pt").rows == 6144


def test_two_trainings_cannot_share_a_folder(config, tmp_path):
    run = RunFolder(tmp_path)
    with run.held(), pytest.raises(TrainingError, match=r"another training keeps its checkpoints in"):
        train(config(checkpoint_dir=tmp_path))


def test_a_folder_that_cannot_be_written_is_told_before_the_training(config, tmp_path):
    (tmp_path / "file").touch()
    ears = StopAt(None, None)
    with pytest.raises(ArtifactError, match=r"cannot keep checkpoints in .*file.run: "):
        train(config(checkpoint_dir=tmp_path / "file" / "run"), [ears])
    assert not any("epoch" in note for note in ears.notes)


def test_a_large_checkpoint_on_a_full_disk_is_an_error_without_a_traceback(tiny_store, tmp_path):
    """The limit on a file's size stands in for the disk; torch's writer tells it in an error of its own."""
    program = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000));"
    program += "from featurestore.cli import main; main()"
    words = ["--store", tiny_store, "--no-tracking", "--epochs", 1, "--checkpoint-dir", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", program, "train", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 4
    assert "cannot write the checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_that_are_no_numbers_are_never_kept(config, any_rate, tmp_path):
    with pytest.raises(TrainingError):
        train(config(learning_rate=1e30, checkpoint_dir=tmp_path, checkpoint_seconds=0.0))
    for path in tmp_path.glob("*.pt"):
        assert all(weights.isfinite().all() for weights in load_checkpoint(path).model.values())


def test_a_checkpoint_runs_no_code(trained):
    torch.load(trained.checkpoint, weights_only=True)
    fields = load_checkpoint(trained.checkpoint)
    json.dumps([fields.config, fields.spec, fields.state, fields.tracked])
