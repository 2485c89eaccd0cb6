"""Benchmark: what the advice of `slotstore advise` costs, and what it loses, against training everything.

    slotstore compare --store STORE --budgets 1.0x,0.1x,0.02x --seeds 5      (the sweep; its cells are kept)
    python tests/benchmarks/regret.py --store STORE --budgets 1.0x,0.1x,0.02x --seeds 5

The sweep trains every layout with every seed; what is missing of it is trained here. Costs are seconds of
training. Regret is the mean test metric of the best layout of the sweep less that of the advised one, both
over all seeds, which the advice has not seen: it has one seed, and chooses by validation rows.

    advised   the best layout after the advice's trainings     regret     lost by taking it
    stored    the best that a store can hold                   regret     lost by taking that
    cost      seconds of the advice's trainings over the sweep's, and how many these are
"""

import argparse
import functools
import os
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from featurestore.layouts import LAYOUTS
from featurestore.store import FeatureStore
from training.comparison.advice import advise
from training.comparison.arguments import read_budgets
from training.comparison.command import plan_cells
from training.comparison.data import load_coded
from training.comparison.kept import comparison_folder, held
from training.comparison.pool import run_cells
from training.comparison.setup import Cell, Setup, watched


def main():
    """Print a row for each budget."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--budgets", default="1.0x,0.1x,0.02x")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=Setup.epochs)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    setup = Setup(epochs=args.epochs)
    with FeatureStore(args.store) as store:
        coded, folder, spec = load_coded(store, setup), comparison_folder(store, setup), store.spec
    names = ["bytes", "sweep's best", "advised", "regret", "stored", "regret", "cost"]
    table = Table(*names, title=f"{args.seeds} seeds, {watched(setup.label)} on test rows")
    with held(folder, setup):
        train = functools.partial(
            run_cells, coded=coded, setup=setup, folder=folder, jobs=args.jobs, record=lambda *_: None
        )
        for floats in read_budgets(args.budgets, coded.values * setup.dim):
            table.add_row(*judge(spec, coded, setup, floats, train, args.seeds))
    Console(width=120).print(table)


def judge(spec, coded, setup, floats, train, seeds):
    """Return the row of a budget."""
    advice = advise(spec, coded, setup, floats, train)
    cells, _ = plan_cells(list(LAYOUTS), [floats], seeds, coded, setup)
    cells += [Cell(advice.storable.layout, floats, seed) for seed in range(seeds)]
    results, quality = train(cells), watched(setup.label)
    means = {
        layout: statistics.fmean(each.test[quality] for each in results if each.layout == layout)
        for layout in {each.layout for each in results}
    }
    sweep = {layout: mean for layout, mean in means.items() if layout in LAYOUTS}
    best = max(sweep, key=sweep.get)
    cost = sum(each.seconds for each in advice.trained)
    whole = sum(each.seconds for each in results if each.layout in LAYOUTS)
    told = [f"{each.layout} {means[each.layout]:.4f}" for each in (advice.best, advice.storable)]
    lost = [f"{sweep[best] - means[each.layout]:.4f}" for each in (advice.best, advice.storable)]
    return (
        f"{4 * floats:,}",
        f"{best} {sweep[best]:.4f}",
        told[0],
        lost[0],
        told[1],
        lost[1],
        f"{cost / whole:.1%}, {len(advice.trained)} of {sum(each.layout in LAYOUTS for each in results)}",
    )


if __name__ == "__main__":
    main()
