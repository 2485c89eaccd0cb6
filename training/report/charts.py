"""Rows of plain values to charts: Vega-Lite specifications, made and checked by Altair.

The only file that knows Altair. No chart has a colour of its own for text and lines: `CONFIG` gives them that
of the page around them, so that they are readable where it is light and where it is dark. What a mark says
under the mouse it says to screen readers too, and to the arrow keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

Rows = Sequence[Mapping[str, Any]]

TEXT = "currentColor"
"""The colour of the page's text."""
COLORS = (
    "#3b7dd8", "#d9701a", "#2e9455", "#d6453d", "#8b63c7", "#1a92a0", "#cf5a9b",
    "#8c8a1e", "#a2683a", "#7d7d7d", "#5b6ee1", "#b8860b", "#4f9a2f", "#b04fb8",
)  # fmt: skip
"""Each stands out from white and from near black: its contrast with either is at least 3 to 1."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
"""No number of them divides that of the colours, so that 70 names differ in colour or shape."""
SPLITS = ("train", "validation", "test")
MOST_NAMES = 12
"""Rows of a heat map that have room for numbers in the cells, and lines that can be told apart."""

CONFIG: Mapping[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "text": {"color": TEXT},
    "rule": {"color": TEXT},
    "tick": {"color": TEXT},
    "axis": {
        "labelColor": TEXT, "titleColor": TEXT, "domainColor": TEXT, "tickColor": TEXT,
        "gridColor": TEXT, "gridOpacity": 0.15, "labelFontSize": 12, "titleFontSize": 12,
    },
    "legend": {
        "labelColor": TEXT, "titleColor": TEXT, "labelFontSize": 12, "titleFontSize": 12,
        "orient": "top", "columns": 3, "labelLimit": 140,
    },
    "range": {"category": list(COLORS)},
}  # fmt: skip
"""What the charts of a page share."""

_SCHEME: Literal["viridis"] = "viridis"
_DARK_BELOW = 0.55
"""The part of the colour scale on which white text is readable; on the rest black is."""
_HEIGHT, _STEP = 260, 44
_SHARE = alt.Legend(format="%", orient="top", gradientLength=160)
_SAID = "said"
"""The field of what a mark says."""


def _chart(rows: Rows, **titles: str) -> alt.Chart:
    """Return a chart whose marks say, under the mouse and to a screen reader, some fields of their rows.

    Args:
        rows: what is drawn.
        titles: by field its title and, after a bar, its number's format, as in ``n="examples|,d"``.
    """
    told = {field: (title, form) for field, (title, _, form) in _parted(titles)}
    said = [{**row, _SAID: _sentence(row, told)} for row in rows]
    tips = [_tip(field, title, form) for field, (title, form) in told.items()]
    return alt.Chart(alt.InlineData(values=said)).encode(tooltip=tips, description=f"{_SAID}:N")


def _parted(titles: Mapping[str, str]) -> list[tuple[str, tuple[str, str, str]]]:
    return [(field, text.partition("|")) for field, text in titles.items()]


def _sentence(row: Mapping[str, Any], told: Mapping[str, tuple[str, str]]) -> str:
    fields = ((title, row[field], form) for field, (title, form) in told.items())
    return "; ".join(f"{title}: {format(value, form)}" for title, value, form in fields if value is not None)


def _tip(field: str, title: str, form: str) -> alt.Tooltip:
    if form:
        return alt.Tooltip(field=field, type="quantitative", title=title, format=form)
    return alt.Tooltip(field=field, type="nominal", title=title)


def _silent(rows: Rows) -> alt.Chart:
    """Return a chart of marks that only help to read the others."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def _done(chart: alt.Chart | alt.LayerChart | alt.FacetChart, height: int = _HEIGHT) -> dict[str, Any]:
    """Return a chart as wide as the page lets it be."""
    made: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    del made["config"]  # Altair's defaults; the page has its own
    return made


def _colors(field: str, title: str | None, names: Sequence[str], known: Sequence[str] = ()) -> alt.Color:
    return alt.Color(field=field, type="nominal", title=title, scale=_scale(names, COLORS, known))


def _shapes(field: str, title: str | None, names: Sequence[str], known: Sequence[str] = ()) -> alt.Shape:
    return alt.Shape(field=field, type="nominal", title=title, scale=_scale(names, SHAPES, known))


def _scale(names: Sequence[str], values: Sequence[str], known: Sequence[str]) -> alt.Scale:
    places = [(known or names).index(name) for name in names]
    return alt.Scale(domain=list(names), range=[values[place % len(values)] for place in places])


def _log_scale() -> alt.Scale:
    return alt.Scale(type="log", nice=False, padding=12)


def _lines_with_points(
    lines: alt.Chart, field: str, title: str | None, names: Sequence[str], known: Sequence[str] = ()
) -> alt.LayerChart | alt.FacetChart:
    """Draw a line for each name, with a mark to read at every point; hollow, so that none hides another.

    ``known``: all names that there may be, for one to look the same in every chart.
    """
    colored = lines.encode(color=_colors(field, title, names, known))
    points = colored.mark_point(filled=False, opacity=1, size=55, strokeWidth=2)
    return alt.layer(colored.mark_line(aria=False), points.encode(shape=_shapes(field, title, names, known)))


def timeline(rows: Rows, names: Sequence[str], unit: str) -> dict[str, Any]:
    """Stack examples over time.

    Args:
        rows: name, start and end (unix milliseconds), low and high (the stack's), examples, mean, told.
        names: in the order of the stack.
        unit: what a bar is long.
    """
    said = {"told": unit, "name": "split", "examples": "examples|,d", "mean": "mean label|.3f"}
    return _done(
        _chart(rows, **said)
        .mark_bar(stroke=TEXT, strokeOpacity=0.25, strokeWidth=0.5)
        .encode(
            x=alt.X("start:T", title=f"event time, UTC, by {unit}", scale=alt.Scale(type="utc")),
            x2="end",
            y=alt.Y("low:Q", title="examples"),
            y2="high",
            color=_colors("name", "split", names),
        )
    )


def traffic(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Draw the share of the examples that the hottest values have. rows: feature, rank, share."""
    said = {"feature": "feature", "rank": "hottest values|,d", "share": "have of the examples|.1%"}
    lines = _chart(rows, **said).encode(
        x=alt.X("rank:Q", title="hottest values", scale=_log_scale(), axis=alt.Axis(format="~s")),
        y=alt.Y("share:Q", title="share of the examples", axis=alt.Axis(format="%")),
    )
    return _done(_lines_with_points(lines, "feature", "feature", names))


def heat_map(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Draw the traffic of each feature that shares a slot with each other one.

    rows: feature, other, share, values, pairs, expected, z.
    """
    cells = _chart(
        rows, feature="traffic of", other="shares a slot with", share="share of the examples|.1%",
        values="values that do|,d", pairs="pairs in one slot|,d", expected="pairs expected|,.1f",
        z="deviations off|+.1f",
    ).encode(
        x=alt.X("other:N", title="with", sort=list(names), axis=alt.Axis(orient="top", labelAngle=-30)),
        y=alt.Y("feature:N", title="traffic of", sort=list(names)),
    )  # fmt: skip
    most = max([0.01, *(row["share"] for row in rows)])
    roomy = len(names) <= MOST_NAMES
    legend = None if roomy else _SHARE  # the numbers are in the cells
    scale = alt.Scale(scheme=_SCHEME, domain=[0, most])
    drawn = cells.mark_rect().encode(color=alt.Color("share:Q", title=None, scale=scale, legend=legend))
    if not roomy:
        return _done(drawn, height=20 * len(names) + 20)
    dark = alt.condition(f"datum.share < {_DARK_BELOW * most}", alt.value("white"), alt.value("black"))
    text = cells.mark_text(aria=False).encode(text=alt.Text("share:Q", format=".0%"), color=dark)
    return _done(alt.layer(drawn, text), height=_STEP * len(names) + 20)


def sharing(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Draw the values of each feature that share a slot, beside what is expected.

    rows: feature, sharing (values that do), share and expected (of its values), traffic (of the examples).
    """
    bars = _chart(
        rows, feature="feature", sharing="values that share a slot|,d", share="of its values|.1%",
        expected="expected|.1%", traffic="of its examples|.1%",
    ).encode(y=alt.Y("feature:N", title=None, sort=list(names)))  # fmt: skip
    x = alt.X("share:Q", title="share of the values; line: expected", axis=alt.Axis(format="%"))
    ticks = bars.mark_tick(thickness=2, size=26, aria=False).encode(x="expected:Q")
    drawn = alt.layer(bars.mark_bar(color=COLORS[0], size=18).encode(x=x), ticks)
    return _done(drawn, height=34 * len(names) + 20)


def load(rows: Rows) -> dict[str, Any]:
    """Draw how many slots have so many uses, beside what is expected. rows: told, slots, expected, reads."""
    said = {"told": "uses", "slots": "slots|,d", "expected": "expected|,.1f", "reads": "reads|,d"}
    bars = _chart(rows, **said).encode(
        x=alt.X("told:N", title="uses of a slot", sort=None, axis=alt.Axis(labelAngle=0))
    )
    powers = [0, *(10**power for power in range(10))]
    axis = alt.Axis(values=powers, labelExpr="format(datum.value, '~s')")
    y = alt.Y("slots:Q", title="slots; line: expected", scale=alt.Scale(type="symlog"), axis=axis)
    ticks = bars.mark_tick(thickness=2, bandSize=26, orient="horizontal", aria=False)
    return _done(alt.layer(bars.mark_bar(color=COLORS[0]).encode(y=y), ticks.encode(y="expected:Q")))


def quality(rows: Rows, names: Sequence[str], metric: str) -> dict[str, Any]:
    """Draw quality against bytes, with the deviation over seeds.

    rows: layout, budget, bytes, mean, low, high, deviation, seeds.
    """
    lines = _chart(
        rows, layout="layout", budget="budget, bytes|,d", bytes="bytes used|,d", mean=f"test {metric}|.4f",
        deviation="standard deviation|.4f", seeds="seeds|d",
    ).encode(
        x=alt.X("budget:Q", title="bytes", scale=_log_scale(), axis=alt.Axis(format="~s")),
        y=alt.Y("mean:Q", title=f"test {metric}", scale=alt.Scale(zero=False)),
    )  # fmt: skip
    spread = lines.mark_rule(aria=False).encode(
        y="low:Q", y2="high", color=_colors("layout", "layout", names), tooltip=alt.value(None)
    )
    return _done(alt.layer(spread, _lines_with_points(lines, "layout", "layout", names)), height=360)


def learning(rows: Rows, names: Sequence[str], metric: str, best: int) -> dict[str, Any]:
    """Draw a metric by epoch. rows: epoch, split (one of ``names``), value."""
    last = max(row["epoch"] for row in rows)
    epochs = list(range(1, last + 1, max(1, last // 10)))
    lines = _chart(rows, split="split", epoch="epoch|d", value=f"{metric}|.4f").encode(
        x=alt.X(
            "epoch:Q",
            title="epoch",
            axis=alt.Axis(values=epochs, format="d"),
            scale=alt.Scale(zero=False, nice=False, padding=16),
        ),
        y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
    )
    rule = _silent([{"epoch": best}]).mark_rule(strokeDash=[4, 4], opacity=0.6, aria=False)
    return _done(alt.layer(rule.encode(x="epoch:Q"), _lines_with_points(lines, "split", None, names, SPLITS)))


def predictions(rows: Rows) -> dict[str, Any]:
    """Draw what is predicted for each rating.

    rows: rating, low, high, told, examples, share (of the rating).
    """
    said = {"rating": "rating", "told": "prediction", "examples": "examples|,d", "share": "of the rating|.1%"}
    color = alt.Color("share:Q", title="share of the rating", scale=alt.Scale(scheme=_SCHEME), legend=_SHARE)
    return _done(
        _chart(rows, **said)
        .mark_rect()
        .encode(
            x=alt.X("rating:O", title="rating", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("low:Q", title="prediction", scale=alt.Scale(zero=False)),
            y2="high",
            color=color,
        ),
        height=320,
    )


def probabilities(rows: Rows) -> dict[str, Any]:
    """Draw the probabilities that each label is given. rows: label, low, high, told, examples, share."""
    said = {"label": "label", "told": "probability", "examples": "examples|,d", "share": "of the label|.1%"}
    return _done(
        _chart(rows, **said)
        .mark_bar(opacity=0.6, stroke=TEXT, strokeOpacity=0.4, strokeWidth=0.5, orient="vertical")
        .encode(
            x=alt.X("low:Q", title="predicted probability of 1", scale=alt.Scale(domain=[0, 1])),
            x2="high",
            y=alt.Y("share:Q", title="share of the label", stack=None, axis=alt.Axis(format="%")),
            y2=alt.datum(0),
            color=_colors("label", "label", ["0", "1"]),
        )
    )


def calibration(rows: Rows, what: str, span: tuple[float, float]) -> dict[str, Any]:
    """Draw mean labels against mean predictions; on the line both are the same.

    Args:
        rows: told, prediction, truth, examples.
        what: is predicted.
        span: of both axes.
    """
    said = {
        "told": "predictions", "prediction": "their mean|.3f", "truth": "mean label|.3f",
        "examples": "examples|,d",
    }  # fmt: skip
    scale = alt.Scale(domain=list(span), nice=False)
    points = _chart(rows, **said).mark_circle(color=COLORS[0], opacity=0.85, clip=True)
    line = _silent([{"at": end} for end in span]).mark_line(
        color=TEXT, opacity=0.5, strokeDash=[4, 4], aria=False
    )
    drawn = points.encode(
        x=alt.X("prediction:Q", title=f"mean predicted {what}", scale=scale),
        y=alt.Y("truth:Q", title="mean of the labels", scale=scale),
        size=alt.Size("examples:Q", scale=alt.Scale(range=[30, 500]), legend=None),
    )
    ends = line.encode(x=alt.X("at:Q", scale=scale), y=alt.Y("at:Q", scale=scale))
    return _done(alt.layer(ends, drawn))
