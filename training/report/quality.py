"""Of a page: quality against bytes, from what comparisons and advice have trained and kept."""

from collections.abc import Mapping, Sequence

from featurestore.paths import typed
from featurestore.store import FeatureStore
from featurestore.wording import label_text
from training.comparison.kept import KeptComparison, kept_comparisons
from training.comparison.ranking import REFERENCE, Standing, check_fair, columns, rows, standings
from training.comparison.setup import watched
from training.comparison.verdicts import verdicts
from training.report import charts
from training.report.parts import Facts, Figure, Part, Section, Table, Words

_LEGEND = f"sd: deviation of the column before it over seeds; p: Welch's t-test against {REFERENCE}"


def quality_section(store: FeatureStore) -> Section:
    """Return a curve for each comparison of the snapshot that is kept, the last one first."""
    found = kept_comparisons(store)
    parts = [part for kept in found for part in _parts(kept)] if found else [_how(store)]
    return Section("quality", "Quality against bytes", parts)


def _how(store: FeatureStore) -> Words:
    told = (
        "No comparison of this snapshot is kept, so quality against bytes is not known: "
        f"`slotstore compare --store {typed(store.path)}` trains memory layouts at equal bytes."
    )
    return Words([told])


def _parts(kept: KeptComparison) -> list[Part]:
    found, metric = standings(kept.cells, kept.label), watched(kept.label)
    names = sorted({each.layout for each in found})
    return [
        Facts(_setup(kept)),
        Figure(
            f"Test {metric} of layouts at equal bytes, comparison {kept.folder.name}",
            f"{'Higher' if kept.label.is_binary else 'Lower'} is better. Rows, label, network and stopping "
            "rule are the same for all. A vertical line is a standard deviation over seeds, to either side.",
            charts.quality(_points(found), names, metric),
            Table(f"Comparison {kept.folder.name}; {_LEGEND}", columns(kept.label), rows(found, [])),
        ),
        Words([*verdicts(found, kept.label), *(f"Note: {note}." for note in check_fair(kept.cells))]),
    ]


def _setup(kept: KeptComparison) -> Mapping[str, object]:
    setup = kept.setup
    return {
        "comparison": kept.folder.name,
        "label": label_text(kept.label),
        "network": f"{setup['model']}, D = {setup['dim']}",
        "training": f"batches of {setup['batch_size']:,}, learning rate {setup['learning_rate']:g}, "
        f"weight decay {setup['weight_decay']:g}, patience {setup['patience']}",
        "trainings": f"{len(kept.cells):,}",
    }


def _points(found: Sequence[Standing]) -> list[dict[str, object]]:
    return [
        {
            "layout": each.layout,
            "budget": each.budget,
            "bytes": each.bytes,
            "mean": each.quality[0],
            "low": each.quality[0] - each.quality[1],
            "high": each.quality[0] + each.quality[1],
            "deviation": each.quality[1] if each.seeds > 1 else None,
            "seeds": each.seeds,
        }
        for each in found
    ]
