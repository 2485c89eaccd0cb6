"""One table of a parsed TOML file, read key by key: what is wrong is noted, and reading goes on.

Every reader returns a stand-in where the value is wrong, so that one reading finds all problems. A
section that is missing altogether is one problem; its keys are not reported again.
"""

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from featurestore.errors import did_you_mean

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """A table of the file; ``place`` (``"split."``) begins its messages, ``problems`` is the file's."""

    data: Mapping[str, Any]
    place: str
    problems: list[str]
    present: bool = True

    def note(self, key: str, expected: str) -> None:
        """Note that ``key`` is not what was expected."""
        got = repr(self.data[key]) if key in self.data else "nothing"
        self.problems.append(f"{self.place}{key} must be {expected}, got {got}")

    def only(self, *known: str) -> Self:
        """Note every key that is not known; return self."""
        unknown = [key for key in self.data if key not in known]
        self.problems.extend(f"unknown key {self.place}{key}{did_you_mean(key, known)}" for key in unknown)
        return self

    def section(self, key: str) -> "Section":
        """Return the table ``[key]``."""
        data = self.data.get(key)
        if isinstance(data, Mapping):
            return Section(data, f"{key}.", self.problems)
        said = f"[{key}] is missing" if data is None else f"[{key}] must be a table, got {data!r}"
        self.problems.append(said)
        return Section({}, f"{key}.", self.problems, present=False)

    def sections(self, key: str) -> list["Section"]:
        """Return the tables ``[[key]]``, at least one."""
        items = self.data.get(key)
        if not isinstance(items, list) or not items:
            self.problems.append(f"at least one [[{key}]] entry is needed")
            return []
        places = [f"{key}[{number}]" for number in range(len(items))]
        self.problems.extend(
            f"{place} must be a table, got {item!r}"
            for place, item in zip(places, items, strict=True)
            if not isinstance(item, Mapping)
        )
        return [
            Section(item, f"{place}.", self.problems)
            for place, item in zip(places, items, strict=True)
            if isinstance(item, Mapping)
        ]

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return a whole number in low..high."""
        value = self.data.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        if self.present:
            self.note(key, f"a whole number in {low}..{high}")
        return low

    def number(self, key: str) -> float | None:
        """Return a finite number, or None where there is none."""
        value = self.data.get(key)
        if value is None:
            return None
        try:
            return as_number(value)
        except ValueError:
            self.note(key, "a number")
            return None

    def text(self, key: str, default: str) -> str:
        """Return text."""
        value = self.data.get(key, default)
        if isinstance(value, str):
            return value
        self.note(key, "text")
        return default

    def identifier(self, key: str) -> str:
        """Return a name that can be a column's, "" where there is none."""
        value = self.data.get(key)
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        self.note(key, "a name of letters, digits and _")
        return ""

    def choice(self, key: str, choices: Sequence[str], default: str) -> str | None:
        """Return one of ``choices``, or None where it is none of them."""
        value = self.data.get(key, default)
        if value in choices:
            return str(value)
        self.note(key, f"one of {', '.join(choices)}")
        return None

    def items(
        self, key: str, convert: Callable[[object], T], fit: Callable[[Sequence[T]], bool], expected: str
    ) -> tuple[T, ...]:
        """Return a list's converted items, () where there is no list.

        Args:
            key: where the list stands.
            convert: one item to its value; ValueError where it has none.
            fit: whether the values can stand together.
            expected: what ``convert`` and ``fit`` ask for, in words.
        """
        if key not in self.data:
            return ()
        value = self.data[key]
        try:
            found = tuple(convert(item) for item in value) if isinstance(value, (list, tuple)) else None
        except ValueError:
            found = None
        if found is not None and fit(found):
            return found
        self.note(key, expected)
        return ()


def as_integer(value: object) -> int:
    """Return a whole number as it is; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"not a whole number: {value!r}")  # noqa: TRY004 - low layers raise ValueError
    return value


def as_number(value: object) -> float:
    """Return a finite number; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"not a number: {value!r}")  # noqa: TRY004 - low layers raise ValueError
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("a number too large") from error
    if not math.isfinite(number):
        raise ValueError(f"not a finite number: {number}")
    return number


def as_unix_seconds(value: object) -> int:
    """Return a moment as unix seconds: a whole number, an ISO date or time (UTC where it names no zone)."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if isinstance(value, datetime.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return math.floor(aware.timestamp())
    return as_integer(value)
