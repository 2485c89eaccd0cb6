"""Of a page: a training run, its learning curves, and its predictions beside the truth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ArtifactError, NotFound
from featurestore.paths import typed
from featurestore.store import FeatureStore
from training.checkpoint import Checkpoint, load_checkpoint
from training.loop import EpochResult, TrainState
from training.predictor import load_model
from training.report import charts
from training.report.parts import Facts, Figure, Part, Section, Table, Words
from training.report.predictions import Bin, Predictions, count_predictions
from training.run_folder import RunFolder, find_run
from training.utilization.scores import scored_split


@dataclass(frozen=True)
class ReportedRun:
    """A model, its file, and the epochs of its training that are known, those after the best one too."""

    name: str
    path: Path
    checkpoint: Checkpoint
    history: Sequence[EpochResult]


def open_run(run: str, checkpoints: Path) -> ReportedRun:
    """Return a run, or a checkpoint file, named as for `training.run_folder.find_run`.

    Raises:
        NotFound: none is called that, or it has no model.
        ArtifactError: its model is damaged.
    """
    found = find_run(run, checkpoints)
    if isinstance(found, Path):
        checkpoint = load_checkpoint(found, mmap=True)
        return ReportedRun(
            f"{found.resolve().parent.name}/{found.name}", found, checkpoint, _epochs(checkpoint)
        )
    name = found.path.resolve().name
    if found.last.exists() and not found.best.exists():
        raise NotFound(f"run {name} has no model yet: one is kept when an epoch ends")
    checkpoint = load_checkpoint(found.best, mmap=True)
    return ReportedRun(name, found.best, checkpoint, _all_epochs(found, checkpoint))


def _epochs(checkpoint: Checkpoint) -> list[EpochResult]:
    return TrainState.from_dict(checkpoint.state).history


def _all_epochs(folder: RunFolder, best: Checkpoint) -> list[EpochResult]:
    """Return the epochs up to the last state that is kept; those of the best one where none is intact."""
    try:
        last = _epochs(load_checkpoint(folder.last, mmap=True))
    except ArtifactError:
        last = []
    return max(_epochs(best), last, key=len)


def run_section(
    store: FeatureStore, run: ReportedRun, advance: Callable[[int], None] = lambda _rows: None
) -> Section:
    """Return how a training went, and what its model predicts for the test split, or validation without one.

    Args:
        store: a snapshot of the model's spec.
        run: the model and its training.
        advance: is told of how many more examples are predicted.
    """
    model = load_model(run.checkpoint, run.path)
    found = count_predictions(store, model, scored_split(store), advance)
    parts: list[Part] = [_facts(run, found), *_elsewhere(store, run)]
    parts += _curves(run.history, run.checkpoint.epoch)
    return Section("run", f"Run {run.name}", [*parts, *_predicted(found, store)])


def no_run_section(store: FeatureStore) -> Section:
    """Return how a page gets one."""
    told = f"None was asked for: `slotstore report --store {typed(store.path)} --run latest` adds the newest."
    return Section("run", "Run", [Words([told])])


def _facts(run: ReportedRun, found: Predictions | None) -> Facts:
    config, checkpoint = run.checkpoint.config, run.checkpoint
    scores = {f"{found.split}, {found.examples:,} examples": str(found.scores)} if found else {}
    return Facts(
        {
            "checkpoint": str(run.path),
            "trained on": f"snapshot {checkpoint.snapshot}",
            "network": config["model"],
            "optimizer": f"{config['optimizer']}, learning rate {config['learning_rate']:g}, "
            f"batches of {config['batch_size']:,}, seed {config['seed']}",
            "model": f"of epoch {checkpoint.epoch}; epochs known here: {len(run.history)}",
            **scores,
        }
    )


def _elsewhere(store: FeatureStore, run: ReportedRun) -> list[Part]:
    snapshot = store.snapshot.manifest.id
    if run.checkpoint.snapshot == snapshot:
        return []
    told = (
        f"The model was trained on snapshot {run.checkpoint.snapshot}, not on {snapshot}: what is predicted "
        "below may be among what it was trained on."
    )
    return [Words([told])]


def _curves(history: Sequence[EpochResult], best: int) -> Iterator[Part]:
    """Yield a figure for each metric, those of training first."""
    scores = [(split, each.epoch, getattr(each, split)) for split in _SPLITS for each in history]
    values = [
        {"split": split, "epoch": epoch, "metric": metric, "value": value}
        for split, epoch, found in scores
        if found
        for metric, value in found.values.items()
    ]
    for metric in dict.fromkeys(str(row["metric"]) for row in values):
        points = [row for row in values if row["metric"] == metric]
        names = [split for split in _SPLITS if any(row["split"] == split for row in points)]
        known = {(row["split"], row["epoch"]): row["value"] for row in points}
        rows = [(each.epoch, *(known.get((split, each.epoch)) for split in names)) for each in history]
        mean = (
            "Training is the mean over an epoch's batches, each before its step. " if "train" in names else ""
        )
        yield Figure(
            f"Learning curve: {metric}",
            f"{mean}The dashed line is the epoch whose model is kept.",
            charts.learning(points, names, metric, best),
            Table(f"{metric} by epoch", ["epoch", *names], rows),
        )


_SPLITS = ("train", "validation")


def _predicted(found: Predictions | None, store: FeatureStore) -> list[Part]:
    if found is None:
        return [Words(["The splits of validation and test are empty: there is nothing to predict."])]
    if store.spec.label.is_binary:
        return [_probabilities(found), _calibration(found, "probability", (0.0, 1.0))]
    edges = [edge for each in found.bins for edge in (each.low, each.high, each.label)]
    return [_ratings(found), _calibration(found, "rating", (min(edges), max(edges)))]


def _by_label(bins: Sequence[Bin]) -> dict[float, int]:
    totals: dict[float, int] = {}
    for each in bins:
        totals[each.label] = totals.get(each.label, 0) + each.examples
    return dict(sorted(totals.items()))


def _shares(bins: Sequence[Bin], name: str) -> list[dict[str, object]]:
    totals = _by_label(bins)
    return [
        {
            name: f"{each.label:g}",
            "low": each.low,
            "high": each.high,
            "told": each.told,
            "examples": each.examples,
            "share": each.examples / totals[each.label],
        }
        for each in bins
    ]


def _ratings(found: Predictions) -> Figure:
    return Figure(
        f"Predictions against ratings, {found.split}",
        "How the predictions for each rating, told to the nearest half, spread; right ones lie at it.",
        charts.predictions(_shares(found.bins, "rating")),
        _label_table(found, "rating"),
    )


def _probabilities(found: Predictions) -> Figure:
    return Figure(
        f"Predicted probabilities by label, {found.split}",
        "The further the two lie apart, the better the model tells them apart.",
        charts.probabilities(_shares(found.bins, "label")),
        _label_table(found, "label"),
    )


def _label_table(found: Predictions, name: str) -> Table:
    labels = list(_by_label(found.bins))
    ranges = {each.low: each.told for each in found.bins}
    counts = {(each.low, each.label): each.examples for each in found.bins}
    rows = [(told, *(counts.get((low, label), 0) for label in labels)) for low, told in ranges.items()]
    names = ["prediction", *(f"{name} {label:g}" for label in labels)]
    return Table(f"Examples by prediction and {name}", names, rows)


def _calibration(found: Predictions, what: str, span: tuple[float, float]) -> Figure:
    points = []
    for told in dict.fromkeys(each.told for each in found.bins):
        here = [each for each in found.bins if each.told == told]
        examples = sum(each.examples for each in here)
        predicted, labels = (sum(getattr(each, name) for each in here) for name in ("predicted", "labels"))
        points.append(
            {
                "told": told,
                "prediction": predicted / examples,
                "truth": labels / examples,
                "examples": examples,
            }
        )
    rows = [tuple(each.values()) for each in points]
    return Figure(
        f"Calibration, {found.split}",
        "On the dashed line what is predicted comes true on average; above it the model predicts too little.",
        charts.calibration(points, what, span),
        Table("Mean label by prediction", ["prediction", "their mean", "mean label", "examples"], rows),
    )
