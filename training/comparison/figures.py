"""The measures of `training.comparison.interference` as figures, one for each."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from training.comparison.measures import COLLISIONS, Doubles, Measures, RowLoads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# M. Okabe, K. Ito, "Color Universal Design", 2008: told apart by the colour-blind.
COLOURS = {"own": "#0072B2", "clean": "#0072B2", "within": "#D55E00", "between": "#56B4E9"}
SHIFTS = {"clean": -0.25, "within": 0.0, "between": 0.25}
MARKERS = {"clean": "o", "within": "s", "between": "^"}
EXPECTED = "black"

FEWEST_EXAMPLES = 100
"""Metrics of fewer test examples are not drawn: they are noise, and stretch the axis."""
MOST_NUMBERS = 12
"""Features up to which a matrix has its numbers written in."""

NAMES = {"log_loss": "log loss, nats", "auc": "AUC", "rmse": "RMSE, stars", "mae": "MAE, stars"}


def figures(measures: Measures) -> dict[str, "Figure"]:
    """Draw all measures, by name.

    ``gradient_shares``, ``readout_angles``, ``norms_and_load``, ``collided_and_clean``.
    """
    makers: Sequence[Callable[[Measures], Figure]] = (
        gradient_shares,
        readout_angles,
        norms_and_load,
        collided_and_clean,
    )
    return {maker.__name__: maker(measures) for maker in makers}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot: it would look for a screen to draw on

    return Figure(figsize=(width, height), layout="constrained")


def _height(measures: Measures) -> float:
    return 2.2 + 0.42 * len(measures.features)


def _by_feature(axes: "Axes", measures: Measures) -> None:
    """Name the features down the axis, the first on top."""
    axes.set_yticks(range(len(measures.features)), measures.features)
    axes.set_ylim(len(measures.features) - 0.5, -0.5)


def _matrix(axes: "Axes", measures: Measures, numbers: Doubles, most: float, form: str) -> None:
    """Draw a number for each two features, dark for 0 and light for ``most``."""
    axes.imshow(numbers, cmap="cividis", vmin=0, vmax=most, aspect="auto")
    _by_feature(axes, measures)
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(measures.features)), measures.features, **turned)
    if len(measures.features) <= MOST_NUMBERS:
        for (row, column), number in np.ndenumerate(numbers):
            colour = "black" if number > most / 2 else "white"
            told = "–" if np.isnan(number) else format(number, form)
            ink = "black" if np.isnan(number) else colour
            axes.text(column, row, told, ha="center", va="center", fontsize="small", color=ink)


def gradient_shares(measures: Measures) -> "Figure":
    """Draw whose gradients the rows get, from which feature, and how much of it lies along the readout."""
    found = measures.gradients
    panels = 2 if found.within_aligned is None else 3
    figure = _figure(4.7 * panels, _height(measures))
    shares, arriving, *rest = figure.subplots(1, panels)
    left = np.zeros(len(measures.features))
    for name in ("own", "within", "between"):
        part = np.nan_to_num(getattr(found, name))
        label = {"own": "own", "within": "other values of the feature", "between": "other features"}[name]
        shares.barh(range(len(part)), part, left=left, color=COLOURS[name], label=label, height=0.7)
        left = left + part
    _by_feature(shares, measures)
    shares.set(xlim=(0, 1), xlabel="share of a row's gradient energy", title="Whose gradients rows get")
    _legend_below(shares, figure, 3)
    _matrix(arriving, measures, found.arriving, 1, ".2f")
    arriving.set(title="Share of the energy by feature", xlabel="from", ylabel="in the rows of")
    if found.within_aligned is not None and found.between_aligned is not None:
        _aligned(rest[0], measures, {"within": found.within_aligned, "between": found.between_aligned})
        _legend_below(rest[0], figure, 2)
    return figure


def _legend_below(axes: "Axes", figure: "Figure", columns: int) -> None:
    """Put the legend below the axis and its label, where no data is."""
    from matplotlib.transforms import ScaledTranslation

    below = axes.transAxes + ScaledTranslation(0, -0.55, figure.dpi_scale_trans)  # inches, however high
    style: dict[str, Any] = {"ncols": columns, "fontsize": "small", "frameon": False}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, **style)


def _aligned(axes: "Axes", measures: Measures, parts: dict[str, Doubles]) -> None:
    for shift, (name, part) in zip((-0.18, 0.18), parts.items(), strict=True):
        label = {"within": "of other values of the feature", "between": "of other features"}[name]
        places = np.arange(len(part)) + shift
        axes.barh(places, np.nan_to_num(part), height=0.34, color=COLOURS[name], label=label)
    expected = 1 / measures.gradients.width
    axes.axvline(expected, color=EXPECTED, linestyle="--", label=f"random direction, {expected:.2g}")
    _by_feature(axes, measures)
    axes.set(xlim=(0, 1), xlabel="share of that energy", title="Gradients along the feature's readout")


def readout_angles(measures: Measures) -> "Figure":
    """Draw the angles between the features' readout directions, beside those of random directions."""
    readouts = measures.readouts
    figure = _figure(10, _height(measures) + 0.6)
    matrix, pairs = figure.subplots(1, 2)
    _matrix(matrix, measures, readouts.degrees, 90, ".0f")
    matrix.set_title("Angles between readouts, degrees")
    mean, deviation = readouts.random
    dim = readouts.directions.shape[1]
    pairs.axhspan(mean - deviation, min(90, mean + deviation), color="0.88", label="their deviation")
    pairs.axhline(mean, color=EXPECTED, linestyle="--", label=f"mean of random lines in {dim} dimensions")
    jitter = np.random.default_rng(0)
    kinds = (("share a row", True, "between"), ("share none", False, "clean"))
    for place, (_, sharing, colour) in enumerate(kinds):
        angles = readouts.pairs(sharing=sharing)
        places = place + jitter.uniform(-0.15, 0.15, len(angles))
        pairs.scatter(places, angles, color=COLOURS[colour], edgecolor="black", linewidth=0.5, zorder=3)
        if len(angles):
            pairs.plot(
                [place - 0.25, place + 0.25], [angles.mean()] * 2, color="black", linewidth=2, zorder=4
            )
    labels = [f"{name}\n({len(readouts.pairs(sharing=sharing))} pairs)" for name, sharing, _ in kinds]
    pairs.set_xticks(range(len(kinds)), labels)
    every = [*readouts.pairs(sharing=True), *readouts.pairs(sharing=False)]
    lowest = max(0, min([mean - deviation, *every]) - 15)  # room for the legend
    pairs.set(xlim=(-0.5, 1.5), ylim=(lowest, 92), ylabel="angle, degrees", title="Pairs and their mean")
    pairs.legend(fontsize="small", loc="lower center")
    return figure


def norms_and_load(measures: Measures) -> "Figure":
    """Draw the norms of rows against the values that they hold, and against their traffic."""
    from matplotlib.ticker import MaxNLocator

    rows = measures.rows
    figure = _figure(10, 4.2)
    by_load, by_traffic = figure.subplots(1, 2, sharey=True)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(rows.norms))
    dots = {"s": 9, "alpha": 0.35, "linewidth": 0, "rasterized": True}
    by_load.scatter(rows.loads + jitter, rows.norms, color=COLOURS["own"], label="rows", **dots)
    centres, means = _means(rows)
    by_load.plot(centres, means, "D-", color=EXPECTED, markersize=5, label="mean by class of loads")
    by_load.set(xlabel="values in the row", ylabel="L2 norm of the row", title="By load", ylim=(0, None))
    by_load.legend(fontsize="small")
    used = rows.traffic > 0
    drawn = by_traffic.scatter(
        rows.traffic[used], rows.norms[used], c=rows.loads[used], cmap="cividis", **{**dots, "alpha": 0.8}
    )
    by_traffic.set(xscale="log", xlabel="training examples of these values", title="By traffic")
    figure.colorbar(drawn, ax=by_traffic, label="values in the row", ticks=MaxNLocator(integer=True))
    return figure


def _means(rows: RowLoads) -> tuple[list[float], list[float]]:
    """Return mean load and mean norm of each class of loads."""
    classes = [chosen for _, chosen in rows.classes()]
    return [float(rows.loads[each].mean()) for each in classes], [
        float(rows.norms[each].mean()) for each in classes
    ]


def collided_and_clean(measures: Measures) -> "Figure":
    """Draw the metrics of test examples by feature and by what the value shares its rows with."""
    metrics = _metrics(measures)
    figure = _figure(5.2 * max(1, len(metrics)), _height(measures) + 0.2)
    panels = figure.subplots(1, max(1, len(metrics)), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=False):
        for kind in COLLISIONS:
            _kind(axes, measures, metric, kind)
        axes.set(xlabel=NAMES.get(metric, metric))
        axes.margins(x=0.2)
        axes.grid(visible=True, axis="x", alpha=0.3)
    for axes in panels:
        _by_feature(axes, measures)
    labels = {
        "clean": "shares no row",
        "within": "shares with its feature",
        "between": "shares with other features only",
    }
    handles = panels[0].get_legend_handles_labels()
    figure.legend(handles[0], [labels[kind] for kind in handles[1]], loc="outside lower center", ncols=3)
    figure.suptitle(f"Test examples by their value (how many; not drawn below {FEWEST_EXAMPLES})")
    return figure


def _metrics(measures: Measures) -> list[str]:
    """Return the metrics that any of the drawn groups has."""
    scores = [each.scores for kinds in measures.collisions.values() for each in kinds.values()]
    return list(dict.fromkeys(name for each in scores if each is not None for name in each.values))


def _kind(axes: "Axes", measures: Measures, metric: str, kind: str) -> None:
    """Draw a metric of one kind of values, with the number of examples beside each point."""
    drawn = []
    for number, feature in enumerate(measures.features):
        found = measures.collisions[feature][kind]
        if found.scores is None or found.examples < FEWEST_EXAMPLES or metric not in found.scores.values:
            continue
        drawn.append((found.scores.values[metric], number + SHIFTS[kind], found.examples))
    points = [point[:2] for point in drawn]
    axes.plot(
        [value for value, _ in points],
        [place for _, place in points],
        MARKERS[kind],
        color=COLOURS[kind],
        markeredgecolor="black",
        label=kind,
    )
    for value, place, count in drawn:
        offset: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points"}
        axes.annotate(f"{count:,}", (value, place), va="center", fontsize="x-small", **offset)
