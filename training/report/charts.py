"""Rows of plain values to charts: Vega-Lite specifications, made and checked by Altair.

The only file that knows Altair. No chart has a colour of its own for text and lines: `CONFIG` gives them that
of the page around them, so that they are readable where it is light and where it is dark.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

Rows = Sequence[Mapping[str, object]]

TEXT = "currentColor"
"""The colour of the page's text."""
COLORS = (
    "#3b7dd8", "#d9701a", "#2e9455", "#d6453d", "#8b63c7", "#1a92a0", "#cf5a9b",
    "#8c8a1e", "#a2683a", "#7d7d7d", "#5b6ee1", "#b8860b", "#4f9a2f", "#b04fb8",
)  # fmt: skip
"""Each stands out from white and from near black: its contrast with either is at least 3 to 1."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
SCHEME: Literal["viridis"] = "viridis"
_DARK_BELOW = 0.55
"""The part of the scale on which white text is readable; on the rest black is."""

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
    "legend": {"labelColor": TEXT, "titleColor": TEXT, "labelFontSize": 12, "titleFontSize": 12},
    "range": {"category": list(COLORS)},
}  # fmt: skip
"""What the charts of a page share."""

_HEIGHT, _STEP = 260, 44
_PERCENT = alt.Legend(format="%")
_LOG = alt.Scale(type="log", nice=False, padding=12)


def _chart(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def _tips(**titles: str) -> list[alt.Tooltip]:
    """Return tooltips by field: a title, and after a bar the number's format, where it has one."""
    tips = []
    for field, text in titles.items():
        title, _, form = text.partition("|")
        if form:
            tips.append(alt.Tooltip(field=field, type="quantitative", title=title, format=form))
        else:
            tips.append(alt.Tooltip(field=field, type="nominal", title=title))
    return tips


def _done(chart: alt.Chart | alt.LayerChart, height: int | None = _HEIGHT) -> dict[str, Any]:
    """Return a chart as wide as the page lets it be; without a height it has steps of its own."""
    sized = chart.properties(width="container", height=height) if height else chart
    made: dict[str, Any] = sized.to_dict()
    del made["config"]  # Altair's defaults; the page has its own
    return made


def timeline(rows: Rows, names: Sequence[str], unit: str) -> dict[str, Any]:
    """Stack examples over time.

    Args:
        rows: name, start and end (unix milliseconds), low and high (the stack's), examples, mean, told.
        names: in the order of the stack.
        unit: what a bar is long.
    """
    utc = alt.Scale(type="utc")
    return _done(
        _chart(rows)
        .mark_bar(stroke=TEXT, strokeOpacity=0.25, strokeWidth=0.5)
        .encode(
            x=alt.X("start:T", title=f"event time, UTC, by {unit}", scale=utc),
            x2="end",
            y=alt.Y("low:Q", title="examples"),
            y2="high",
            color=_colors("name", "split", names),
            tooltip=_tips(told=unit, name="split", examples="examples|,d", mean="mean label|.3f"),
        )
    )


def _colors(field: str, title: str | None, names: Sequence[str]) -> alt.Color:
    return alt.Color(field=field, type="nominal", title=title, scale=_scale(names, COLORS))


def _shapes(field: str, title: str | None, names: Sequence[str]) -> alt.Shape:
    return alt.Shape(field=field, type="nominal", title=title, scale=_scale(names, SHAPES))


def _points(lines: alt.Chart) -> alt.Chart:
    drawn: alt.Chart = lines.mark_point(filled=True, opacity=1, size=50)
    return drawn


def _scale(names: Sequence[str], values: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(names), range=[values[n % len(values)] for n in range(len(names))])


def traffic(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Draw the share of the examples that the hottest values have. rows: feature, rank, share."""
    lines = _chart(rows).encode(
        x=alt.X("rank:Q", title="hottest values", scale=_LOG, axis=alt.Axis(format="~s")),
        y=alt.Y("share:Q", title="share of the examples", axis=alt.Axis(format="%")),
        color=_colors("feature", "feature", names),
        tooltip=_tips(feature="feature", rank="hottest values|,d", share="have of the examples|.1%"),
    )
    points = _points(lines).encode(shape=_shapes("feature", "feature", names))
    return _done(lines.mark_line() + points)


def heat_map(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Draw the traffic of each feature that shares a slot with each other one.

    rows: feature, other, share, values, pairs, expected, z.
    """
    most = max(0.01, *(float(str(row["share"])) for row in rows))
    cells = _chart(rows).encode(
        x=alt.X("other:N", title="with", sort=list(names), axis=alt.Axis(orient="top", labelAngle=-30)),
        y=alt.Y("feature:N", title="traffic of", sort=list(names)),
        tooltip=_tips(
            feature="traffic of", other="shares a slot with", share="share of the examples|.1%",
            values="values that do|,d", pairs="pairs in one slot|,d", expected="pairs expected|,.1f",
            z="deviations off|+.1f",
        ),
    )  # fmt: skip
    scale = alt.Scale(scheme=SCHEME, domain=[0, most])
    color = alt.Color("share:Q", scale=scale, legend=None)  # the numbers are in the cells
    dark = alt.condition(f"datum.share < {_DARK_BELOW * most}", alt.value("white"), alt.value("black"))
    text = cells.mark_text(aria=False).encode(text=alt.Text("share:Q", format=".0%"), color=dark)
    drawn = cells.mark_rect().encode(color=color) + text
    return _done(drawn, height=_STEP * len(names) + 20)


def sharing(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Draw the values of each feature that share a slot, beside what is expected.

    rows: feature, share, expected (shares of the values), values, traffic (a share of the examples).
    """
    bars = _chart(rows).encode(
        y=alt.Y("feature:N", title=None, sort=list(names)),
        tooltip=_tips(
            feature="feature", values="values|,d", share="share a slot|.1%", expected="expected|.1%",
            traffic="traffic that shares a slot|.1%",
        ),
    )  # fmt: skip
    title = "values that share a slot; the line is what is expected"
    x = alt.X("share:Q", title=title, axis=alt.Axis(format="%"))
    ticks = bars.mark_tick(thickness=2, size=26).encode(x="expected:Q")
    return _done(bars.mark_bar(color=COLORS[0], size=18).encode(x=x) + ticks, height=34 * len(names) + 20)


def load(rows: Rows) -> dict[str, Any]:
    """Draw how many slots have so many uses, beside what is expected. rows: told, slots, expected, reads."""
    bars = _chart(rows).encode(
        x=alt.X("told:N", title="uses of a slot", sort=None, axis=alt.Axis(labelAngle=0)),
        tooltip=_tips(told="uses", slots="slots|,d", expected="expected|,.1f", reads="examples that do|,d"),
    )  # fmt: skip
    y = alt.Y(
        "slots:Q",
        title="slots; the line is what is expected",
        scale=alt.Scale(type="symlog"),
        axis=alt.Axis(values=[0, *(10**power for power in range(10))], labelExpr="format(datum.value, '~s')"),
    )
    ticks = bars.mark_tick(thickness=2, bandSize=26, orient="horizontal").encode(y="expected:Q")
    return _done(bars.mark_bar(color=COLORS[0]).encode(y=y) + ticks)


def quality(rows: Rows, names: Sequence[str], metric: str) -> dict[str, Any]:
    """Draw quality against bytes, with the deviation over seeds.

    rows: layout, budget, bytes, mean, low, high, deviation, seeds.
    """
    lines = _chart(rows).encode(
        x=alt.X(
            "budget:Q",
            title="bytes of all parameters that stand in for the table",
            scale=_LOG,
            axis=alt.Axis(format="~s"),
        ),
        y=alt.Y("mean:Q", title=f"test {metric}", scale=alt.Scale(zero=False)),
        color=_colors("layout", "layout", names),
        tooltip=_tips(
            layout="layout", budget="budget, bytes|,d", bytes="used|,d", mean=f"test {metric}|.4f",
            deviation="standard deviation|.4f", seeds="seeds|d",
        ),
    )  # fmt: skip
    points = _points(lines).encode(shape=_shapes("layout", "layout", names))
    spread = lines.mark_rule(aria=False).encode(y="low:Q", y2="high", tooltip=alt.value(None))
    return _done(lines.mark_line(aria=False) + spread + points, height=360)


def learning(rows: Rows, metric: str, best: int) -> dict[str, Any]:
    """Draw a metric by epoch. rows: epoch, split, value."""
    names = ["train", "validation"]
    lines = _chart(rows).encode(
        x=alt.X(
            "epoch:Q",
            title="epoch",
            axis=alt.Axis(tickMinStep=1, format="d"),
            scale=alt.Scale(zero=False, nice=False, padding=16),
        ),
        y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
        color=_colors("split", None, names),
        tooltip=_tips(split="split", epoch="epoch|d", value=f"{metric}|.4f"),
    )
    points = _points(lines).encode(shape=_shapes("split", None, names))
    at_best = _chart([{"epoch": best}]).mark_rule(strokeDash=[4, 4], opacity=0.6, aria=False)
    rule = at_best.encode(x="epoch:Q", tooltip=alt.value(None))
    return _done(rule + lines.mark_line(aria=False) + points)


def predictions(rows: Rows) -> dict[str, Any]:
    """Draw what is predicted for each rating.

    rows: rating, low, high, told, examples, share (of the rating).
    """
    return _done(
        _chart(rows)
        .mark_rect()
        .encode(
            x=alt.X("rating:O", title="rating", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("low:Q", title="prediction", scale=alt.Scale(zero=False)),
            y2="high",
            color=alt.Color(
                "share:Q",
                title="share of the rating",
                scale=alt.Scale(scheme=SCHEME),
                legend=_PERCENT,
            ),
            tooltip=_tips(
                rating="rating",
                told="prediction",
                examples="examples|,d",
                share="of those with the rating|.1%",
            ),
        ),
        height=320,
    )


def probabilities(rows: Rows) -> dict[str, Any]:
    """Draw the probabilities that each label is given. rows: label, low, high, told, examples, share."""
    return _done(
        _chart(rows)
        .mark_bar(opacity=0.6, stroke=TEXT, strokeOpacity=0.4, strokeWidth=0.5)
        .encode(
            x=alt.X("low:Q", title="predicted probability of 1", scale=alt.Scale(domain=[0, 1])),
            x2="high",
            y=alt.Y("share:Q", title="share of the label's examples", stack=None, axis=alt.Axis(format="%")),
            color=_colors("label", "label", ["0", "1"]),
            tooltip=_tips(
                label="label", told="probability", examples="examples|,d", share="of the label|.1%"
            ),
        )
    )


def calibration(rows: Rows, what: str) -> dict[str, Any]:
    """Draw mean labels against mean predictions; on the line both are the same.

    rows: told, prediction, truth, examples.
    """
    points = _chart(rows).encode(
        x=alt.X("prediction:Q", title=f"mean predicted {what}", scale=alt.Scale(zero=False)),
        y=alt.Y("truth:Q", title="mean of the labels", scale=alt.Scale(zero=False)),
        size=alt.Size("examples:Q", title="examples", scale=alt.Scale(range=[30, 500])),
        tooltip=_tips(
            told="predictions",
            prediction="their mean|.3f",
            truth="mean of the labels|.3f",
            examples="examples|,d",
        ),
    )
    line = _chart(rows).mark_line(color=TEXT, opacity=0.5, strokeDash=[4, 4], aria=False)
    same = line.encode(x="prediction:Q", y="prediction:Q", tooltip=alt.value(None))
    return _done(same + points.mark_circle(color=COLORS[0], opacity=0.85))
