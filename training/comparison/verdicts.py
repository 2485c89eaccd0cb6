"""What a comparison comes to, in sentences, and beside it what others have published."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featurestore.layouts import NEED_DICTIONARY, NEED_NO_VOCABULARY, parse_layout
from featurestore.plans import FLOAT_BYTES
from featurestore.spec import Label
from training.comparison.ranking import Standing, told_quality, welch


@dataclass(frozen=True)
class Published:
    """A published test AUC on ml-1m: six features, the 3s left out, DCN-V2.

    share: of the bytes of the collision-free table, 1.6 MB. paper: B. Coleman et al., "Unified Embedding:
    Battle-Tested Feature Representations for Web-Scale ML Systems", NeurIPS 2023. replication: by others.
    """

    layout: str
    share: float
    paper: float
    replication: float


PUBLISHED = (
    Published("exact", 1.0, 0.8872, 0.8985),
    Published("unified", 1.0, 0.8774, 0.8872),
    Published("per_feature", 1.0, 0.8537, 0.8684),
    Published("unified", 0.5, 0.8693, 0.8759),
    Published("per_feature", 0.5, 0.8300, 0.8407),
    Published("unified", 0.1, 0.8200, 0.8263),
    Published("per_feature", 0.1, 0.7707, 0.7712),
)

HASH_BYTES = 4

SAME_SHARE = 0.02
"""How far a budget may be from a published one, relative to it, to be put beside it."""


def beside_published(standings: Iterable[Standing], exact_floats: int) -> list[tuple[object, ...]]:
    """Return our test AUC beside the published ones, as rows of a table, where layout and share are the same.

    Columns: share, layout, AUC, deviation, paper, replication. Where `unified` and `per_feature` are both
    there, a row of what the first is better by follows them.
    """
    rows: list[tuple[object, ...]] = []
    ours = {(each.layout, each.budget / (exact_floats * FLOAT_BYTES)): each for each in standings}
    for share, group in itertools.groupby(PUBLISHED, lambda each: each.share):
        found: dict[str, tuple[Published, Standing]] = {}
        for known in group:
            for (layout, size), each in ours.items():
                if layout == known.layout and abs(size / share - 1) <= SAME_SHARE:
                    found[layout] = known, each
        for layout, (known, each) in found.items():
            published = f"{known.paper:.4f}", f"{known.replication:.4f}"
            rows.append((f"{share:g}x", layout, *told_quality(each, each.quality), *published))
        if {"unified", "per_feature"} <= found.keys():
            rows.append(_margin(share, *found["unified"], *found["per_feature"]))
    return rows


PUBLISHED_COLUMNS = ["share", "layout", "auc", "sd", "ml-1m, paper", "ml-1m, replicated"]


def _margin(
    share: float, known: Published, each: Standing, low: Published, other: Standing
) -> tuple[object, ...]:
    ours = each.quality[0] - other.quality[0]
    published = known.paper - low.paper, known.replication - low.replication
    return (f"{share:g}x", "unified - per_feature", f"{ours:+.4f}", "", *(f"{one:+.4f}" for one in published))


def verdicts(standings: Sequence[Standing], label: Label) -> list[str]:
    """Return a sentence for each budget: the best layout, and whether hashing is a good choice.

    Args:
        standings: as `training.comparison.ranking.standings` orders them.
        label: says whether more is better.
    """
    told = []
    for budget, group in itertools.groupby(standings, lambda each: each.budget):
        told.append(f"{budget:,} bytes: {_verdict(list(group), label)}")
    return told


def dictionary_notes(layouts: Iterable[str], values: int) -> list[str]:
    """Return what no budget counts, in a sentence, where a layout finds a value's floats by its number."""
    names = dict.fromkeys(parse_layout(layout).name for layout in layouts)
    needing = [name for name in names if name in NEED_DICTIONARY]
    told = (
        f"a dictionary of all {values:,} values, which no budget counts, tells where a value's floats are in "
        f"{', '.join(needing)}: at least {values * HASH_BYTES:,} bytes, a 32-bit hash each"
    )
    return [told] if needing else []


def _verdict(ranked: Sequence[Standing], label: Label) -> str:
    best = ranked[0]
    hashed = [each for each in ranked if parse_layout(each.layout).name in NEED_NO_VOCABULARY]
    head = f"{best.layout} is best, {best.quality[0]:.4f}"
    if not hashed:
        return f"{head}; none that needs no vocabulary was compared"
    if hashed[0] is best:
        rest = f"; next is {_beside(ranked[1], best, label)}" if len(ranked) > 1 else ""
        return f"{head}, and needs no vocabulary{rest}"
    return (
        f"{head}; hashing is not the best choice here: of the layouts that need no vocabulary the best is "
        f"{_beside(hashed[0], best, label)}"
    )


def _beside(each: Standing, best: Standing, label: Label) -> str:
    """Tell a layout, how much worse it is than the best one, and whether that may be chance."""
    worse = abs(each.quality[0] - best.quality[0])
    test = welch(each.values, best.values)
    chance = "" if test is None or test.p is None else f", p = {test.p:.2g}"
    return f"{each.layout}, {worse:.4f} {'lower' if label.is_binary else 'higher'}{chance}"
