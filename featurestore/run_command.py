"""`slotstore run`: the whole way once, from raw files to a trained model, by calling the other commands."""

import shlex

import click
from click.core import ParameterSource

from featurestore.cli import load
from featurestore.options import FOLDER
from featurestore.paths import AnyPath

DEFAULT_SOURCE = "synthetic:ml-1m"

EPILOG = """\b
Examples:
  slotstore run
  slotstore run --source data/ml-1m --store store --epochs 5
  slotstore run --source data/ml-100k --spec article --no-tracking

Every other option goes to `slotstore train` (--epochs, --batch-size, --device, ...)."""

NEXT = (
    'query "SELECT title, count(*) AS n FROM train GROUP BY ALL ORDER BY n DESC LIMIT 5"',
    "query \"SELECT slot('user_id', '1193', 0)\"",
    "features",
)
"""Commands to try when it is done."""


@click.command(
    "run", epilog=EPILOG, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.option("--source", help=f"Folder of MovieLens files, or synthetic:ROWS. Default: {DEFAULT_SOURCE}.")
@click.option(
    "--store",
    type=FOLDER,
    default="store",
    show_default=True,
    help="Folder or URL of the store; made if missing.",
)
@click.option(
    "--spec", metavar="NAME|FILE", help="A shipped spec or a TOML file. Default: what fits the source."
)
@click.option(
    "--max-reject-ratio", type=float, default=0.0, show_default=True, help="As in `slotstore ingest`."
)
@click.pass_context
def command(
    ctx: click.Context, source: str | None, store: AnyPath, spec: str | None, max_reject_ratio: float
) -> None:
    """Ingest, show the splits, train and show the result.

    Without --source it makes up ratings shaped like ml-1m, which have a structure to learn.
    """
    train_args = ["--store", str(store), *ctx.args]
    _check_training(train_args)
    if source is None:
        click.echo(
            f"No --source given: using {DEFAULT_SOURCE}, made-up ratings of the same shape as MovieLens 1M.\n"
            "For the real ones: slotstore download ml-1m && slotstore run --source data/ml-1m\n"
        )
    ingest_args = [source or DEFAULT_SOURCE, "--store", str(store)]
    if max_reject_ratio:
        ingest_args += ["--max-reject-ratio", str(max_reject_ratio)]
    _step("ingest", [*ingest_args, *(["--spec", spec] if spec else [])])
    _step("splits", ["--store", str(store)])
    _step("train", train_args)
    quoted = shlex.quote(str(store))
    click.echo("Try next:\n" + "\n".join(f"  slotstore {text} --store {quoted}" for text in NEXT))


def _check_training(args: list[str]) -> None:
    """Tell a wrong option of training before the ingestion."""
    context = load("train").make_context("slotstore train", list(args))
    for name, flag in (("as_json", "--json"), ("snapshot", "--snapshot"), ("resume", "--resume")):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag} is for `slotstore train`, not for `slotstore run`")


def _step(name: str, args: list[str]) -> None:
    click.secho(f"== slotstore {name} {shlex.join(args)}", bold=True)
    load(name).main(args=args, prog_name=f"slotstore {name}", standalone_mode=False)
    click.echo()
