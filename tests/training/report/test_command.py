"""`slotstore report` as it is typed, and the page in MLflow."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from featurestore.errors import ArtifactError, FingerprintError, NotFound, TrainingError
from featurestore.snapshot import latest
from training.config import TrainConfig
from training.job import train
from training.report.command import command
from training.tracking import local_uri

# MLflow 3.17 uses what SQLAlchemy and pandas have deprecated, and warns of its own type hints: its affair.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning:mlflow"),
]


def report(*args):
    return CliRunner().invoke(command, [*map(str, args)], catch_exceptions=False)


def refused(error, match, *args):
    with pytest.raises(error, match=match):
        report(*args)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Keep out what the caller's environment says about MLflow, and pages out of the checkout."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(reported, tmp_path):
    """A store to record in."""
    return shutil.copytree(reported.store, tmp_path / "store")


def test_a_page_is_written_told_and_the_same_again(reported, tmp_path):
    told = report("--store", reported.store, "--no-tracking").stdout
    page = tmp_path / "report.html"
    assert told == f"page      report.html, {page.stat().st_size:,} bytes: open it in a browser\n"
    before = page.read_bytes()
    assert before.startswith(b"<!DOCTYPE html>")
    report("--store", reported.store, "--no-tracking")
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_machines_read_json(reported, tmp_path):
    page = tmp_path / "a page.html"
    words = ["--store", reported.store, "--no-tracking", "--json", "-o", page]
    assert json.loads(report(*words).stdout) == {
        "output": str(page),
        "bytes": page.stat().st_size,
        "snapshot": latest(reported.store),
        "run": None,
        "mlflow_run": None,
    }
    for name in ("latest", "aaaa", reported.checkpoint.parent):
        assert json.loads(report(*words, "--run", name).stdout)["run"] == "20260101-000000-aaaa"
    assert (
        json.loads(report(*words, "--run", reported.checkpoint).stdout)["run"]
        == "20260101-000000-aaaa/best.pt"
    )


def test_what_cannot_be_is_refused_before_any_work(reported, tmp_path):
    here = ["--store", reported.store]
    done = report(*here, "-o", "nowhere/r.html")
    assert (done.exit_code, "there is no folder 'nowhere'" in done.stderr) == (2, True)
    near = "20260101-000000-aaab"
    refused(NotFound, "did you mean '20260101-000000-aaaa'", *here, "--run", near)
    refused(NotFound, r"no snapshot", "--store", tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert report(*here, "-o", tmp_path).exit_code == 2


def test_a_page_that_cannot_be_written_is_said(reported, tmp_path):
    words = ["--store", reported.store, "--no-tracking", "-o"]
    refused(ArtifactError, r"cannot write /dev/full: .*No space left", *words, "/dev/full")
    (tmp_path / "fixed").symlink_to("/proc/self")
    done = report(*words, "fixed/r.html")
    assert (done.exit_code, "'fixed/r.html' cannot be written" in done.stderr) == (2, True)


def test_a_run_of_another_spec_is_refused_and_a_snapshot_that_is_gone_named(
    reported, article_store, tmp_path
):
    words = ["--store", article_store, "--run", reported.checkpoint, "--no-tracking"]
    refused(FingerprintError, "their slots mean different things", *words, "--snapshot", "latest")
    refused(NotFound, f"no snapshot '{latest(reported.store)}'", *words)
    assert not (tmp_path / "report.html").exists()


def kept(tracking_uri, run_id):
    """Return a run of a record, and the pages kept with it."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    return client.get_run(run_id), [found.path for found in client.list_artifacts(run_id, "report")]


def test_pages_are_kept_with_the_run_they_are_about_and_else_in_one_for_the_snapshot(store):
    result = train(TrainConfig(store, epochs=1))
    told = report("--store", store, "--run", "latest").stdout
    assert f"run {result.tracked.run_id}, among its artifacts: mlflow ui " in told
    run, pages = kept(result.tracked.tracking_uri, result.tracked.run_id)
    assert (run.info.status, pages) == ("FINISHED", ["report/report.html"])

    words = ["--store", store, "--json", "-o"]
    (run_id,) = {json.loads(report(*words, name).stdout)["mlflow_run"] for name in ("a.html", "b.html")}
    run, pages = kept(result.tracked.tracking_uri, run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"report-{latest(store)}")
    assert run.data.tags["snapshot.id"] == latest(store)
    assert pages == ["report/a.html", "report/b.html"]


def test_the_page_of_a_run_that_mlflow_does_not_have_replaces_none_of_the_snapshot(store):
    words = ["--store", store, "--json"]
    (run_id,) = {json.loads(report(*words, *more).stdout)["mlflow_run"] for more in ([], ["--run", "aaaa"])}
    _, pages = kept(local_uri(store), run_id)
    assert pages == ["report/20260101-000000-aaaa", "report/report.html"]


def test_a_failure_of_mlflow_leaves_the_page(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    refused(TrainingError, r"MLflow failed(.|\n)*--no-tracking writes the page without it", "--store", store)
    assert (tmp_path / "report.html").exists()


def test_the_project_has_the_page_with_flags_of_the_command():
    project = yaml.safe_load((Path(__file__).parents[3] / "mlflow" / "MLproject").read_text())
    used = set(re.findall(r"--[a-z-]+", project["entry_points"]["report"]["command"]))
    assert used == {"--store", "--output", "--snapshot", "--run"}
    assert used <= {flag for parameter in command.params for flag in parameter.opts}


def test_without_mlflow_or_altair_it_says_what_to_install(reported, tmp_path):
    """As on a machine that has neither: the command line names the extra."""
    code = (
        "import sys\n"
        "for name in sys.argv.pop(1).split(','): sys.modules[name] = None\n"
        "from featurestore.cli import main; main()"
    )

    def run(missing, *args):
        words = [sys.executable, "-c", code, missing, "report", "--store", str(reported.store), *args]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))

    done = run("altair", "--no-tracking")
    assert (done.returncode, done.stderr) == (
        1,
        "error: altair is not installed: pip install 'slotstore[report]'\n",
    )
    done = run("mlflow", "--no-tracking")
    assert done.returncode == 0, done.stderr
