"""A comparison in MLflow: one run for all of it, a run below it for each cell, the table and the plot."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import TrainingError
from training.comparison.kept import figures_folder
from training.comparison.ranking import Standing
from training.comparison.setup import Cell, CellResult, Setup, watched
from training.tracking import experiment_of, quieten, tracking_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARENT, _COMPARISON, _CELL, _EXPLAINED = "mlflow.parentRunId", "comparison", "cell", "explained"


@contextlib.contextmanager
def record_comparison(folder: Path, setup: Setup) -> Iterator["ComparisonRecorder"]:
    """Open the run of a comparison: the one it has already, or a new one.

    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_ID and MLFLOW_RUN_ID are honoured, as in `training.tracking`.

    Args:
        folder: the comparison's, STORE/comparisons/DIGEST; its name finds the run again.
        setup: recorded as parameters.

    Raises:
        TrainingError: MLflow fails.
    """
    quieten()
    import mlflow

    store = folder.parents[1]
    try:
        with tracking_at(store):
            recorder = ComparisonRecorder(mlflow.MlflowClient(), experiment_of(store, None), folder, setup)
            try:
                yield recorder
            except BaseException as error:
                recorder.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise
            recorder.end("FINISHED")
    except mlflow.MlflowException as error:
        raise TrainingError(f"MLflow failed: {error}\n--no-tracking compares without it.") from error


class ComparisonRecorder:
    """Records cells, each once however often a comparison is gone on with."""

    def __init__(self, client: Any, experiment: str, folder: Path, setup: Setup) -> None:  # noqa: ANN401  # MlflowClient
        self._client, self._setup = client, setup
        self.run_id = os.environ.get("MLFLOW_RUN_ID") or self._known(experiment, folder.name)
        if self.run_id is None:
            tags, name = {_COMPARISON: folder.name}, f"compare-{folder.name}"
            self.run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        self._experiment = client.get_run(self.run_id).info.experiment_id
        client.update_run(self.run_id, "RUNNING")
        for name, value in dataclasses.asdict(setup).items():
            client.log_param(self.run_id, f"compare_{name}", value)
        self._folder = folder
        known = self._search(f"tags.`{_PARENT}` = '{self.run_id}'")
        self._runs = {run.data.tags[_CELL]: run.info.run_id for run in known}
        self._explained = {run.data.tags[_CELL] for run in known if _EXPLAINED in run.data.tags}

    def _known(self, experiment: str, digest: str) -> str | None:
        self._experiment = experiment
        found = self._search(f"tags.{_COMPARISON} = '{digest}'")
        return found[0].info.run_id if found else None

    def _search(self, condition: str) -> list[Any]:
        """Return all runs of the experiment for which a condition holds."""
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], condition, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def add(self, cell: Cell, result: CellResult) -> None:
        """Record a cell as a run below that of the comparison, and its measures where it has some."""
        if cell.name not in self._runs:
            self._runs[cell.name] = self._add_run(cell, result)
        if result.measures and cell.name not in self._explained:
            run_id = self._runs[cell.name]
            self._client.log_dict(run_id, dict(result.measures), "measures.json")
            drawn = figures_folder(self._folder, cell)
            if drawn.is_dir():
                self._client.log_artifacts(run_id, str(drawn), "figures")
            self._client.set_tag(run_id, _EXPLAINED, "yes")
            self._explained.add(cell.name)

    def _add_run(self, cell: Cell, result: CellResult) -> str:
        from mlflow.entities import Metric, Param

        tags = {_PARENT: self.run_id, _CELL: cell.name}
        run_id: str = self._client.create_run(self._experiment, tags=tags, run_name=cell.name).info.run_id
        now, quality = int(time.time() * 1000), watched(self._setup.label)
        values = {f"test_{name}": value for name, value in result.test.items()}
        values |= {"bytes": result.bytes, "seconds": result.seconds, "best_epoch": result.best_epoch}
        metrics = [Metric(name, value, now, 0) for name, value in values.items()]
        metrics += [
            Metric(f"validation_{quality}", value, now, epoch) for epoch, value in enumerate(result.curve, 1)
        ]
        settings = {"layout": result.layout, "seed": result.seed, "budget": result.budget}
        params = [Param(name, str(value)) for name, value in settings.items()]
        self._client.log_batch(run_id, metrics[:1000], params)  # MLflow takes no more at a time
        self._client.set_terminated(run_id)
        return run_id

    def finish(self, standings: Sequence[Standing], table: str) -> None:
        """Record the result of all cells: as text, as JSON, as a plot."""
        client = self._client
        client.log_text(self.run_id, table, "comparison.txt")
        client.log_dict(self.run_id, [each.to_dict() for each in standings], "comparison.json")
        client.log_figure(self.run_id, pareto(standings, watched(self._setup.label)), "pareto.png")

    def end(self, status: str) -> None:
        """Close the run."""
        self._client.set_terminated(self.run_id, status)


def pareto(standings: Sequence[Standing], quality: str) -> "Figure":
    """Plot quality against budgets, a line for each layout, with the deviation over seeds."""
    from matplotlib.figure import Figure  # not pyplot: it would look for a screen to draw on

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="budget, bytes", ylabel=f"test {quality}", xscale="log")
    for layout in sorted({each.layout for each in standings}):
        points = sorted((each for each in standings if each.layout == layout), key=lambda each: each.budget)
        values, deviations = zip(*(each.quality for each in points), strict=True)
        sizes = [each.budget for each in points]
        axes.errorbar(sizes, values, deviations, marker="o", capsize=2, label=layout)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return figure
