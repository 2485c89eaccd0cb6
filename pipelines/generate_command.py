"""The command `slotstore generate`: flags, progress and summary around `pipelines.synthetic`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featurestore.errors import SourceError, SpecError
from pipelines.synthetic import DATA_FILES, generate, is_complete
from pipelines.synthetic_shape import SyntheticShape, parse_shape


@click.command(
    "generate",
    short_help="Write MovieLens-shaped files of any size.",
    epilog="\b\nExamples:\n  slotstore generate ml-1m fake-1m\n  slotstore generate 10m fake-10m --seed 7",
)
@click.argument("shape")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every draw.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier output in OUT, whatever its shape.")
def command(shape: str, out: Path, *, seed: int, overwrite: bool) -> None:
    """Write MovieLens-shaped ratings, users and movies into the folder OUT.

    SHAPE is "ml-1m" (1,000,209 ratings, 6,040 users, 3,883 movies) or a number of ratings: 500k, 10m, 1b,
    10_000_000. The files have the `.dat` format of MovieLens-1M, its long tails and a structure a model
    can learn. The same SHAPE and seed give the same bytes; if OUT holds them already, they are kept.
    """
    wanted = _parse_or_explain(shape, seed)
    started = time.perf_counter()
    try:
        reused = not overwrite and is_complete(wanted, out)
        with _progress_bar(wanted.rows) as report:
            generate(wanted, out, report, overwrite=overwrite)
    except OSError as error:
        raise SourceError(f"{out}: cannot write the files: {error}; nothing was left there") from error
    click.echo(_summary(wanted, out, None if reused else time.perf_counter() - started))


def _parse_or_explain(text: str, seed: int) -> SyntheticShape:
    try:
        return parse_shape(text, seed)
    except ValueError as error:
        raise SpecError("slotstore generate", [str(error)]) from error


@contextmanager
def _progress_bar(rows: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, if that is a terminal; yield what moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("ratings"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("ratings", total=rows)
        yield lambda written: bar.update(task, completed=written)


def _summary(shape: SyntheticShape, out: Path, seconds: float | None) -> str:
    what = f"{shape.rows:,} ratings by {shape.users:,} users of {shape.movies:,} movies"
    if seconds is None:
        return f"{out}: {what} were already there"
    megabytes = sum((out / name).stat().st_size for name in DATA_FILES) / 1e6
    return f"{out}: wrote {what} ({megabytes:,.1f} MB) in {seconds:.1f} s"
