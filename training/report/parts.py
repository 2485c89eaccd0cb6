"""What a page is made of: sections, and in them figures, tables, facts and sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Table:
    """Rows to be read; the first cell of each names it."""

    kind: ClassVar[str] = "table"
    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Figure:
    """A chart with a sentence that says what it shows, and its numbers.

    chart: a Vega-Lite specification, see `training.report.charts`.
    """

    kind: ClassVar[str] = "figure"
    title: str
    says: str
    chart: Mapping[str, Any]
    table: Table


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    values: Mapping[str, object]


@dataclass(frozen=True)
class Words:
    """Sentences, a paragraph each."""

    kind: ClassVar[str] = "words"
    lines: Sequence[str]


Part = Table | Figure | Facts | Words


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own. name: unique, of letters; links lead to it."""

    name: str
    title: str
    parts: Sequence[Part]
