"""`slotstore utilization`: how the rows of a trained table are used."""

import contextlib
import json
from collections.abc import Callable, Iterator

import click
import rich.progress
from rich.console import Console

from featurestore.options import SNAPSHOT_ID, json_option, store_option
from featurestore.paths import AnyPath, local_folder
from featurestore.store import FeatureStore
from training.checkpoint import load_checkpoint
from training.run_folder import find_model
from training.utilization.report import measure_utilization
from training.utilization.scores import scored_split

EPILOG = """\b
Examples:
  slotstore utilization --store store                            # the best epoch of the newest run
  slotstore utilization 20260101-120000-1a2b --store store --split validation
  slotstore utilization store/checkpoints/RUN/best.pt --store store --json"""

run_argument = click.argument("run", default="latest", metavar="[RUN]")
model_snapshot_option = click.option(
    "--snapshot",
    "snapshot_id",
    type=SNAPSHOT_ID,
    metavar="ID",
    help="A snapshot, or the start of its id. Default: the one that the model was trained on.",
)
split_option = click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    help="The examples to predict. Default: test, or validation where that is empty.",
)


@click.command("utilization", epilog=EPILOG)
@run_argument
@store_option
@model_snapshot_option
@split_option
@json_option
def command(run: str, *, store: AnyPath, snapshot_id: str | None, split: str | None, as_json: bool) -> None:
    """Show how the table of a trained model is used.

    Rows that no value has or training never touched, rows that values share and features dominate, norms by
    load, and the metrics of examples whose values collide beside those whose values do not. RUN is a run's
    folder, its name or a part of it, latest (the default), or a checkpoint file.
    """
    path = find_model(run, local_folder(store) / "checkpoints")
    checkpoint = load_checkpoint(path, mmap=True)
    with (
        FeatureStore(store, snapshot_id or checkpoint.snapshot) as opened,
        scoring(opened, split) as (chosen, advance),
    ):
        found = measure_utilization(opened, checkpoint, path, chosen, advance)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found), nl=as_json)


@contextlib.contextmanager
def scoring(store: FeatureStore, split: str | None) -> Iterator[tuple[str, Callable[[int], None]]]:
    """Yield the split to predict, and what shows on stderr, where that is a terminal, how far it has come."""
    split = split or scored_split(store)
    console = Console(stderr=True)
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(split, total=store.splits.rows[split])
        yield split, lambda more: bar.advance(task, more)
