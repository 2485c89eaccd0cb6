"""Runs in MLflow. The only file that knows MLflow, which it imports where it is used: it is optional."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

import featurestore
import training
from featurestore.errors import Interrupted, TrainingError
from featurestore.paths import RemotePath
from featurestore.store import FeatureStore
from training.config import TrainConfig
from training.loop import EpochResult
from training.metrics import Scores
from training.predictor import Predictor
from training.profiling import ProfileResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT = "slotstore"
MODEL_REQUIREMENTS = ("click", "mlflow", "numpy", "pandas", "pyarrow", "torch", "xxhash")
"""What the logged model needs; its own code, featurestore and training, is logged with it."""


@dataclass(frozen=True)
class TrackedRun:
    """Where a run is recorded."""

    run_id: str
    experiment_id: str
    tracking_uri: str

    @property
    def model_uri(self) -> str:
        """What `mlflow.pyfunc.load_model` loads the model from."""
        return f"runs:/{self.run_id}/model"


def next_command(run: TrackedRun) -> str:
    """Return what to do to see a run."""
    if run.tracking_uri.startswith(("http://", "https://")):
        return f"in a browser: {run.tracking_uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    return f"mlflow ui --backend-store-uri {shlex.quote(run.tracking_uri)}"


@contextlib.contextmanager
def track(
    store: FeatureStore, config: TrainConfig, before: Mapping[str, str] | None = None
) -> Iterator["Tracker"]:
    """Open an MLflow run, and close it as finished, or as failed where an exception passes.

    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_ID and MLFLOW_RUN_ID are honoured: `mlflow run` sets them.
    Without the first, runs are recorded in ``mlflow.db`` in the store. ``before`` is the record of the run
    that is resumed, which is gone on with where it is found.

    Raises:
        TrainingError: MLflow fails.
    """
    quieten()
    import mlflow

    try:
        with tracking_at(config.folder), _start_run(config.folder, config, before) as run:
            tracked = TrackedRun(run.info.run_id, run.info.experiment_id, mlflow.get_tracking_uri())
            tracker = Tracker(tracked, store)
            tracker.start(config)
            try:
                yield tracker
            except Interrupted:
                mlflow.end_run("KILLED")  # MLflow's word for it; by itself it would call the run failed
                raise
    except mlflow.MlflowException as error:
        raise TrainingError(f"MLflow failed: {error}\n--no-tracking trains without it.") from error


def quieten() -> None:
    """Keep off the terminal how a new mlflow.db is made and a model checked; warnings still show.

    Call it before MLflow is imported: its telemetry is on by default, and sends usage to its makers.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)


def local_uri(store: Path) -> str:
    """Return the tracking URI of a store's own record."""
    return f"sqlite:///{store.resolve() / 'mlflow.db'}"


@contextlib.contextmanager
def tracking_at(store: Path) -> Iterator[None]:
    """Point MLflow at the store's own record, for this run, unless it was pointed elsewhere."""
    import mlflow

    if mlflow.tracking.is_tracking_uri_set():
        yield
        return
    mlflow.set_tracking_uri(local_uri(store))
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # the setting is global, and the next training may be in another store


def _start_run(
    store: Path, config: TrainConfig, before: Mapping[str, str] | None
) -> AbstractContextManager[Any]:
    """Start a run, or continue that of MLFLOW_RUN_ID or the resumed one, which have an experiment already."""
    import mlflow

    run_id = os.environ.get("MLFLOW_RUN_ID") or known_run(before)
    run: AbstractContextManager[Any] = mlflow.start_run(
        run_id=run_id,
        experiment_id=None if run_id else experiment_of(store, config.experiment),
        run_name=config.run_name,
        nested=mlflow.active_run() is not None,
        log_system_metrics=importlib.util.find_spec("psutil") is not None,
    )
    return run


def known_run(before: Mapping[str, str] | None) -> str | None:
    """Return the id of the run that a checkpoint names, None where this record does not have it."""
    import mlflow

    if before is None or before["tracking_uri"] != mlflow.get_tracking_uri():
        return None
    found = mlflow.MlflowClient().search_runs(
        [before["experiment_id"]], f"attributes.run_id = '{before['run_id']}'"
    )
    return before["run_id"] if found else None


def experiment_of(store: Path, name: str | None) -> str:
    """Return the id of the experiment, which is made if missing."""
    import mlflow

    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given and not name:
        return given
    name = name or EXPERIMENT
    if found := mlflow.get_experiment_by_name(name):
        return str(found.experiment_id)
    ours = mlflow.get_tracking_uri() == local_uri(store)  # a server has a place of its own for artifacts
    return str(mlflow.create_experiment(name, (store.resolve() / "mlartifacts").as_uri() if ours else None))


class Tracker:
    """A callback that records a training in the active MLflow run."""

    def __init__(self, run: TrackedRun, store: FeatureStore) -> None:
        self.run, self._store = run, store

    def start(self, config: TrainConfig) -> None:
        """Record what is trained, and on what."""
        import mlflow

        manifest, spec = self._store.snapshot.manifest, self._store.spec
        settings = {**config.to_dict(), **dataclasses.asdict(spec.table)}
        fixed = mlflow.get_run(self.run.run_id).data.params  # `mlflow run` has recorded its own already
        mlflow.log_params({name: value for name, value in settings.items() if name not in fixed})
        identity = ("fingerprint", "id", "content_digest")
        mlflow.set_tags({f"snapshot.{name}": getattr(manifest, name) for name in identity})
        mlflow.log_dict(spec.to_dict(), "spec.json")
        mlflow.log_input(_dataset(self._store), context="training")

    def on_note(self, text: str) -> None:
        """Record nothing: notes are for who is looking."""

    def on_start(self, rows: int) -> None:
        """Record how much is trained on."""
        import mlflow

        mlflow.log_metric("train_rows", rows)

    def on_step(self, epoch: int, rows: int, loss: torch.Tensor) -> None:
        """Record nothing: a step is too short to wait for."""

    def on_epoch(self, result: EpochResult) -> None:
        """Record an epoch's metrics, the epoch being the step."""
        import mlflow

        metrics = _named("train", result.train) | _named("validation", result.validation)
        mlflow.log_metrics({**metrics, "rows_per_second": result.rows_per_second}, step=result.epoch)
        _tag_undefined("validation", result.validation)

    def finish(
        self,
        epochs: Sequence[EpochResult],
        test: Scores | None,
        checkpoint: Path,
        example: Mapping[str, str],
        profile: ProfileResult | None,
    ) -> None:
        """Record the result: metrics, learning curve, checkpoint, model, where the time went."""
        import mlflow

        if profile:
            mlflow.log_metrics({f"profile_{name}": share for name, share in profile.shares.items()})
            if profile.trace:
                mlflow.log_artifact(str(profile.trace), "profile")

        mlflow.log_metrics(_named("test", test))
        _tag_undefined("test", test)
        mlflow.log_figure(learning_curve(epochs), "learning_curve.png")
        mlflow.log_artifact(str(checkpoint), "checkpoint")
        _log_model(checkpoint, example)


def _named(split: str, scores: Scores | None) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in scores.values.items()} if scores else {}


def _tag_undefined(split: str, scores: Scores | None) -> None:
    import mlflow

    if scores and scores.undefined:
        mlflow.set_tags({f"undefined.{split}_{name}": why for name, why in scores.undefined.items()})


def _dataset(store: FeatureStore) -> object:
    """Return the snapshot as an MLflow dataset: where it lies, its columns and the digest of its content."""
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.types import ColSpec, Schema

    manifest = store.snapshot.manifest
    kinds = {"float": "float", "int32": "integer", "int64": "long"}  # all else is text
    columns = [ColSpec(kinds.get(kind, "string"), name) for name, kind in manifest.columns.items()]
    folder = store.snapshot.folder
    source = json.dumps({"uri": str(folder.absolute())})
    return MetaDataset(
        get_dataset_source_from_json(source, folder.scheme if isinstance(folder, RemotePath) else "local"),
        name=f"snapshot-{manifest.id}",
        digest=manifest.content_digest,
        schema=Schema(columns),
    )


def learning_curve(epochs: Sequence[EpochResult]) -> "Figure":
    """Plot what is minimised, by epoch, on training and validation rows."""
    from matplotlib.figure import Figure  # not pyplot: it would look for a screen to draw on
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=next(iter(epochs[0].train.values)))
    numbers = [epoch.epoch for epoch in epochs]
    axes.plot(numbers, [epoch.train.loss for epoch in epochs], marker="o", label="train")
    if epochs[0].validation:
        axes.plot(numbers, [epoch.score for epoch in epochs], marker="o", label="validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def _requirements() -> list[str]:
    """Return the exact versions in use, as they are published: torch's ``+cpu`` is of an index of its own."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in MODEL_REQUIREMENTS]


def _log_model(checkpoint: Path, example: Mapping[str, str]) -> None:
    """Log the model with its code, so that it needs nothing but public packages where it is loaded."""
    import mlflow

    folders = [str(Path(str(package.__file__)).parent) for package in (featurestore, training)]
    columns = [mlflow.types.ColSpec("string", name) for name in example]
    inputs, output = mlflow.types.Schema(columns), mlflow.types.Schema([mlflow.types.ColSpec("float")])
    mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"checkpoint": str(checkpoint)},
        code_paths=folders,
        pip_requirements=_requirements(),
        signature=mlflow.models.ModelSignature(inputs, output),
        input_example=pa.Table.from_pylist([example]).to_pandas(),
    )


def set_model() -> None:
    """Tell MLflow, which is executing `pyfunc_model.py`, what the model is."""
    import pandas as pd

    import mlflow

    class SlotModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # untyped
        """Raw feature values, a DataFrame of text, to ratings or probabilities."""

        def load_context(self, context: Any) -> None:  # noqa: ANN401  # mlflow.pyfunc.PythonModelContext
            self.predictor = Predictor.load(context.artifacts["checkpoint"])

        def predict(self, model_input: pd.DataFrame) -> npt.NDArray[np.float32]:
            return self.predictor.predict(pa.Table.from_pandas(model_input, preserve_index=False))

    mlflow.models.set_model(SlotModel())
