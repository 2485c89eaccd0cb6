"""Advice on a table: a few trainings at the bytes that there are, instead of every layout many times."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.errors import TrainingError
from featurestore.hashing import default_seed
from featurestore.layouts import NEED_NO_VOCABULARY, make_plan, mixed_dims, parse_layout
from featurestore.occupancy import all_shared_probability, sharing_probability
from featurestore.plans import FLOAT_BYTES, Projected, TooSmall
from featurestore.spec import Feature, FeatureSpec, Label, Table
from training.comparison.curve import LEAST_POINTS, Curve, fit_curve
from training.comparison.data import Coded
from training.comparison.setup import Cell, CellResult, Setup, watched

Train = Callable[[Sequence[Cell]], list[CellResult]]
"""Trains cells, or takes what is kept of them."""

STORABLE = "unified_narrow:small=2"
"""The layout whose slots a store can hold. With six lookups for every feature ml-100k has half as many
columns more, for differences that `slotstore compare` shows to be within the deviation over seeds."""

CANDIDATES = ("mixed_dim", STORABLE, "exact_lowdim")
"""The layouts that were best, or level with it, at some budget where all were compared; the oftener the
earlier."""

TIGHT = (STORABLE, "robe")
"""The same where there is less than a float a value: there hashing was best, in one way or another."""

TIE = 0.002
"""About the deviation of an AUC over seeds on 7,000 rows. What is no further behind counts as level."""

STEP = 4
"""Between the sizes that a curve is fitted to: the budget and two more, no larger than the collision-free
table where that is possible, and else smaller."""

TARGET_SHARES = (0.01, 0.03, 0.1, 0.3)
MOST_BEYOND = 4
"""How many times the collision-free table's size advice by a target may come to."""


@dataclass(frozen=True)
class Advice:
    """What to do with so many bytes.

    best: the candidate that validates best. storable: the one whose slots a store can hold, and ``spec`` the
    spec for it. curve: of ``storable``'s layout, None where too few sizes work. trained: all that was
    trained for it. outlooks: what each feature is to expect.
    """

    budget: int
    best: CellResult
    storable: CellResult
    spec: FeatureSpec
    curve: Curve | None
    trained: tuple[CellResult, ...]
    outlooks: tuple["FeatureOutlook", ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "budget": self.budget,
            "best": self.best.to_dict(),
            "storable": self.storable.to_dict(),
            "spec": self.spec.to_dict(),
            "curve": dataclasses.asdict(self.curve) if self.curve else None,
            "trained": [each.to_dict() for each in self.trained],
            "features": [dataclasses.asdict(each) for each in self.outlooks],
        }


def advise(spec: FeatureSpec, coded: Coded, setup: Setup, floats: int, train: Train) -> Advice:
    """Train the candidates once each at a budget, and the storable one at two other sizes too.

    Args:
        spec: the store's.
        coded: the rows.
        setup: what all trainings share.
        floats: the budget, at least 1: the storable layout fits any.
        train: trains cells.
    """
    candidates = CANDIDATES if floats >= coded.values else TIGHT
    first = train(_fitting(candidates, coded, setup, [floats]))
    stored = next(each for each in first if each.layout == STORABLE)
    others = other_sizes(floats, coded.values * setup.dim)
    line = [stored, *train(_fitting([STORABLE], coded, setup, others))]
    enough = len({each.bytes for each in line}) >= LEAST_POINTS
    curve = fit_curve([each.bytes for each in line], _validated(line, setup)) if enough else None
    trained = {(each.layout, each.budget): each for each in (*first, *line)}
    new = storable_spec(spec, stored, coded, setup)
    return Advice(
        budget=floats * FLOAT_BYTES,
        best=_best(first, setup, candidates),
        storable=stored,
        spec=new,
        curve=curve,
        trained=tuple(trained.values()),
        outlooks=tuple(outlooks(coded, new, setup, floats)),
    )


def other_sizes(floats: int, exact_floats: int) -> list[int]:
    """Return two more sizes to learn from, in floats: larger ones while they are no larger than the exact."""
    larger = [size for size in (floats * STEP, floats * STEP**2) if size <= exact_floats]
    smaller = [size for size in (floats // STEP, floats // STEP**2) if size]
    return [*larger, *smaller][:2]


def _fitting(layouts: Sequence[str], coded: Coded, setup: Setup, sizes: Sequence[int]) -> list[Cell]:
    cells = []
    for layout, floats in itertools.product(layouts, sizes):
        try:
            make_plan(layout, coded.fields, setup.dim, floats)
        except TooSmall:
            continue
        cells.append(Cell(layout, floats, 0))
    return cells


def _validated(results: Sequence[CellResult], setup: Setup) -> list[float]:
    return [each.validation[watched(setup.label)] for each in results]


def _best(results: Sequence[CellResult], setup: Setup, candidates: Sequence[str]) -> CellResult:
    """Return the first candidate that validates best, or level with it: test rows choose nothing."""
    scores = _validated(results, setup)
    sign = 1 if setup.label.is_binary else -1
    top = max(sign * score for score in scores)
    level = [each for each, score in zip(results, scores, strict=True) if sign * score >= top - TIE]
    return min(level, key=lambda each: candidates.index(each.layout))


def floats_for(loss: float, coded: Coded, setup: Setup, train: Train) -> int:
    """Return the floats with which `STORABLE` is foretold to reach a loss on validation rows.

    It is trained at `TARGET_SHARES` of the collision-free table's size.

    Raises:
        TrainingError: the curve never comes so low, or fewer sizes work than a curve needs.
    """
    whole = coded.values * setup.dim
    found = train(_fitting([STORABLE], coded, setup, [int(share * whole) for share in TARGET_SHARES]))
    losses = [each.validation[loss_of(setup.label)] for each in found]
    try:
        curve = fit_curve([each.bytes for each in found], losses)
    except ValueError as error:
        raise TrainingError(f"the vocabulary is too small for advice by a target: {error}") from error
    size = curve.size_for(loss)
    if size is None or size > MOST_BEYOND * whole * FLOAT_BYTES:
        pairs = zip(losses, found, strict=True)
        tried = ", ".join(f"{value:.4f} at {each.bytes:,} bytes" for value, each in pairs)
        raise TrainingError(
            f"no table is foretold to reach a {loss_of(setup.label)} of {loss}: {STORABLE} had {tried}, "
            f"which levels off at {curve.limit:.4f}; more data or another network might"
        )
    return max(1, round(size) // FLOAT_BYTES)


def loss_of(label: Label) -> str:
    """Return the metric that a target is given in."""
    return "log_loss" if label.is_binary else "rmse"


@dataclass(frozen=True)
class Target:
    """A loss that was asked for, and what the advised table reached of it on validation rows."""

    metric: str
    wanted: float
    layout: str
    bytes: int
    found: float
    met: bool

    def __str__(self) -> str:
        how = "met" if self.met else f"missed by {self.found - self.wanted:.4f}: ask for a lower one"
        return (
            f"target: {self.metric} {self.wanted:g} on validation rows; "
            f"{self.layout} in {self.bytes:,} bytes has {self.found:.4f}: {how}"
        )


def reached(advice: Advice, setup: Setup, wanted: float) -> Target:
    """Return whether the layout that an ingestion stores reached a loss, as it was foretold to."""
    metric, stored = loss_of(setup.label), advice.storable
    found = stored.validation[metric]
    return Target(metric, wanted, stored.layout, stored.bytes, found, found <= wanted)


def storable_spec(spec: FeatureSpec, result: CellResult, coded: Coded, setup: Setup) -> FeatureSpec:
    """Return a spec with the slots of a trained `unified_narrow`: the same lookups, seeds and rows."""
    plan = make_plan(result.layout, coded.fields, setup.dim, result.budget // FLOAT_BYTES)
    assert isinstance(plan, Projected)
    features = tuple(
        Feature(each.name, each.column, tuple(default_seed(each.name, k) for k in range(slots.shape[1])))
        for each, slots in zip(spec.features, plan.slots, strict=True)
    )
    table = Table(plan.num_rows, plan.width, plan.dim)
    return dataclasses.replace(spec, name=f"{spec.name}-advised", table=table, features=features)


@dataclass(frozen=True)
class FeatureOutlook:
    """What a feature's values are to expect.

    lookups: of a value in the advised spec. shared, all_shared: the share of its values that are expected to
    have a slot, and every slot, that others use too there: uniform hashes, see `featurestore.occupancy`.
    floats: that `mixed_dim` gives its values at the budget, a mean over examples. hashed: values that get
    none there.
    """

    feature: str
    values: int
    lookups: int
    shared: float
    all_shared: float
    floats: float
    hashed: int


def outlooks(coded: Coded, spec: FeatureSpec, setup: Setup, floats: int) -> list[FeatureOutlook]:
    """Foretell collisions and floats of each feature, from the vocabulary alone."""
    counts = [len(feature.seeds) for feature in spec.features]
    uses = sum(count * len(field) for count, field in zip(counts, coded.fields, strict=True))
    dims = mixed_dims(coded.fields, setup.dim, floats)
    found = []
    for field, count, each in zip(coded.fields, counts, dims, strict=True):
        chance = uses - count, spec.table.num_slots
        shared, all_shared = sharing_probability(count, *chance), all_shared_probability(count, *chance)
        mean, hashed = float(np.average(each, weights=field.counts)), int((each == 0).sum())
        found.append(FeatureOutlook(field.name, len(field), count, shared, all_shared, mean, hashed))
    return found


def needs_no_vocabulary(layout: str) -> bool:
    """Return whether a layout, with its parameters, finds values by their hashes alone."""
    return parse_layout(layout).name in NEED_NO_VOCABULARY


def spec_toml(spec: FeatureSpec, comments: Sequence[str]) -> str:
    """Return a spec as the TOML that `slotstore ingest --spec` reads, with comments above it."""
    plain = spec.to_dict()
    lines = [*(f"# {comment}" for comment in comments), f"name = {json.dumps(plain['name'])}"]
    for title in ("table", "features", "label", "split"):
        sections = plain[title] if isinstance(plain[title], list) else [plain[title]]
        for section in sections:
            lines += ["", f"[[{title}]]" if title == "features" else f"[{title}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in section.items() if _is_said(value)]
    return "\n".join(lines) + "\n"


def _is_said(value: object) -> bool:
    return value is not None and value != []
