"""Options of a comparison, and what is typed for them: setups, labels, layouts, budgets, widths."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from featurestore.errors import SpecError
from featurestore.layouts import parse_layout
from featurestore.plans import FLOAT_BYTES
from featurestore.spec import Label
from training.comparison.setup import PAPER_LABEL, Setup
from training.models import MODELS
from training.optimizers import LARGEST_LR

MAX_BYTES = 1 << 40
MOST_WIDE = 65_536


_Command = TypeVar("_Command", bound=Callable[..., Any])

_SETUP = (
    click.option(
        "--label",
        "label_text",
        default="paper",
        show_default=True,
        help="paper: rating >= 4, the 3s left out. spec: the store's own. rating: RMSE. Or a threshold: 3.5.",
    ),
    click.option("--model", type=click.Choice(list(MODELS)), default=Setup.model, show_default=True),
    click.option(
        "--cross", type=click.IntRange(0, 64), default=Setup.cross, show_default=True, help="Of dcn."
    ),
    click.option(
        "--deep",
        default="192",
        show_default=True,
        help="Widths of deep layers: 192,64. Not of article, fm.",
    ),
    click.option(
        "--dim", type=click.IntRange(1, 4096), default=Setup.dim, show_default=True, help="D, floats."
    ),
    click.option(
        "--scale",
        type=float,
        default=Setup.scale,
        show_default=True,
        help="Embeddings start uniform in +-scale.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=Setup.batch_size, show_default=True),
    click.option(
        "--lr",
        "learning_rate",
        type=float,
        default=Setup.learning_rate,
        show_default=True,
        help=f"At most {LARGEST_LR:g}.",
    ),
    click.option("--weight-decay", type=float, default=Setup.weight_decay, show_default=True),
    click.option("--patience", type=click.IntRange(1), default=Setup.patience, show_default=True),
    click.option(
        "--epochs", type=click.IntRange(1), default=Setup.epochs, show_default=True, help="At most."
    ),
    click.option(
        "--split-seed", type=click.IntRange(0), default=0, show_default=True, help="Of the 80/10/10 cut."
    ),
)


def setup_options(command: _Command) -> _Command:
    """Give a command the options of a setup; it passes them on to `read_setup`."""
    for option in reversed(_SETUP):
        command = option(command)
    return command


def read_setup(own: Label, *, label_text: str, deep: str, **settings: Any) -> Setup:  # noqa: ANN401  # click's
    """Return the setup that a command's options say; SpecError where they cannot work."""
    return Setup(label=read_label(label_text, own), deep=read_widths(deep), **settings)


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


def read_budgets(text: str, exact_floats: int, option: str = "--budgets") -> list[int]:
    """Return the floats that each budget allows.

    Args:
        text: numbers separated by commas: ``0.1x`` is a share of the exact table, others are bytes, with KiB
            or MiB after them or nothing.
        exact_floats: of the collision-free table.
        option: where it was typed.

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
        raise SpecError(option, problems or ["none given"])
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
