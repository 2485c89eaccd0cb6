"""`slotstore advise`: which table for so many bytes, after a few trainings."""

import dataclasses
import functools
import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from featurestore.errors import ArtifactError, SpecError
from featurestore.layouts import SMALL_VALUES
from featurestore.options import OUTPUT_FILE, json_option, snapshot_option, store_option
from featurestore.output import table_text, whole_file
from featurestore.paths import AnyPath
from featurestore.spec import FeatureSpec
from featurestore.store import FeatureStore
from training.comparison.advice import (
    TIE,
    Advice,
    FeatureOutlook,
    advise,
    floats_for,
    needs_no_vocabulary,
    reached,
    spec_toml,
)
from training.comparison.arguments import read_budgets, read_setup, setup_options
from training.comparison.data import Coded, load_coded
from training.comparison.kept import comparison_folder, held
from training.comparison.pool import run_cells
from training.comparison.setup import Cell, CellResult, Setup, watched
from training.comparison.verdicts import dictionary_notes

EPILOG = """\b
Examples:
  slotstore advise --store store --budget 1MiB --output advised.toml
  slotstore reslot --store store --spec advised.toml
  slotstore advise --store store --budget 0.1x --json
  slotstore advise --store store --target-loss 0.40
"""


@click.command("advise", epilog=EPILOG)
@store_option
@snapshot_option
@click.option("--budget", help="Bytes, or a share of the collision-free table's: 0.1x.")
@click.option("--target-loss", type=float, help="Instead: log loss, or RMSE of ratings, on validation rows.")
@click.option("--output", "-o", type=OUTPUT_FILE, help="Write the advised spec to this file; replace it.")
@setup_options
@click.option(
    "--jobs", type=click.IntRange(1), default=None, help="Trainings at a time. Default: one a core."
)
@json_option
def command(
    *, store: AnyPath, snapshot_id: str | None, budget: str | None, target_loss: float | None,
    output: Path | None, jobs: int | None, as_json: bool, **settings: Any,  # noqa: ANN401  # click's
) -> None:  # fmt: skip
    """Advise on the embedding table for a budget: which layout, how many lookups, what more bytes would buy.

    A few candidates are trained once each, in the set-up of `slotstore compare`, and compared on validation
    rows. What is trained is kept with the cells of comparisons, and taken from there. The one whose slots
    a store can hold, a table of narrow rows, becomes a spec, which needs no other ingestion.
    """
    if (budget is None) == (target_loss is None):
        raise SpecError("advise", ["give either --budget or --target-loss"])
    if target_loss is not None and not 0 < target_loss < math.inf:
        raise SpecError("--target-loss", [f"expected a number above 0, got {target_loss}"])
    with FeatureStore(store, snapshot_id) as opened:
        setup = read_setup(opened.spec.label, **settings)
        coded = load_coded(opened, setup)
        floats = _read_budget(budget, coded.values * setup.dim) if budget is not None else 0
        folder, spec = comparison_folder(opened, setup), opened.spec
    with held(folder, setup):
        train = functools.partial(_train, coded, setup, folder, jobs or os.cpu_count() or 1)
        if target_loss is not None:
            floats = floats_for(target_loss, coded, setup, train)
        advice = advise(spec, coded, setup, floats, train)
    target = None if target_loss is None else reached(advice, setup, target_loss)
    reasons = [*([str(target)] if target else []), *why(advice, setup)]
    if output:
        _write(output, advice.spec, reasons)
    if as_json:
        told = {"target": target and dataclasses.asdict(target), "why": reasons}
        click.echo(json.dumps(advice.to_dict() | told, indent=1))
        return
    click.echo(_table(advice, setup), nl=False)
    click.echo(_features(advice), nl=False)
    for reason in reasons:
        click.echo(reason)
    if output:
        where = ["--store", str(store), *(["--snapshot", snapshot_id] if snapshot_id else [])]
        reslot = shlex.join(["slotstore", "reslot", *where, "--spec", str(output)])
        click.echo(f"wrote {output}. Try next:\n  {reslot}\n  {_train_words(store, setup)}")


def _train_words(store: AnyPath, setup: Setup) -> str:
    """Return the training that is nearest to those of the advice: it has the network's default sizes."""
    settings = {
        "store": store, "model": setup.model, "batch-size": setup.batch_size, "lr": setup.learning_rate,
        "weight-decay": setup.weight_decay, "epochs": setup.epochs, "patience": setup.patience,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return shlex.join(["slotstore", "train", *words])


def _read_budget(text: str, exact_floats: int) -> int:
    sizes = read_budgets(text, exact_floats, "--budget")
    if len(sizes) != 1:
        raise SpecError("--budget", [f"expected one budget, got {len(sizes)}"])
    return sizes[0]


def _train(coded: Coded, setup: Setup, folder: Path, jobs: int, cells: Sequence[Cell]) -> list[CellResult]:
    return run_cells(cells, coded, setup, folder, jobs, lambda *_: None)


def _table(advice: Advice, setup: Setup) -> str:
    metric, sign = watched(setup.label), 1 if setup.label.is_binary else -1
    names = ["layout", "bytes", "vocabulary", f"validation {metric}", f"test {metric}", "seconds"]
    rows = [
        (
            each.layout,
            f"{each.bytes:,}",
            "not needed" if needs_no_vocabulary(each.layout) else "needed",
            f"{each.validation[metric]:.4f}",
            f"{each.test[metric]:.4f}",
            f"{each.seconds:.1f}",
        )
        for each in sorted(advice.trained, key=lambda each: (-each.budget, -sign * each.validation[metric]))
    ]
    return table_text(names, rows)


def _features(advice: Advice) -> str:
    """Return what each feature is to expect of the advised spec, and what `mixed_dim` would give it."""
    names = [
        "feature",
        "values",
        "lookups",
        "share a slot",
        "share all",
        "floats by count",
        "left to hashing",
    ]
    rows = [
        (
            each.feature,
            f"{each.values:,}",
            str(each.lookups),
            f"{each.shared:.1%}",
            f"{each.all_shared:.1%}",
            f"{each.floats:.1f}",
            f"{each.hashed:,}",
        )
        for each in advice.outlooks
    ]
    return "\n" + table_text(names, rows) + "\n"


def why(advice: Advice, setup: Setup) -> list[str]:
    """Return the advice in sentences."""
    metric, best, stored = watched(setup.label), advice.best, advice.storable
    sign = 1 if setup.label.is_binary else -1
    gap = sign * (best.validation[metric] - stored.validation[metric])
    quality = f"{metric} {best.validation[metric]:.4f} on validation rows"
    level = f"the best, or within {TIE} of it and oftener the best"
    told = [f"{advice.budget:,} bytes: {best.layout}, {quality}: {level}"]
    if best.layout != stored.layout:
        side = "behind" if gap > 0 else "ahead, within the tie"
        told.append(f"a store can hold {stored.layout}, {abs(gap):.4f} {side}")
    told.append(f"spec: all features share {advice.spec.table}; {_lookups(advice)}")
    told.append(_apart(advice.outlooks))
    told += dictionary_notes([best.layout], sum(each.values for each in advice.outlooks))
    if curve := advice.curve:
        here = curve.at(stored.bytes)
        told.append(
            f"twice the bytes would change {metric} by {curve.at(2 * stored.bytes) - here:+.4f}, half of "
            f"them by {curve.at(stored.bytes / 2) - here:+.4f}; a size that the curve has not seen it "
            f"foretells to {curve.spread:.4f}"
        )
    label = json.dumps(dataclasses.asdict(setup.label))
    told.append(
        f"measured with the label {label}, rows cut by a hash; the spec keeps the store's label and split"
    )
    told.append("one training of each: differences of some thousandths may be chance")
    return told


def _apart(outlooks: Sequence[FeatureOutlook]) -> str:
    """Tell which features deserve rows of their own, where a vocabulary can be kept, and which hash well."""
    whole = [each.feature for each in outlooks if not each.hashed]
    hashed = [f"{each.hashed:,} rare values of {each.feature}" for each in outlooks if each.hashed]
    kept = f"all values of {', '.join(whole)}" if whole else "no feature as a whole"
    return f"with a vocabulary (mixed_dim): apart {kept}; shared {' and '.join(hashed) or 'none'}"


def _lookups(advice: Advice) -> str:
    counts = [each.lookups for each in advice.outlooks]
    small = f", {min(counts)} where that has fewer than {SMALL_VALUES} values" if len(set(counts)) > 1 else ""
    return f"{sum(counts)} lookups an example, {max(counts)} a feature{small}"


def _write(output: Path, spec: FeatureSpec, reasons: list[str]) -> None:
    try:
        with whole_file(output) as file:
            file.write(spec_toml(spec, reasons).encode())
    except OSError as error:
        raise ArtifactError(f"cannot write {output}: {error}") from error
