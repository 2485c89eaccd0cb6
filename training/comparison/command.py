"""`slotstore compare`: every layout at every budget with every seed, on all cores, kept cell by cell."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from featurestore.errors import SpecError
from featurestore.layouts import LAYOUTS, make_plan
from featurestore.options import json_option, snapshot_option, store_option
from featurestore.output import table_text
from featurestore.paths import AnyPath
from featurestore.plans import FLOAT_BYTES, TooSmall
from featurestore.spec import Label
from featurestore.store import FeatureStore
from training.comparison.arguments import read_budgets, read_layouts, read_setup, setup_options
from training.comparison.data import Coded, load_coded
from training.comparison.explained import EXPLAINED_COLUMNS, LEGEND, explained_rows
from training.comparison.kept import comparison_folder, held
from training.comparison.pool import run_cells
from training.comparison.ranking import REFERENCE, Standing, check_fair, columns, rows, standings
from training.comparison.setup import PAPER_LABEL, Cell, CellResult, Setup
from training.comparison.tracking import ComparisonRecorder, record_comparison
from training.comparison.verdicts import PUBLISHED_COLUMNS, beside_published, dictionary_notes, verdicts
from training.config import installed

BUDGETS = "1.0x,0.5x,0.1x,0.02x"

EPILOG = """\b
Examples:
  slotstore compare --store store
  slotstore compare --store store --layouts unified,unified_narrow,per_feature --budgets 0.1x,0.02x
  slotstore compare --store store --budgets 8KiB,100000 --seeds 2 --json
  slotstore compare --store store --layouts robe,unified_narrow:lookups=6:signs=0,unified_narrow
  slotstore compare --store store --label rating                # RMSE of ratings instead of AUC

Layouts: """ + ", ".join(LAYOUTS)


@click.command("compare", epilog=EPILOG)
@store_option
@snapshot_option
@click.option(
    "--layouts",
    default=",".join(LAYOUTS),
    help="Names, with parameters as in unified:lookups=2. Default: all.",
)
@click.option(
    "--budgets", default=BUDGETS, show_default=True, help="Bytes, or shares of the exact table's: 0.1x."
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=5, show_default=True)
@setup_options
@click.option("--jobs", type=click.IntRange(1), default=None, help="Cells at a time. Default: one a core.")
@click.option(
    "--explain",
    is_flag=True,
    help="Measure why, for the first seed of each layout and budget: gradients, readouts, norms, collisions.",
)
@click.option(
    "--tracking/--no-tracking",
    default=True,
    help="Record it in MLflow, a run for each cell below one for all. Default: yes.",
)
@json_option
def command(
    *, store: AnyPath, snapshot_id: str | None, layouts: str, budgets: str, seeds: int,
    jobs: int | None, explain: bool, tracking: bool, as_json: bool, **settings: Any,  # noqa: ANN401  # click's
) -> None:  # fmt: skip
    """Compare memory layouts at equal bytes: which embedding table is best for your data?

    Every layout is trained at every budget with every seed: the same rows, label, network and stopping rule.
    The rows are cut 80/10/10 by a hash. 1.0x is the bytes of a collision-free table of width D. A cell that
    has been trained is kept in STORE/comparisons, and never trained again.
    """
    if tracking:
        _check_tracking()
    with FeatureStore(store, snapshot_id) as opened:
        setup = read_setup(opened.spec.label, **settings)
        names = read_layouts(layouts)
        coded = load_coded(opened, setup)
        sizes = read_budgets(budgets, coded.values * setup.dim)
        folder = comparison_folder(opened, setup)
    cells, misfits = plan_cells(names, sizes, seeds, coded, setup)
    if not cells:
        raise SpecError("compare", [str(misfit) for misfit in misfits])
    with held(folder, setup), _recorder(folder, setup, tracking=tracking) as recorder:
        record = recorder.add if recorder else _leave
        explained = [cell for cell in cells if cell.seed == 0] if explain else []
        results = run_cells(cells, coded, setup, folder, jobs or os.cpu_count() or 1, record, explained)
        notes = [*check_fair(results), *dictionary_notes([each.layout for each in results], coded.values)]
        found = standings(results, setup.label)
        text = _report(found, misfits, notes, setup, coded.values * setup.dim)
        if explained:
            text += f"\n{table_text(EXPLAINED_COLUMNS, explained_rows(results))}{LEGEND}"
        if recorder:
            recorder.finish(found, text)
    if as_json:
        answer = _machine_readable(found, misfits, notes, setup.label)
        if explained:
            answer["measures"] = [each.to_dict() for each in results if each.measures]
        click.echo(json.dumps(answer, indent=1))
        return
    click.echo(text + f"Cells: {folder}")


def _recorder(
    folder: Path, setup: Setup, *, tracking: bool
) -> contextlib.AbstractContextManager[ComparisonRecorder | None]:
    return record_comparison(folder, setup) if tracking else contextlib.nullcontext()


def _check_tracking() -> None:
    missing = [name for name in ("mlflow", "matplotlib") if not installed(name)]
    if missing:
        remedy = "pip install 'slotstore[track]', or compare without it: --no-tracking"
        raise SpecError("compare", [f"tracking needs {' and '.join(missing)}: {remedy}"])


def _leave(_: Cell, __: CellResult) -> None:
    """Record nothing."""


def _report(
    found: Sequence[Standing],
    misfits: Sequence[TooSmall],
    notes: Sequence[str],
    setup: Setup,
    exact_floats: int,
) -> str:
    """Return what a person reads: the table, the published figures beside ours, what it comes to."""
    parts = [table_text(columns(setup.label), rows(found, misfits))]
    if any(each.against for each in found):
        parts.append(f"p: Welch's t-test against {REFERENCE}\n")
    if setup.label == PAPER_LABEL and (published := beside_published(found, exact_floats)):
        parts.append("\n" + table_text(PUBLISHED_COLUMNS, published))
    parts.append("\n" + "".join(f"{verdict}\n" for verdict in verdicts(found, setup.label)))
    return "".join(parts) + "".join(f"note: {note}\n" for note in notes)


def _machine_readable(
    found: Sequence[Standing], misfits: Sequence[TooSmall], notes: Sequence[str], label: Label
) -> dict[str, Any]:
    too_small = [
        {"layout": each.layout, "budget": each.floats * FLOAT_BYTES, "smallest": each.smallest * FLOAT_BYTES}
        for each in misfits
    ]
    return {
        "standings": [each.to_dict() for each in found],
        "too_small": too_small,
        "notes": notes,
        "verdicts": verdicts(found, label),
    }


def plan_cells(
    layouts: Sequence[str], budgets: Sequence[int], seeds: int, coded: Coded, setup: Setup
) -> tuple[list[Cell], list[TooSmall]]:
    """Return the cells that can be trained, seed by seed, and what does not fit."""
    fitting, misfits = [], []
    for floats in budgets:
        for layout in layouts:
            try:
                make_plan(layout, coded.fields, setup.dim, floats)
            except TooSmall as error:
                misfits.append(error)
            else:
                fitting.append((layout, floats))
    return [Cell(layout, floats, seed) for seed in range(seeds) for layout, floats in fitting], misfits
