"""Sections to one HTML file that needs nothing else: data, charts and what draws them are in it."""

import base64
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from featurestore.output import finite
from training.report.charts import CONFIG
from training.report.parts import Figure, Section, Table

_GLOBAL = "window.vegaEmbed = vegaEmbed;"


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the page: the same text for the same sections.

    Whatever a browser would fetch, or run beside the page's own scripts, its policy forbids, so that a
    value of the data that looks like HTML can do nothing even were it not escaped.
    """
    environment = Environment(
        loader=PackageLoader("training.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"cell": cell, "number_columns": number_columns}
    library, script = _library(), _file(environment, "page.js")
    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        version=version("slotstore"),
        style=Markup(_file(environment, "page.css")),  # noqa: S704  # ours
        library=Markup(library),  # noqa: S704  # ours
        script=Markup(script),  # noqa: S704  # ours
        charts=Markup(_charts(sections)),  # noqa: S704  # has no <
        policy=policy([library, script]),
    )


def _file(environment: Environment, name: str) -> str:
    assert environment.loader is not None  # it is given above
    return environment.loader.get_source(environment, name)[0]


@functools.cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script: it is in the package, nothing is fetched."""
    import vl_convert

    return vl_convert.javascript_bundle(_GLOBAL).replace("</script", "<\\/script")


def policy(scripts: Iterable[str]) -> str:
    """Return the content security policy of a page that runs these scripts alone and fetches nothing.

    Source: W3C, Content Security Policy Level 3, sections 2.3.1 (hash sources) and 6.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"


def _charts(sections: Sequence[Section]) -> str:
    """Return the charts by the name of their element, as JSON that can stand in a script element."""
    charts = {
        f"{section.name}-{number}": part.chart
        for section in sections
        for number, part in enumerate(section.parts, 1)
        if isinstance(part, Figure)
    }
    text = json.dumps({"config": CONFIG, "charts": finite(charts)}, allow_nan=False)
    return text.replace("<", "\\u003c")


def cell(value: object) -> str:
    """Return a value as a person reads it."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def number_columns(table: Table) -> set[int]:
    """Return which columns hold numbers, as numbers or as text such as 12.5%."""
    columns = list(zip(*table.rows, strict=True))
    return {
        number
        for number, column in enumerate(columns)
        if any(value not in (None, "") for value in column) and all(map(_is_number, column))
    }


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        try:
            float(value.replace(",", "").removesuffix("%") or 0)
        except ValueError:
            return False
        return True
    return value is None or isinstance(value, int | float)
