import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from featurestore.errors import Interrupted, TrainingError
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.job import train
from training.predictor import Predictor
from training.tracking import next_command
from training.train import command
from training.utilization.pruning import prune_table

# MLflow 3.17 uses what SQLAlchemy and pandas have deprecated, and warns of its own type hints: its affair.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning:mlflow"),
]

ROOT = Path(__file__).parents[2]
SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@pytest.fixture(scope="module", autouse=True)
def no_settings():
    """Keep out what the caller's environment says about MLflow."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def tracked(tiny_store, tmp_path_factory):
    """The result of one tracked training, in a store of its own."""
    store = shutil.copytree(tiny_store, tmp_path_factory.mktemp("tracked") / "store")
    result = train(TrainConfig(store, epochs=2, run_name="first"))
    assert not set(SETTINGS) & set(os.environ)  # nothing is left pointing at this store
    return result


@pytest.fixture(scope="module")
def mlflow(tracked):
    """The module, looking at the store of the tracked training."""
    import mlflow

    mlflow.set_tracking_uri(tracked.tracked.tracking_uri)
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def run(tracked, mlflow):
    return mlflow.get_run(tracked.tracked.run_id)


@pytest.fixture(scope="module")
def artifacts(run):
    return Path(run.info.artifact_uri.removeprefix("file://"))


def store_of(tracked):
    return tracked.checkpoint.parents[2]


def test_runs_are_recorded_in_the_store(tracked, run, mlflow):
    store = store_of(tracked)
    assert tracked.tracked.tracking_uri == f"sqlite:///{store}/mlflow.db"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert mlflow.get_experiment(run.info.experiment_id).name == "slotstore"
    assert run.info.artifact_uri.startswith((store / "mlartifacts").as_uri())


def test_settings_and_what_was_trained_on_are_recorded(run, tiny):
    manifest = tiny.snapshot.manifest
    expected = {"epochs": "2", "learning_rate": "0.002", "seed": "0", "num_slots": "32768", "dim": "16"}
    assert {name: run.data.params[name] for name in expected} == expected
    assert run.data.tags["snapshot.id"] == manifest.id
    assert run.data.tags["snapshot.fingerprint"] == manifest.fingerprint


def test_the_snapshot_is_a_dataset_with_the_digest_of_its_content(run, tracked, tiny):
    (recorded,) = run.inputs.dataset_inputs
    assert recorded.dataset.digest == tiny.snapshot.manifest.content_digest
    assert recorded.dataset.name == f"snapshot-{tracked.snapshot}"
    assert {tag.key: tag.value for tag in recorded.tags} == {"mlflow.data.context": "training"}
    assert json.loads(recorded.dataset.source)["uri"].endswith(f"snapshots/{tracked.snapshot}")
    columns = json.loads(recorded.dataset.schema)["mlflow_colspec"]
    assert {column["name"]: column["type"] for column in columns}["user_id_slot_0"] == "integer"


def test_metrics_are_recorded_by_epoch(run, tracked, mlflow):
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "validation_rmse")
    expected = [(epoch.epoch, epoch.validation.values["rmse"]) for epoch in tracked.epochs]
    assert [(metric.step, metric.value) for metric in history] == expected
    assert run.data.metrics["test_mae"] == tracked.test.values["mae"]
    assert run.data.metrics["train_rmse"] == tracked.epochs[-1].train.values["rmse"]


@pytest.fixture
def elsewhere(mlflow, tmp_path):
    """The module, pointed at a record of the test's own."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield mlflow
    mlflow.set_tracking_uri(before)


class StopAt:
    """Asks the training to stop at a row of its first epoch, as Ctrl-C does."""

    def __init__(self, rows):
        self.rows = rows

    def on_note(self, text):
        pass

    def on_start(self, rows):
        pass

    def on_step(self, epoch, rows, loss):
        if rows == self.rows:
            signal.raise_signal(signal.SIGINT)

    def on_epoch(self, result):
        pass


def test_a_resumed_training_goes_on_with_its_record(tiny_store, tmp_path, elsewhere):
    mlflow = elsewhere
    store = shutil.copytree(tiny_store, tmp_path / "store")
    with pytest.raises(Interrupted):
        train(TrainConfig(store, epochs=2), [StopAt(4096)])
    (stopped,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert stopped.info.status == "KILLED"
    result = train(TrainConfig(store, epochs=2, resume="latest"))
    (ended,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (ended.info.status, ended.info.run_id) == ("FINISHED", stopped.info.run_id)
    assert result.tracked.run_id == stopped.info.run_id
    history = mlflow.MlflowClient().get_metric_history(ended.info.run_id, "validation_rmse")
    assert [metric.step for metric in history] == [1, 2]


def test_the_systems_metrics_and_where_the_time_went_are_recorded(
    tiny_store, tmp_path, elsewhere, monkeypatch
):
    mlflow = elsewhere
    store = shutil.copytree(tiny_store, tmp_path / "store")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    result = train(TrainConfig(store, epochs=2, batch_size=500, profile=True))
    run = mlflow.get_run(result.tracked.run_id)
    assert run.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert run.data.metrics["profile_optimizer"] == result.profile.shares["optimizer"]
    trace = Path(run.info.artifact_uri.removeprefix("file://")) / "profile" / "trace.json.gz"
    assert trace.read_bytes() == result.profile.trace.read_bytes()


def test_spec_plot_and_checkpoint_are_artifacts(artifacts, tracked, tiny):
    assert json.loads((artifacts / "spec.json").read_text()) == tiny.spec.to_dict()
    assert (artifacts / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (artifacts / "checkpoint" / "best.pt").read_bytes() == tracked.checkpoint.read_bytes()


@pytest.fixture(scope="module")
def model(tracked, mlflow):
    return mlflow.pyfunc.load_model(tracked.tracked.model_uri)


def test_the_model_takes_raw_values_and_equals_the_predictor(model, tracked, tiny):
    predictor = Predictor.load(tracked.checkpoint)
    table = tiny.stream("test", predictor.columns).read_all()
    text = pa.table({name: table[name].cast(pa.string()) for name in table.column_names})
    assert (model.predict(text.to_pandas()) == predictor.predict(table)).all()


def test_the_model_says_what_it_takes_and_needs(model, mlflow, tracked):
    assert model.metadata.signature.inputs.input_names() == list(tracked.example)
    assert model.input_example.to_dict("records") == [tracked.example]
    needs = Path(mlflow.pyfunc.get_model_dependencies(tracked.tracked.model_uri)).read_text().split()
    assert {line.split("==")[0] for line in needs} >= {"torch", "pyarrow", "xxhash"}
    assert all("==" in line for line in needs)


def test_the_model_runs_without_this_checkout(mlflow, tracked, tmp_path):
    """It brings its code along: only public packages are needed where it is served."""
    local = mlflow.artifacts.download_artifacts(tracked.tracked.model_uri, dst_path=str(tmp_path))
    program = (
        "import json, os, sys; os.environ['MLFLOW_DISABLE_TELEMETRY'] = 'true'; import mlflow, pandas;"
        "model = mlflow.pyfunc.load_model(sys.argv[1]);"
        "print(float(model.predict(pandas.DataFrame([json.loads(sys.argv[2])]))[0]));"
        "import training; print(training.__file__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", program, local, json.dumps(tracked.example)],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    predicted, origin = ran.stdout.split()
    expected = Predictor.load(tracked.checkpoint).predict(pa.Table.from_pylist([tracked.example]))[0]
    assert float(predicted) == expected
    assert Path(origin).is_relative_to(tmp_path)


def test_nothing_is_sent_to_mlflows_makers(tracked):
    from mlflow.telemetry import get_telemetry_client

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert get_telemetry_client() is None


def test_the_next_command_shows_the_run(tracked):
    assert next_command(tracked.tracked) == f"mlflow ui --backend-store-uri {tracked.tracked.tracking_uri}"


@contextlib.contextmanager
def environment(**settings):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


def test_a_run_that_was_made_for_it_is_continued(tracked, mlflow, config):
    """As `mlflow run` does, which has recorded its parameters already."""
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("elsewhere")
    made = client.create_run(experiment)
    client.log_param(made.info.run_id, "epochs", "from mlflow run")
    with environment(MLFLOW_RUN_ID=made.info.run_id, MLFLOW_EXPERIMENT_ID=experiment):
        result = train(config(epochs=1, tracking=True))
    assert (result.tracked.run_id, result.tracked.experiment_id) == (made.info.run_id, experiment)
    run = client.get_run(made.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "from mlflow run"
    assert "test_rmse" in run.data.metrics


def test_a_failed_training_is_a_failed_run_in_the_experiment_asked_for(mlflow, config, any_rate):
    with pytest.raises(TrainingError, match=r"lower the learning rate"):
        train(config(learning_rate=1e30, tracking=True, experiment="failures"))
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("failures").experiment_id])
    assert run.info.status == "FAILED"


def test_what_is_undefined_is_tagged_with_the_reason(mlflow, tracked, tiny):
    from training.loop import EpochResult
    from training.metrics import Scores
    from training.tracking import Tracker

    undefined = Scores({"log_loss": 0.5}, 0.5, {"auc": "all 3 labels are 1"})
    with mlflow.start_run(run_name="tags") as active:
        Tracker(tracked.tracked, tiny).on_epoch(EpochResult(1, undefined, undefined, 3, 1.0, best=True))
    assert mlflow.get_run(active.info.run_id).data.tags["undefined.validation_auc"] == "all 3 labels are 1"


def test_a_server_that_does_not_answer_is_an_error_that_names_the_way_out(config, mlflow):
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with (
            environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"),
            pytest.raises(TrainingError, match=r"--no-tracking"),
        ):
            train(config(tracking=True))
    finally:
        mlflow.set_tracking_uri(None)


# --- the MLflow project ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project():
    return yaml.safe_load((ROOT / "mlflow" / "MLproject").read_text())


def test_the_projects_parameters_have_the_commands_defaults(project):
    names = {"lr": "learning_rate"}
    for entry in ("main", "train"):
        for name, settings in project["entry_points"][entry]["parameters"].items():
            field = names.get(name, name)
            if field == "num_slots":
                assert '${{num_slots:+--num-slots "$num_slots"}}' in project["entry_points"][entry]["command"]
            elif field not in ("source", "store", "spec"):
                assert settings["default"] == getattr(TrainConfig, field), name
                assert f"--{name.replace('_', '-')} {{{name}}}" in project["entry_points"][entry]["command"]


def test_every_flag_of_the_project_is_one_of_the_command(project):
    known = {flag for parameter in command.params for flag in parameter.opts}
    used = {word for word in project["entry_points"]["train"]["command"].split() if word.startswith("--")}
    assert used <= known


@pytest.mark.parametrize("entry", ["main", "train"])
def test_the_project_passes_a_number_of_slots_on_where_there_is_one(project, entry):
    """The command as MLflow fills it in, with a shell's function in the place of Python."""
    found = project["entry_points"][entry]
    defaults = {name: settings["default"] for name, settings in found["parameters"].items()}
    for given in ("", "501"):
        values = {name: shlex.quote(str(value)) for name, value in {**defaults, "num_slots": given}.items()}
        script = 'python() { echo "$@"; }\n' + found["command"].format(**values)
        done = subprocess.run(
            ["sh", "-c", script], cwd=ROOT / "mlflow", capture_output=True, text=True, check=True
        )
        assert ("--num-slots" in done.stdout) == bool(given)
        assert (" --num-slots 501 --epochs 5 " in done.stdout) == bool(given)


def test_there_is_no_package_called_mlflow_in_this_repository():
    assert not (ROOT / "mlflow" / "__init__.py").exists()


def test_mlflow_runs_the_project(synthetic_source, tmp_path):
    """From ingestion to model; the training records into the run that `mlflow run` makes, by default here."""
    active = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    ran = subprocess.run(
        [
            sys.executable, "-m", "mlflow", "run", str(ROOT / "mlflow"), "--env-manager", "local",
            "-P", f"source={synthetic_source}", "-P", f"store={tmp_path / 'store'}", "-P", "epochs=1",
        ],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **active},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "1"
    assert run.data.metrics["test_rmse"] > 0
    assert f"tracked     run {run.info.run_id}" in ran.stdout
    assert not (tmp_path / "store" / "mlflow.db").exists()


def test_a_pruned_model_is_served_as_the_whole_one_is(model, tracked, mlflow, tiny, tmp_path):
    path = tracked.checkpoint
    prune_table(tiny, load_checkpoint(path), path, tmp_path / "pruned.pt")
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"),
        python_model=str(ROOT / "training" / "pyfunc_model.py"),
        artifacts={"checkpoint": str(tmp_path / "pruned.pt")},
        signature=model.metadata.signature,
        input_example=pa.Table.from_pylist([tracked.example]).to_pandas(),
        pip_requirements=[],
    )
    table = tiny.stream("test", list(tracked.example)).read_all()
    text = pa.table({name: table[name].cast(pa.string()) for name in table.column_names}).to_pandas()
    pruned = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert pruned.predict(text).tobytes() == model.predict(text).tobytes()
