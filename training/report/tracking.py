"""A page in MLflow: with the run it is about, or in a run of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featurestore.errors import TrainingError
from training.report.run import ReportedRun
from training.tracking import TrackedRun, experiment_of, known_run, quieten, tracking_at

_REPORT = "report"
"""The tag that finds the run of a snapshot's page again, and the folder of pages among a run's artifacts."""


@contextmanager
def _mlflow(store: Path) -> Iterator[Any]:
    quieten()
    import mlflow

    try:
        with tracking_at(store):
            yield mlflow
    except mlflow.MlflowException as error:
        raise TrainingError(f"MLflow failed: {error}\n--no-tracking writes the page without it.") from error


def log_page(path: Path, store: Path, snapshot: str, run: ReportedRun | None) -> TrackedRun:
    """Keep a page among the artifacts of a run.

    That is the run of MLFLOW_RUN_ID, which `mlflow run` sets; or the one that the page is about, where this
    record has it; or one for all pages of the snapshot, where those about a run are in a folder of its name.

    Args:
        path: the page.
        store: the folder whose record it is where MLflow is not pointed elsewhere.
        snapshot: id of the snapshot.
        run: what the page is about beside it.

    Raises:
        TrainingError: MLflow fails.
    """
    with _mlflow(store) as mlflow:
        client = mlflow.MlflowClient()
        own = known_run(run.checkpoint.tracked) if run else None
        run_id = (
            os.environ.get("MLFLOW_RUN_ID") or own or _run_of(client, experiment_of(store, None), snapshot)
        )
        client.log_artifact(run_id, str(path), f"{_REPORT}/{run.name}" if run and run_id != own else _REPORT)
        experiment = client.get_run(run_id).info.experiment_id
        return TrackedRun(run_id, experiment, mlflow.get_tracking_uri())


def _run_of(client: Any, experiment: str, snapshot: str) -> str:  # noqa: ANN401  # MlflowClient
    """Return the run for the pages of a snapshot, made where it is missing."""
    found = client.search_runs([experiment], f"tags.{_REPORT} = '{snapshot}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {_REPORT: snapshot, "snapshot.id": snapshot}
    run_id = str(client.create_run(experiment, tags=tags, run_name=f"report-{snapshot}").info.run_id)
    client.set_terminated(run_id)
    return run_id
