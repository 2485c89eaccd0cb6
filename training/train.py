"""`slotstore train`: flags, progress and summary around `training.job`."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from featurestore.options import SNAPSHOT_ID, lookups_option, store_option
from training.allocator import keep_freed_memory
from training.config import TrainConfig, flag
from training.feed import CHOICES
from training.job import TrainResult, train
from training.models import MODELS
from training.optimizers import LARGEST_LR, OPTIMIZERS
from training.progress import Progress, epoch_table
from training.resuming import load_resumed_config
from training.step import PRECISIONS, STEPS
from training.tracking import next_command

__all__ = ["TrainConfig", "TrainResult", "command", "train"]

_FOLDER = click.Path(path_type=Path, file_okay=False)

EPILOG = """\b
Examples:
  slotstore train --store store
  slotstore train --store store --epochs 20 --batch-size 8192 --lr 0.01
  slotstore train --store store --snapshot 4761317f9857 --device cuda --no-tracking
  slotstore train --store store --num-slots 100000            # another table, without ingesting again
  slotstore train --store store --resume latest               # a killed run, as if it had not been
  slotstore train --store store --resume 20260101-120000-1a2b --epochs 20
  torchrun --nproc-per-node 4 -m training.train --store store --shard-table
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


def _option(
    field: str,
    kind: Any,  # noqa: ANN401  # whatever click takes
    text: str,
    metavar: str | None = None,
) -> Callable[[_Function], _Function]:
    """Declare the option for a field of TrainConfig, with its default."""
    default = getattr(TrainConfig, field)
    shown = default is not None
    return click.option(
        flag(field), field, type=kind, default=default, show_default=shown, help=text, metavar=metavar
    )


@click.command("train", cls=_TrainCommand, epilog=EPILOG)
@store_option
@_option("snapshot", SNAPSHOT_ID, "A snapshot, or the start of its id.")
@_option(
    "num_slots", int, "Rows of the table: a snapshot of so many slots is made of that one, or found.", "N"
)
@lookups_option
@_option("model", click.Choice(list(MODELS)), "The network over the shared table.")
@_option("device", str, "cpu, cuda or cuda:N; auto is cuda where there is one.")
@_option("epochs", int, "Most epochs to train, those of a resumed run included.")
@_option("batch_size", int, "Rows of a training batch, of all ranks together.")
@_option("learning_rate", float, f"Learning rate of Adam, at most {LARGEST_LR:g}.")
@_option(
    "weight_decay",
    float,
    "Adam adds it to the gradient (L2); rowwise_adagrad takes it off the table's weights.",
)
@_option("clip_norm", float, "Scale gradients down to this norm. Default: they are left alone.")
@_option("optimizer", click.Choice(OPTIMIZERS), "rowwise_adagrad: a step touches its batch's rows alone.")
@_option("table_learning_rate", float, f"Learning rate of rowwise_adagrad's table, at most {LARGEST_LR:g}.")
@click.option(
    "--shard-table", is_flag=True, help="With torchrun: each rank holds a part of the table's rows, not all."
)
@_option("patience", int, "Epochs in a row without a better one that end the training.")
@_option("seed", int, "Of the initial weights and the shuffles.")
@_option("feed", click.Choice(CHOICES), "Where the slots wait: auto takes the fastest place that they fit.")
@_option("window_rows", int, "Rows shuffled together; a split of no more is permuted as a whole.")
@_option("step", click.Choice(STEPS), "How a step is run: torch.compile, a CUDA graph, or as it is written.")
@_option("precision", click.Choice(PRECISIONS), "Of the network's matrix products.")
@_option("threads", int, "CPU threads of torch. Default: as torch chooses.")
@_option("checkpoint_seconds", float, "Between two checkpoints within an epoch.")
@click.option("--profile", is_flag=True, help="Show where the time goes, and keep a trace of some steps.")
@_option("experiment", str, "MLflow experiment. Default: $MLFLOW_EXPERIMENT_ID, or slotstore.")
@_option("run_name", str, "Name of the run in MLflow, and the end of its checkpoint folder's.")
@_option("checkpoint_dir", _FOLDER, "Folder of the checkpoints. Default: STORE/checkpoints/RUN.")
@_option("resume", str, "Go on with a run: its folder, a part of its name, latest, or a checkpoint file.")
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
    if config.resume is not None:
        config = load_resumed_config(config, _given())
    keep_freed_memory()
    with Progress(config.epochs) as progress:
        result = train(config, [progress])
    if result.rank == 0:
        click.echo(json.dumps(result.to_dict(), indent=1) if as_json else summary(result, config))


def _given() -> dict[str, Any]:
    """Return the options that were typed, which go before those of the run that is resumed."""
    context = click.get_current_context()
    typed = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {
        name: value for name, value in context.params.items() if context.get_parameter_source(name) in typed
    }


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
        *([f"time        {result.profile}"] if result.profile else []),
        *([f"trace       {result.profile.trace}"] if result.profile and result.profile.trace else []),
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
