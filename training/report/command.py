"""`slotstore report`: a snapshot, and a run trained on it, as one page."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from featurestore.errors import ArtifactError, SpecError
from featurestore.options import OUTPUT_FILE, json_option, snapshot_option, store_option
from featurestore.output import progress_bar, whole_file
from featurestore.paths import AnyPath, local_folder
from featurestore.store import FeatureStore
from training.config import installed
from training.report.build import build_report
from training.report.run import open_run
from training.report.tracking import log_page
from training.tracking import next_command

EPILOG = """\b
Examples:
  slotstore report --store store                                 # the newest snapshot
  slotstore report --store store --run latest --output run.html  # with the newest training
  slotstore report --store store --snapshot 7ceb28de --no-tracking

The page is one file that needs no network. Every chart tells its values under the mouse, by the arrow keys
and in a table. Quality against bytes comes from what `slotstore compare` and `advise` have trained."""


@click.command("report", epilog=EPILOG)
@store_option
@snapshot_option
@click.option("--run", help="A run: its folder, its name or a part of it, latest, or a checkpoint file.")
@click.option(
    "--output",
    "-o",
    type=OUTPUT_FILE,
    default=Path("report.html"),
    show_default=True,
    help="The file to write; one that is there is replaced.",
)
@click.option("--tracking/--no-tracking", default=True, help="Keep the page in MLflow too. Default: yes.")
@json_option
def command(
    *, store: AnyPath, snapshot_id: str | None, run: str | None, output: Path, tracking: bool, as_json: bool
) -> None:
    """Write a page about a snapshot: one HTML file, with charts, to look at and to send around.

    Sources, counts and rejects; features and their values; the splits over time; which features share slots
    and how these are loaded; quality against bytes; with --run the learning curves of a training, and its
    predictions beside the truth. The snapshot is that of the run, or the newest.
    """
    _check(tracking=tracking)
    reported = None if run is None else open_run(run, local_folder(store) / "checkpoints")
    chosen = snapshot_id or (reported.checkpoint.snapshot if reported else None)
    with FeatureStore(store, chosen) as opened, progress_bar(Console(stderr=True)) as bar:
        page = build_report(opened, reported, _Bar(bar)).html()
        snapshot = opened.snapshot.manifest.id
    size = _write(output, page)
    tracked = None
    if tracking:
        tracked = log_page(output, local_folder(store), snapshot, reported)
    if as_json:
        answer = {"output": str(output), "bytes": size, "snapshot": snapshot}
        answer |= {"run": reported and reported.name, "mlflow_run": tracked and tracked.run_id}
        click.echo(json.dumps(answer, indent=1))
        return
    click.echo(f"page      {output}, {size:,} bytes: open it in a browser")
    if tracked:
        click.echo(f"MLflow    run {tracked.run_id}, among its artifacts: {next_command(tracked)}")


def _check(*, tracking: bool) -> None:
    """Raise SpecError, before any work, where the page could not be kept."""
    if tracking and not installed("mlflow"):
        remedy = "pip install 'slotstore[track]', or give --no-tracking"
        raise SpecError("report", [f"tracking needs mlflow: {remedy}"])


def _write(output: Path, page: str) -> int:
    """Write a page and return its bytes."""
    try:
        with whole_file(output) as file:
            return file.write(page.encode())
    except OSError as error:
        raise ArtifactError(f"cannot write {output}: {error}") from error


class _Bar:
    """Shows on a bar which section of a page is made, and how far it is."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._task = bar, bar.add_task("reading", total=None)

    def begin(self, title: str, steps: int) -> None:
        self._bar.reset(self._task, description=title, total=steps)

    def advance(self, steps: int) -> None:
        self._bar.advance(self._task, steps)
