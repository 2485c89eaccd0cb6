"""`slotstore prune-table`: a trained model without the rows that no value has."""

import json
from pathlib import Path

import click

from featurestore.options import json_option, store_option
from featurestore.paths import AnyPath, local_folder
from featurestore.store import FeatureStore
from training.checkpoint import load_checkpoint
from training.run_folder import find_model
from training.utilization.command import model_snapshot_option, run_argument, scoring, split_option
from training.utilization.pruning import prune_table

EPILOG = """\b
Examples:
  slotstore prune-table --store store --output pruned.pt         # the best epoch of the newest run
  slotstore prune-table 20260101-120000-1a2b --store store --output pruned.pt --json
  slotstore predict pruned.pt user_id=1 movie_id=1193 gender=F age=1 occupation=10 zip=48067

The rows kept are those of all values of the snapshot's vocabulary. All other slots lead to one row, the mean
of the rows that go: a value that the vocabulary does not have gets that row, or a kept one where its hash
leads there, as before. `slotstore snapshots prune` is another thing: it removes old snapshots."""


@click.command("prune-table", epilog=EPILOG)
@run_argument
@store_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="The file to write; a new one."
)
@model_snapshot_option
@split_option
@json_option
def command(
    run: str, *, store: AnyPath, output: Path, snapshot_id: str | None, split: str | None, as_json: bool
) -> None:
    """Write a trained model without the rows of its table that no value has.

    It predicts the same for all values of the snapshot, bit for bit, which is checked before it is written.
    It cannot be trained on. RUN is named as for `slotstore utilization`.
    """
    path = find_model(run, local_folder(store) / "checkpoints")
    checkpoint = load_checkpoint(path, mmap=True)
    with (
        FeatureStore(store, snapshot_id or checkpoint.snapshot) as opened,
        scoring(opened, split) as (chosen, advance),
    ):
        found = prune_table(opened, checkpoint, path, output, chosen, advance)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found), nl=as_json)
