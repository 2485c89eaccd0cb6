"""What the words of `slotstore compare` mean: labels, layouts, budgets, widths."""

import math

from featurestore.errors import SpecError
from featurestore.layouts import parse_layout
from featurestore.plans import FLOAT_BYTES
from featurestore.spec import Label
from training.comparison.setup import PAPER_LABEL

MAX_BYTES = 1 << 40
MOST_WIDE = 65_536


def read_label(text: str, own: Label) -> Label:
    """Read ``--label``; SpecError where it is none."""
    named = {"paper": PAPER_LABEL, "spec": own, "rating": Label("rating")}
    if text in named:
        return named[text]
    message = f"unknown label {text!r}: give {', '.join(named)} or a threshold such as 3.5"
    try:
        threshold = float(text)
    except ValueError as error:
        raise SpecError("--label", [message]) from error
    if not math.isfinite(threshold):
        raise SpecError("--label", [message])
    return Label("rating", threshold)


def read_layouts(text: str) -> list[str]:
    """Read ``--layouts``: names, with their parameters in one spelling; SpecError with every wrong one."""
    found, problems = [], []
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            found.append(str(parse_layout(word)))
        except SpecError as error:
            problems += error.problems
    if problems or not found:
        raise SpecError("--layouts", problems or ["none given"])
    return list(dict.fromkeys(found))


def read_widths(text: str) -> tuple[int, ...]:
    """Read ``--deep``: widths separated by commas, or nothing; SpecError where one is none."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isascii() and word.isdecimal() and 1 <= int(word) <= MOST_WIDE for word in words):
        raise SpecError("--deep", [f"widths are numbers from 1 to {MOST_WIDE}, as in 192,64; got {text!r}"])
    return tuple(map(int, words))


def read_budgets(text: str, exact_floats: int) -> list[int]:
    """Return the floats that each budget allows.

    Args:
        text: numbers separated by commas: ``0.1x`` is a share of the exact table, others are bytes, with KiB
            or MiB after them or nothing.
        exact_floats: of the collision-free table.

    Raises:
        SpecError: with every one that is none, or allows not even a float.
    """
    problems, found = [], []
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            found.append(_floats(word, exact_floats))
        except ValueError as error:
            problems.append(f"budget {word!r}: {error}; give bytes (8KiB, 100000) or a share (0.1x)")
    if problems or not found:
        raise SpecError("--budgets", problems or ["none given"])
    return list(dict.fromkeys(found))


_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "B": 1, "": 1}


def _floats(word: str, exact_floats: int) -> int:
    if word.endswith("x"):
        size = float(word[:-1]) * exact_floats * FLOAT_BYTES
    else:
        unit = next(unit for unit in _UNITS if word.endswith(unit))
        size = float(word.removesuffix(unit)) * _UNITS[unit]
    if not FLOAT_BYTES <= size <= MAX_BYTES:
        raise ValueError(f"expected {FLOAT_BYTES} to {MAX_BYTES:,} bytes, got {size:,.0f}")
    return int(size) // FLOAT_BYTES
