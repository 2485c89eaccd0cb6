"""Of a page: a training run, its learning curves, and its predictions beside the truth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ArtifactError
from featurestore.paths import typed
from featurestore.store import FeatureStore
from training.checkpoint import Checkpoint, load_checkpoint
from training.loop import EpochResult, TrainState
from training.predictor import load_model
from training.report import charts
from training.report.parts import Facts, Figure, Part, Section, Table, Words
from training.report.predictions import Bin, Predictions, count_predictions
from training.run_folder import RunFolder, find_run


@dataclass(frozen=True)
class ReportedRun:
    """A model, its file, and the epochs of its training, those after the best one too."""

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
    path = found if isinstance(found, Path) else found.best
    checkpoint = load_checkpoint(path, mmap=True)
    history = TrainState.from_dict(checkpoint.state).history
    if isinstance(found, Path):
        return ReportedRun(path.name, path, checkpoint, history)
    return ReportedRun(found.path.resolve().name, path, checkpoint, _whole_history(found, history))


def _whole_history(folder: RunFolder, history: Sequence[EpochResult]) -> Sequence[EpochResult]:
    """Return the epochs up to the last state that is kept; those of the best one where none is intact."""
    try:
        last = load_checkpoint(folder.last, mmap=True)
    except ArtifactError:
        return history
    whole = TrainState.from_dict(last.state).history
    return whole if len(whole) > len(history) else history


def run_section(
    store: FeatureStore, run: ReportedRun, advance: Callable[[int], None] = lambda _rows: None
) -> Section:
    """Return how a training went, and what its model predicts for the test split, or validation without one.

    Args:
        store: a snapshot of the model's spec.
        run: the model and its training.
        advance: is told of how many more examples are predicted.

    Raises:
        FingerprintError: the model's slots come from another spec than the snapshot's.
    """
    run.checkpoint.check_fits(store.snapshot)
    model = load_model(run.checkpoint, run.path)
    found = count_predictions(store, model, scored_split(store), advance)
    curves = _curves(run.history, run.checkpoint.epoch)
    return Section("run", f"Run {run.name}", [_facts(run, found), *curves, *_predicted(found, store)])


def scored_split(store: FeatureStore) -> str:
    """Return the split whose examples are predicted: test, or validation where that is empty."""
    return "test" if store.splits.rows["test"] else "validation"


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
            "epochs": f"{len(run.history)}; the model is that of epoch {checkpoint.epoch}",
            **scores,
        }
    )


def _curves(history: Sequence[EpochResult], best: int) -> Iterator[Part]:
    """Yield a figure for each metric, those of training first."""
    splits = {
        split: {each.epoch: scores.values for each in history if (scores := getattr(each, split))}
        for split in ("train", "validation")
    }
    metrics = dict.fromkeys(
        name for epochs in splits.values() for values in epochs.values() for name in values
    )
    for metric in metrics:
        points = [
            {"epoch": epoch, "split": split, "value": values[metric]}
            for split, epochs in splits.items()
            for epoch, values in epochs.items()
            if metric in values
        ]
        rows = [
            (each.epoch, *(splits[split].get(each.epoch, {}).get(metric) for split in splits))
            for each in history
        ]
        yield Figure(
            f"Learning curve: {metric}",
            "Training is the mean over an epoch's batches, each before its step. Dashed: the epoch kept.",
            charts.learning(points, metric, best),
            Table(f"{metric} by epoch", ["epoch", *splits], rows),
        )


def _predicted(found: Predictions | None, store: FeatureStore) -> list[Part]:
    if found is None:
        return [Words(["The splits of validation and test are empty: there is nothing to predict."])]
    binary = store.spec.label.is_binary
    return [_probabilities(found) if binary else _ratings(found), _calibration(found, binary=binary)]


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
        "How the predictions for each rating spread; were they right, all would lie at the rating.",
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
    return Table(
        f"Examples by prediction and {name}", ["prediction", *(f"{name} {label:g}" for label in labels)], rows
    )


def _calibration(found: Predictions, *, binary: bool) -> Figure:
    points = []
    for low, told in {each.low: each.told for each in found.bins}.items():
        here = [each for each in found.bins if each.low == low]
        examples = sum(each.examples for each in here)
        points.append(
            {
                "told": told,
                "prediction": sum(each.predicted for each in here) / examples,
                "truth": sum(each.examples * each.label for each in here) / examples,
                "examples": examples,
            }
        )
    rows = [(each["told"], each["prediction"], each["truth"], each["examples"]) for each in points]
    return Figure(
        f"Calibration, {found.split}",
        "On the dashed line what is predicted comes true on average; above it the model predicts too little.",
        charts.calibration(points, "probability" if binary else "rating"),
        Table("Mean label by prediction", ["prediction", "their mean", "mean label", "examples"], rows),
    )
