"""`slotstore compare`: real cells on small stores; killed, gone on with, refused."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from featurestore.errors import ArtifactError, SpecError, TrainingError
from featurestore.spec import Label
from featurestore.store import FeatureStore
from training.comparison.arguments import read_budgets, read_label, read_layouts, read_widths
from training.comparison.cell import run_cell
from training.comparison.command import command, plan_cells
from training.comparison.data import load_coded
from training.comparison.kept import comparison_folder, held
from training.comparison.pool import _ctrl_c_held_back, run_cells
from training.comparison.setup import PAPER_LABEL, Cell, Setup

SETUP = Setup(dim=4, epochs=2, batch_size=512)
ARGUMENTS = ["--dim", "4", "--epochs", "2", "--batch-size", "512", "--jobs", "1", "--no-tracking"]


@pytest.fixture(scope="module")
def coded(tiny_store):
    with FeatureStore(tiny_store) as store:
        return load_coded(store, SETUP)


def compare(store, *args):
    return CliRunner().invoke(command, ["--store", str(store), *ARGUMENTS, *args])


def test_splits_are_the_rows_that_the_label_keeps(tiny, coded):
    kept = tiny.sql("SELECT count(*) AS n FROM examples WHERE rating <> 3")["n"][0].as_py()
    assert sum(map(len, coded.labels.values())) == kept
    assert {split: len(codes) for split, codes in coded.codes.items()} == {
        split: len(labels) for split, labels in coded.labels.items()
    }
    assert 0.75 * kept < len(coded.labels["train"]) < 0.85 * kept


def test_codes_name_the_values_of_the_rows(tiny, coded):
    rows = tiny.sql(
        "SELECT user_id, rating FROM examples WHERE rating <> 3 AND "
        "md5_number_lower(concat_ws('/', user_id, movie_id, 0)) % 1000000 >= 900000"
    ).to_pydict()
    number = [feature.name for feature in tiny.spec.features].index("user_id")
    values = np.array(coded.fields[number].values)
    assert values[coded.codes["test"][:, number]].tolist() == rows["user_id"]
    assert coded.labels["test"].tolist() == [float(rating >= 4) for rating in rows["rating"]]


def test_counts_are_those_of_the_training_rows(coded):
    """What validation and test rows hold no layout may know."""
    for number, field in enumerate(coded.fields):
        assert list(field.counts) == [
            int((coded.codes["train"][:, number] == code).sum()) for code in range(len(field))
        ]


def test_a_cell_is_the_same_every_time(coded):
    cell = Cell("unified_narrow", 500, 3)
    one, other = (dataclasses.replace(run_cell(cell, coded, SETUP), seconds=0.0) for _ in range(2))
    assert one == other
    assert one.bytes == 2000
    assert len(one.curve) == 2
    assert one.validation["auc"] == max(one.curve)


def test_training_stops_when_validation_gets_no_better(coded):
    result = run_cell(Cell("exact", 100_000, 0), coded, dataclasses.replace(SETUP, epochs=60, patience=2))
    assert len(result.curve) < 60
    assert len(result.curve) == result.best_epoch + 2


def test_one_class_is_said(tiny):
    setup = dataclasses.replace(SETUP, label=Label("rating", 0.5))
    with pytest.raises(TrainingError, match=r"auc of validation is undefined: all .* labels are 1"):
        run_cell(Cell("unified", 500, 0), load_coded(tiny, setup), setup)


def test_the_command_prints_a_table_and_goes_on_where_it_was(tiny_store, monkeypatch):
    first = compare(tiny_store, "--layouts", "unified,exact", "--budgets", "1.0x,0.1x", "--seeds", "2")
    assert first.exit_code == 0, first.output
    assert "unified" in first.output
    assert "needs" in first.output  # the exact table does not fit a tenth of itself
    monkeypatch.setattr("training.comparison.pool.run_cell", None)  # nothing is trained again
    again = compare(tiny_store, "--layouts", "unified", "--budgets", "0.1x", "--seeds", "2", "--json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert [each["layout"] for each in found["standings"]] == ["unified"]
    assert found["standings"][0]["seeds"] == 2


def test_a_damaged_cell_is_trained_again(coded, tmp_path):
    (tmp_path / "cells").mkdir()
    cell = Cell("unified", 500, 0)
    (path := tmp_path / "cells" / f"{cell.name}.json").write_text('{"layout": ')
    (result,) = run_cells([cell], coded, SETUP, tmp_path, 1, lambda *_: None)
    assert json.loads(path.read_text())["test"] == result.test


def test_cells_are_of_the_rows_and_features_and_setup(tiny_store, article_store, binary_store):
    with contextlib.ExitStack() as stack:
        tiny, article, binary = (
            stack.enter_context(FeatureStore(path)) for path in (tiny_store, article_store, binary_store)
        )
        folders = [comparison_folder(store, SETUP).name for store in (tiny, article, binary)]
        assert len(set(folders)) == 3  # the same files, other features
        other = dataclasses.replace(SETUP, split_seed=1)
        assert comparison_folder(tiny, other).name not in folders


def test_killed_it_keeps_its_cells(tiny_store, tmp_path):
    """A comparison that is killed leaves whole cells, which the next one takes."""
    options = ["--layouts", "unified,per_feature,double", "--budgets", "0.3x", "--seeds", "3"]
    script = "from featurestore.cli import main; main()"
    arguments = [sys.executable, "-c", script, "compare", "--store", str(tiny_store), *ARGUMENTS, *options]
    with FeatureStore(tiny_store) as store:
        cells = comparison_folder(store, SETUP) / "cells"
    before = set(cells.glob("*.json"))
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not set(cells.glob("*.json")) - before and process.poll() is None:
        time.sleep(0.02)
    workers = children_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert workers
    wait_until(lambda: not any(is_running(worker) for worker in workers))
    kept = {path: path.stat().st_mtime_ns for path in set(cells.glob("*.json")) - before}
    assert kept
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(set(cells.glob("*.json")) - before) == 9


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def children_of(pid):
    """Return the processes that a process has started, its workers among them, as psutil sees them."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_running(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_ends_it_at_once_without_a_trace(tiny_store):
    """The terminal sends the signal to the workers as well."""
    settings = ["--epochs", "100000", "--patience", "100000", "--batch-size", "64", "--jobs", "2"]
    options = ["--no-tracking", "--layouts", "unified,double", "--budgets", "0.3x", "--seeds", "2"]
    script = "from featurestore.cli import main; main()"
    arguments = [sys.executable, "-c", script, "compare", "--store", str(tiny_store), *settings, *options]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: process.poll() is not None or workers_of(process.pid) == 2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_ctrl_c_waits_until_workers_know_what_to_do():
    """Also where another thread takes the signal, which does not block it."""
    begun, told = threading.Event(), []

    def take_the_signal():
        begun.wait(60)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def tell():
        with _ctrl_c_held_back():
            begun.set()
            other.join()
            time.sleep(0.01)  # here a handler would run
            told.append("all")

    other = threading.Thread(target=take_the_signal)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        tell()
    assert told == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def workers_of(pid):
    return sum("--multiprocessing-fork" in command_of(child) for child in children_of(pid))


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""


def test_two_at_a_time_are_refused(tmp_path):
    first, second = held(tmp_path, SETUP), held(tmp_path, SETUP)
    with first, pytest.raises(TrainingError, match="another comparison"), second:
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "x").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot keep cells in"), held(tmp_path / "x", SETUP):
        pass


def test_a_cell_that_cannot_be_written_is_named(coded, tmp_path):
    with pytest.raises(ArtifactError, match=r"unified-2000-0\.json"):  # there is no folder for cells
        run_cells([Cell("unified", 500, 0)], coded, SETUP, tmp_path, 1, lambda *_: None)


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "10.1"])
def test_rates_that_cannot_work(tiny_store, value):
    result = compare(tiny_store, "--lr", value)
    assert isinstance(result.exception, SpecError)
    assert "--lr must be a number above 0 and at most 10," in str(result.exception)


def test_budgets():
    assert read_budgets("1.0x,0.1x", 1000) == [1000, 100]
    assert read_budgets("8KiB, 400,400B", 1000) == [2048, 100]
    with pytest.raises(SpecError) as caught:
        read_budgets("0x,abc,nanx,3", 1000)
    assert len(caught.value.problems) == 4


def test_labels():
    assert read_label("paper", Label("rating")) == PAPER_LABEL
    assert read_label("spec", Label("rating", 2.0)) == Label("rating", 2.0)
    assert read_label("3.5", Label("rating")) == Label("rating", 3.5)
    for text in ("papr", "nan"):
        with pytest.raises(SpecError, match=f"unknown label '{text}'"):
            read_label(text, Label("rating"))


def test_layouts_with_parameters_have_one_spelling():
    assert read_layouts("robe, unified_narrow:signs=0:lookups=04,unified_narrow:lookups=4:signs=0") == [
        "robe",
        "unified_narrow:lookups=4:signs=0",
    ]
    assert read_layouts("unified,unified:lookups=1,unified_narrow:lookups=6") == ["unified", "unified_narrow"]


def test_the_test_is_explained_where_there_is_one(tiny_store):
    alone = compare(tiny_store, "--layouts", "robe,exact", "--budgets", "1.0x", "--seeds", "2")
    assert alone.exit_code == 0
    assert "Welch" not in alone.stdout
    beside = compare(tiny_store, "--layouts", "unified,exact", "--budgets", "1.0x", "--seeds", "2")
    assert "p: Welch's t-test against unified\n" in beside.stdout


def test_widths():
    assert read_widths("192, 64") == (192, 64)
    assert read_widths("") == ()
    for text in ("192,", "0", "-1", "1e3", "65537"):
        with pytest.raises(SpecError, match="widths are numbers from 1 to 65536"):
            read_widths(text)


def test_sizes_and_scale_reach_the_cell(coded):
    """Of a table that starts at 0 a factorization machine learns nothing: its gradient is 0."""
    setup = dataclasses.replace(SETUP, model="fm", scale=0.0, learning_rate=1e-12)
    small = run_cell(Cell("unified", 500, 0), coded, setup)
    assert small.test["auc"] == 0.5
    wide, narrow = (
        run_cell(Cell("unified", 500, 0), coded, dataclasses.replace(SETUP, epochs=1, deep=deep))
        for deep in ((64, 8), (4,))
    )
    assert wide.test != narrow.test


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layouts", "unifed"], "did you mean 'unified'"),
        (["--layouts", "unified:lookup=2"], "did you mean 'lookups'"),
        (["--layouts", "unified:lookups=3"], "lookups must divide the width 4, got 3"),
        (["--scale", "-1"], "--scale must be a number of at least 0"),
        (["--deep", "wide"], "widths are numbers"),
        (["--budgets", "lots"], "give bytes"),
        (["--budgets", "4B", "--layouts", "exact"], "the smallest that works"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_trained(tiny_store, arguments, said):
    result = compare(tiny_store, *arguments)
    assert isinstance(result.exception, SpecError)
    assert said in str(result.exception)


def test_layouts_that_do_not_fit_leave_the_others_alone(coded):
    cells, misfits = plan_cells(["exact", "unified"], [500], 2, coded, SETUP)
    assert cells == [Cell("unified", 500, 0), Cell("unified", 500, 1)]
    assert [misfit.layout for misfit in misfits] == ["exact"]


def test_explained_cells_are_trained_again_only_where_nobody_measured(tiny_store, tmp_path, monkeypatch):
    """Their other results stay as they were; robe has no rows to measure, and is not asked again."""
    options = ["--layouts", "unified,robe", "--budgets", "0.3x", "--seeds", "2", "--split-seed", "8"]
    first = compare(tiny_store, *options, "--json")
    assert first.exit_code == 0, first.output
    second = compare(tiny_store, *options, "--json", "--explain")
    assert second.exit_code == 0, second.output
    before, after = json.loads(first.stdout), json.loads(second.stdout)
    assert [each["values"] for each in before["standings"]] == [each["values"] for each in after["standings"]]
    (measured,) = after["measures"]
    assert (measured["layout"], measured["seed"]) == ("unified", 0)
    assert sum(measured["measures"]["gradients"]["arriving"][0]) == pytest.approx(1)
    folder = next(path for path in (tiny_store / "comparisons").glob("*/figures/unified-*-0"))
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.png"
        for name in ("gradient_shares", "readout_angles", "norms_and_load", "collided_and_clean")
    }
    monkeypatch.setattr("training.comparison.pool.run_cell", None)  # nothing is trained again
    third = compare(tiny_store, *options, "--explain")
    assert third.exit_code == 0, third.output
    assert "Whose gradients a row gets" in third.output


def test_measures_are_those_of_the_best_epoch(coded):
    """As if the training had ended with it."""
    setup, cell = dataclasses.replace(SETUP, epochs=60, patience=2), Cell("exact", 100_000, 0)
    whole = run_cell(cell, coded, setup, lambda _: None)
    assert len(whole.curve) > whole.best_epoch
    ended = run_cell(cell, coded, dataclasses.replace(setup, epochs=whole.best_epoch), lambda _: None)
    assert whole.measures == ended.measures


# MLflow's own search of runs uses what SQLAlchemy 2.1 calls deprecated.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_tracked_it_is_a_run_with_a_run_for_each_cell(tiny_store, tmp_path, monkeypatch):
    """And no cell is recorded twice."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    options = ["--layouts", "unified,double", "--budgets", "0.5x,0.2x", "--seeds", "2", "--tracking"]
    for more in ([], ["--explain"], ["--explain"]):
        result = compare(tiny_store, *options, *more)
        assert result.exit_code == 0, result.output
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    cells = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(cells) == 8 == len(runs) - 1
    explained = [run for run in cells if run.data.tags.get("explained")]
    assert {run.data.params["seed"] for run in explained} == {"0"}
    assert len(explained) == 4
    names = {file.path for file in client.list_artifacts(explained[0].info.run_id, "figures")}
    assert "figures/gradient_shares.png" in names
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert cells[0].data.params["layout"] in ("unified", "double")
    assert 0 <= cells[0].data.metrics["test_auc"] <= 1
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} == {
        "comparison.json",
        "comparison.txt",
        "pareto.png",
    }
