"""`slotstore train`: flags, progress and summary around `training.job`."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from featurestore.options import store_option
from training.config import DEVICES, TrainConfig
from training.job import TrainResult, train
from training.progress import Progress, epoch_table
from training.tracking import next_command

__all__ = ["TrainConfig", "TrainResult", "command", "train"]

_FOLDER = click.Path(path_type=Path, file_okay=False)

EPILOG = """\b
Examples:
  slotstore train --store store
  slotstore train --store store --epochs 20 --batch-size 8192 --lr 0.01
  slotstore train --store store --snapshot 4761317f9857 --device cuda --no-tracking
  slotstore train --store store --resume store/checkpoints/RUN/best.pt --epochs 20
  MLFLOW_TRACKING_URI=http://localhost:5000 slotstore train --store store

The best epoch is the one with the lowest validation RMSE, or log loss where the label is binary."""


class _TrainCommand(click.Command):
    """Checks all options together as soon as they are parsed: `slotstore run` does so before it ingests."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            TrainConfig(**{name: value for name, value in ctx.params.items() if name != "as_json"})
        return rest


_Function = Callable[..., None]


def _option(flag: str, kind: Any, text: str, field: str | None = None) -> Callable[[_Function], _Function]:  # noqa: ANN401  # whatever click takes
    """Declare an option for a field of TrainConfig, with its default."""
    name = field or flag.removeprefix("--").replace("-", "_")
    default = getattr(TrainConfig, name)
    return click.option(flag, name, type=kind, default=default, show_default=default is not None, help=text)


@click.command("train", cls=_TrainCommand, epilog=EPILOG)
@store_option
@_option("--snapshot", str, "A snapshot, or the start of its id.")
@_option("--device", click.Choice(DEVICES), "auto is cuda where there is one.")
@_option("--epochs", int, "Most epochs to train.")
@_option("--batch-size", int, "Rows of a training batch.")
@_option("--lr", float, "Learning rate of Adam.", "learning_rate")
@_option("--weight-decay", float, "L2 penalty.")
@_option("--patience", int, "Epochs in a row without a better one that end the training.")
@_option("--seed", int, "Of the initial weights and the shuffles.")
@_option("--buffer-rows", int, "Rows held in memory, 36 bytes each at 8 lookups; more are streamed.")
@_option("--threads", int, "CPU threads of torch. Default: as torch chooses.")
@_option("--experiment", str, "MLflow experiment. Default: $MLFLOW_EXPERIMENT_ID, or slotstore.")
@_option("--run-name", str, "Name of the run in MLflow, and the end of its checkpoint folder's.")
@_option("--checkpoint-dir", _FOLDER, "Folder for best.pt. Default: STORE/checkpoints/RUN.")
@_option("--resume", click.Path(path_type=Path), "Go on from a checkpoint, up to --epochs.")
@click.option(
    "--tracking/--no-tracking",
    default=True,
    help="Record the run in MLflow, at $MLFLOW_TRACKING_URI or in STORE/mlflow.db. Default: yes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(*, as_json: bool, **options: Any) -> None:  # noqa: ANN401  # the fields of TrainConfig
    """Train a model on the slots of a snapshot and keep its best epoch.

    Shows each epoch as it ends; the model is one file, which `slotstore predict` reads.
    """
    config = TrainConfig(**options)
    with Progress(config.epochs) as progress:
        result = train(config, [progress])
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else summary(result, config))


def summary(result: TrainResult, config: TrainConfig) -> str:
    """Return what happened, and what can be done next, for a person."""
    best = next((epoch for epoch in result.epochs if epoch.epoch == result.best_epoch), None)
    judged = f": validation {best.validation}" if best and best.validation else ""
    lines = [
        epoch_table(result.epochs),
        f"snapshot    {result.snapshot} in {config.store}",
        f"best epoch  {result.best_epoch}{judged}",
        f"test        {result.test or 'the test split is empty'}",
        f"speed       {result.rows_per_second:,.0f} rows/s on {result.device}",
        f"checkpoint  {result.checkpoint}",
        *([f"tracked     run {result.tracked.run_id}"] if result.tracked else []),
        "",
        "Try next:",
        f"  slotstore predict {shlex.join([str(result.checkpoint), *_words(result.example)])}",
        *([f"  {next_command(result.tracked)}"] if result.tracked else []),
    ]
    return "\n".join(lines)


def _words(example: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in example.items()]


if __name__ == "__main__":
    from featurestore.cli import run_command

    run_command(command)
