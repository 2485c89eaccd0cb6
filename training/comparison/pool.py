"""The cells of a comparison, trained several at a time, each kept in a file as soon as it is done."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from featurestore.errors import TrainingError
from training.comparison.cell import run_cell
from training.comparison.data import Coded
from training.comparison.figures import figures
from training.comparison.kept import figures_folder, read_cell, write_cell
from training.comparison.measures import Measures
from training.comparison.setup import Cell, CellResult, Setup
from training.config import installed


def run_cells(
    cells: Sequence[Cell],
    coded: Coded,
    setup: Setup,
    folder: Path,
    jobs: int,
    record: Callable[[Cell, CellResult], None],
    explain: Collection[Cell] = (),
) -> list[CellResult]:
    """Train the cells that no earlier run has, several at a time, each on one thread; return all of them.

    ``record`` is called with every cell, kept or new, as soon as it is there. Those to ``explain`` have their
    measures, and drawings of these in ``folder`` where matplotlib is installed: see `figures_folder`.

    Raises:
        TrainingError: a worker died, or a cell's metric is undefined. What is done stays done.
        ArtifactError: a cell cannot be written.
    """
    kept = {cell: read_cell(folder, cell) for cell in cells}
    for cell in explain:
        found = kept.get(cell)
        kept[cell] = None if found is None or found.measures is None else found
    missing = [cell for cell in cells if kept[cell] is None]
    for cell, result in kept.items():
        if result is not None:
            record(cell, result)
    with _progress() as progress:
        task = progress.add_task("cells", total=len(cells), completed=len(cells) - len(missing))
        work = _Work(coded, setup, folder, frozenset(explain))
        for cell, made in _trained(missing, work, jobs):
            write_cell(folder, cell, made)
            kept[cell] = made
            record(cell, made)
            progress.advance(task)
            progress.update(task, description=f"{cell.name} {next(iter(made.test.values())):.4f}")
    return [result for result in kept.values() if result is not None]


def _progress() -> Progress:
    parts = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*parts, console=Console(stderr=True))


@dataclass(frozen=True)
class _Work:
    coded: Coded
    setup: Setup
    folder: Path
    explain: frozenset[Cell]


_WORK: _Work
"""What a worker process trains on, set once when it starts."""


def _start_worker(work: _Work) -> None:
    global _WORK  # noqa: PLW0603  # set once in each worker, before its first cell
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _WORK = work


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _work(cell: Cell) -> CellResult:
    explain = functools.partial(_draw, figures_folder(_WORK.folder, cell)) if cell in _WORK.explain else None
    return run_cell(cell, _WORK.coded, _WORK.setup, explain)


def _draw(folder: Path, measures: Measures) -> None:
    """Draw measures, where matplotlib is installed."""
    if not installed("matplotlib"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(measures).items():
        figure.savefig(folder / f"{name}.png", dpi=120)


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let SIGINT wait; processes that are started meanwhile never get it.

    They inherit what this thread blocks. That is not enough for this process, where another thread may take
    the signal: its handler, which runs in the main one, would break off what a worker is being told there.
    """
    with contextlib.ExitStack() as after:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        after.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        if threading.current_thread() is threading.main_thread():
            came: list[int] = []
            handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
            after.callback(_raise_one, came)
            after.callback(signal.signal, signal.SIGINT, handler)
        yield


def _raise_one(signals: Sequence[int]) -> None:
    if signals:
        signal.raise_signal(signals[0])


def _trained(cells: Sequence[Cell], work: _Work, jobs: int) -> Iterator[tuple[Cell, CellResult]]:
    """Yield each cell as it is done, in whatever order that is."""
    if not cells:
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(jobs, len(cells)), multiprocessing.get_context("spawn"), _start_worker, (work,)
    )
    try:
        with _ctrl_c_held_back():  # from the workers, which start here: it is the parent that ends them
            waiting = {pool.submit(_work, cell): cell for cell in cells}
        for done in concurrent.futures.as_completed(waiting):
            yield waiting[done], done.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a worker of the comparison died, perhaps for want of memory: the cells that were done are kept; "
            "run the same command again, with fewer --jobs"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):  # there is no public way to end them
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
