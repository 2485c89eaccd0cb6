"""What the sections of a page say, against the same counted another way."""

import collections
import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from featurestore.collisions import collisions
from featurestore.errors import NotFound
from featurestore.hashing import slot
from featurestore.reslot import reslot
from featurestore.snapshot import MANIFEST, open_snapshot
from featurestore.store import FeatureStore
from training.checkpoint import load_checkpoint
from training.comparison.kept import kept_comparisons
from training.config import TrainConfig
from training.job import train
from training.predictor import Predictor, load_model
from training.report.build import build_report
from training.report.collided import collisions_section, load_bars
from training.report.features import features_section
from training.report.parts import Figure, Table, Words
from training.report.predictions import PROBABILITIES, RATINGS, _Counts, count_predictions
from training.report.quality import quality_section
from training.report.run import open_run, run_section
from training.report.snapshot import rejects_section, snapshot_section
from training.report.splits import MOST_BARS, by_time, splits_section, unit_for


@pytest.fixture
def store(reported):
    with FeatureStore(reported.store) as opened:
        yield opened


def figures(section):
    return [part for part in section.parts if isinstance(part, Figure)]


def figure(section, title):
    (found,) = [one for one in figures(section) if one.title.startswith(title)]
    return found


def table(section, title):
    (found,) = [part for part in section.parts if isinstance(part, Table) and part.title.startswith(title)]
    return found


def drawn(one):
    """Return the rows of the marks that say something."""
    (found,) = [rows for rows in one.chart["datasets"].values() if "said" in rows[0]]
    return found


def raw_values(rows):
    """Return examples without their slots, which the predictor makes itself."""
    return rows.select([name for name in rows.column_names if "_slot_" not in name])


def counts_of(store, feature):
    rows = store.sql("SELECT value, count FROM vocabulary WHERE feature = $f", {"f": feature}).to_pylist()
    return {row["value"]: row["count"] for row in rows}


def test_the_snapshot_is_its_manifest(store):
    section = snapshot_section(store)
    facts = section.parts[0].values
    counts = store.snapshot.manifest.counts
    assert facts["records"].startswith(f"{counts['read']:,} read = {counts['examples']:,} examples + 0 ")
    assert facts["table"] == "32,768 slots x 16: 2,097,152 bytes"
    assert facts["splits"].startswith("time, fractions 0.8, 0.1, 0.1, boundaries ")
    assert {row[0] for row in table(section, "Files").rows} == {"ratings.dat", "users.dat", "movies.dat"}


def test_rejects_are_told_with_their_reason_and_record(hostile, store):
    assert rejects_section(store).parts == [Words(["None: every record of the source became an example."])]
    with FeatureStore(hostile.store) as opened:
        section = rejects_section(opened)
    assert section.parts[0].lines == ["1 of 13 records (7.69%) could not become examples."]
    (reject,) = table(section, "The first").rows
    assert reject[0] == "ratings.dat"
    assert "onerror" in reject[-1]
    assert [row[-1] for row in table(section, "Rejects by").rows] == [1]


def test_the_traffic_is_that_of_the_hottest_values(store):
    section = features_section(store)
    rows = {row[0]: row for row in table(section, "Features").rows}
    lines = drawn(figure(section, "How the"))
    for feature in store.spec.features:
        counts = sorted(counts_of(store, feature.name).values(), reverse=True)
        reached = np.cumsum(counts)
        needed = [int(np.searchsorted(reached, part * reached[-1])) + 1 for part in (0.5, 0.9, 0.99)]
        told = rows[feature.name]
        assert told[2:] == (len(feature.seeds), len(counts), counts.count(1), reached[-1], *needed)
        line = {row["rank"]: row["share"] for row in lines if row["feature"] == feature.name}
        assert line[1] == pytest.approx(counts[0] / reached[-1])
        assert line[len(counts)] == 1
        assert all(line[rank] == pytest.approx(reached[rank - 1] / reached[-1]) for rank in line)


def test_the_timeline_has_every_example_once(store):
    section = splits_section(store)
    bars = drawn(figure(section, "Examples over"))
    for split, rows in store.splits.rows.items():
        assert sum(bar["examples"] for bar in bars if bar["name"] == split) == rows
    assert all(bar["high"] - bar["low"] == bar["examples"] for bar in bars)
    assert all(bar["start"] < bar["end"] for bar in bars)
    assert len({bar["start"] for bar in bars}) <= MOST_BARS + 1
    total = sum(sum(row[1:-1]) for row in figure(section, "Examples over").table.rows)
    assert total == sum(store.splits.rows.values())


def test_what_the_label_drops_is_left_out_of_the_splits_and_told(paper_store):
    with FeatureStore(paper_store) as opened:
        section = splits_section(opened)
        dropped = opened.splits.dropped
    bars = drawn(figure(section, "Examples over"))
    assert sum(bar["examples"] for bar in bars if bar["name"] == "left out") == dropped > 0
    assert [row[0] for row in table(section, "Splits").rows] == ["train", "validation", "test", "left out"]
    assert 0 < table(section, "Splits").rows[0][-1] < 1  # the mean of a binary label


def test_an_empty_split_is_told_as_one(article_store):
    with FeatureStore(article_store) as opened:
        rows = table(splits_section(opened), "Splits").rows
    assert rows[-1] == ("test", 0, "0.0%", None, None, None)


DAYS = {"hour": 0, "day": 3, "week": 90, "month": 1000, "quarter": 5000, "year": 20_000}


@pytest.mark.parametrize("unit", DAYS)
def test_bars_are_as_long_as_keeps_them_few(unit):
    assert unit_for(10**9, 10**9 + DAYS[unit] * 86_400) == unit


def test_bars_of_a_quarter_end_where_the_next_begins(store):
    splits_section(store)
    rows = by_time(store, "quarter")
    starts = sorted({row["start"] for row in rows})
    ends = {row["start"]: row["end"] for row in rows}
    assert all(ends[one] <= other for one, other in itertools.pairwise(starts))
    assert all(89 <= (ends[start] - start) / 86_400_000 <= 92 for start in starts)


def test_the_heat_map_is_the_traffic_that_shares_a_slot(store):
    cells = {
        (cell["feature"], cell["other"]): cell for cell in drawn(figure(collisions_section(store), "Which"))
    }
    size = store.spec.table.num_slots
    slots = {
        feature.name: {
            value: {slot(value, seed, size) for seed in feature.seeds}
            for value in counts_of(store, feature.name)
        }
        for feature in store.spec.features
    }
    assert len(cells) == len(slots) ** 2
    for feature, other in itertools.product(slots, slots):
        counts = counts_of(store, feature)
        users = collections.Counter(number for taken in slots[other].values() for number in taken)
        own = 1 if feature == other else 0
        shared = [value for value, taken in slots[feature].items() if any(users[one] > own for one in taken)]
        share = sum(counts[value] for value in shared) / sum(counts.values())
        assert cells[feature, other]["share"] == pytest.approx(share)
        assert cells[feature, other]["values"] == len(shared)


def test_the_histogram_has_every_slot(store, article_store):
    for opened, size in ((store, 32_768), (store, 50)):
        bars = load_bars(collisions(opened, size))
        assert sum(bar["slots"] for bar in bars) == size
        assert sum(bar["expected"] for bar in bars) == pytest.approx(size, rel=0.02)
        assert len(bars) <= 31
        assert bars[0]["told"] == "0"


def test_quality_is_that_of_the_comparisons_of_this_snapshot(store, binary_store):
    kept, older = kept_comparisons(store)
    assert (kept.label.is_binary, older.label.is_binary) == (True, False)
    assert {(cell.layout, cell.seed) for cell in kept.cells} == {
        ("unified", 0),
        ("unified", 1),
        ("exact", 0),
        ("exact", 1),
    }
    section = quality_section(store)
    points = drawn(figure(section, "Test auc"))
    for point in points:
        cells = [
            cell for cell in kept.cells if (cell.layout, cell.budget) == (point["layout"], point["budget"])
        ]
        assert point["mean"] == pytest.approx(np.mean([cell.test["auc"] for cell in cells]))
        assert point["seeds"] == 2
    with FeatureStore(binary_store) as other:
        assert kept_comparisons(other) == []
        (words,) = quality_section(other).parts
    assert "slotstore compare --store" in words.lines[0]


def test_a_re_slotted_snapshot_has_the_comparisons_of_its_rows(reported, tmp_path):
    copy = shutil.copytree(reported.store, tmp_path / "store")
    with FeatureStore(copy) as before:
        expected = [[each.folder, len(each.cells)] for each in kept_comparisons(before)]
    reslot(copy, num_slots=99, lookups={"zip": 3})
    with FeatureStore(copy) as after:
        assert [[each.folder, len(each.cells)] for each in kept_comparisons(after)] == expected
        assert after.spec.table.num_slots == 99
    assert len(expected) == 2


def test_damaged_and_foreign_files_among_kept_cells_are_passed_over(reported, tmp_path):
    copy = shutil.copytree(reported.store, tmp_path / "store")
    (folder,) = [
        path for path in (copy / "comparisons").iterdir() if len(list((path / "cells").iterdir())) == 6
    ]
    (folder / "cells" / "broken.json").write_text("{")
    (folder / "cells" / "other.json").write_text("[1]")
    (folder / "cells" / "less.json").write_text('{"layout": "unified"}')
    shutil.copytree(folder, copy / "comparisons" / "0123456789ab")  # of another snapshot: not its digest
    with FeatureStore(copy) as opened:
        kept = {each.folder: len(each.cells) for each in kept_comparisons(opened)}
        assert len(kept) == 2
        assert kept[folder] == 6
        (folder / "setup.json").write_text("[]")
        assert [each.folder for each in kept_comparisons(opened)] == [path for path in kept if path != folder]


def test_learning_curves_have_every_epoch_also_those_after_the_best(store, reported):
    run = open_run("aaaa", reported.store / "checkpoints")
    assert run.name == "20260101-000000-aaaa"
    assert [each.epoch for each in run.history] == [1, 2]
    section = run_section(store, run)
    rows = figure(section, "Learning curve: rmse").table.rows
    assert rows == [(e.epoch, e.train.values["rmse"], e.validation.values["rmse"]) for e in run.history]
    early = open_run(str(reported.checkpoint), reported.store / "checkpoints")
    assert len(early.history) == early.checkpoint.epoch


def test_a_damaged_last_state_leaves_the_epochs_of_the_best(reported, tmp_path):
    folder = shutil.copytree(reported.checkpoint.parent, tmp_path / "run")
    (folder / "last.pt").write_bytes(b"no checkpoint")
    run = open_run(str(folder), reported.store / "checkpoints")
    assert len(run.history) == run.checkpoint.epoch


def test_predictions_are_those_of_the_predictor_counted_in_bins(store, reported):
    checkpoint = load_checkpoint(reported.checkpoint)
    heard = []
    found = count_predictions(store, load_model(checkpoint, reported.checkpoint), "test", heard.append)
    rows = store.sql("FROM test")
    predicted = Predictor.load(reported.checkpoint).predict(raw_values(rows)).astype(np.float64)
    ratings = rows["rating"].to_numpy()
    expected = collections.Counter(zip(np.floor(predicted / 0.25).tolist(), ratings.tolist(), strict=True))
    assert {(one.low / 0.25, one.label): one.examples for one in found.bins} == expected
    assert sum(one.labels for one in found.bins) == pytest.approx(ratings.sum())
    assert sum(one.predicted for one in found.bins) == pytest.approx(predicted.sum())
    assert sum(heard) == found.examples == len(rows)
    assert found.scores.values["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - ratings) ** 2)))


def test_probabilities_and_their_calibration(binary_store, tmp_path):
    train(TrainConfig(binary_store, epochs=1, tracking=False, checkpoint_dir=tmp_path))
    with FeatureStore(binary_store) as opened:
        section = run_section(opened, open_run(str(tmp_path), tmp_path))
        rows = opened.sql("FROM test")
    predicted = Predictor.load(tmp_path / "best.pt").predict(raw_values(rows)).astype(np.float64)
    bars = drawn(figure(section, "Predicted probabilities"))
    for label in ("0", "1"):
        assert sum(bar["share"] for bar in bars if bar["label"] == label) == pytest.approx(1)
    points = drawn(figure(section, "Calibration"))
    liked = rows["rating"].to_numpy() >= 4
    for point in points:
        low = round(float(point["told"].split()[0]) / 0.05)
        inside = np.floor(predicted / 0.05) == low
        assert point["examples"] == inside.sum()
        assert point["truth"] == pytest.approx(liked[inside].mean())
        assert point["prediction"] == pytest.approx(predicted[inside].mean(), rel=1e-4)


def test_where_the_test_split_is_empty_validation_is_predicted(article_store, tmp_path):
    train(TrainConfig(article_store, epochs=1, tracking=False, checkpoint_dir=tmp_path))
    run = open_run(str(tmp_path), tmp_path)
    with FeatureStore(article_store) as opened:
        assert count_predictions(opened, load_model(run.checkpoint, run.path), "test") is None
        assert figure(run_section(opened, run), "Predictions against ratings, validation")


def test_a_snapshot_without_a_vocabulary_has_a_page_that_says_how_to_build_one(reported, tmp_path):
    copy = shutil.copytree(reported.store, tmp_path / "store")
    path = open_snapshot(copy).folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["shards"]["vocabulary"] = []
    path.write_text(json.dumps(manifest))
    with FeatureStore(copy) as opened:
        report = build_report(opened, None)
    by_name = {section.name: section for section in report.sections}
    assert "has no vocabulary" in by_name["collisions"].parts[0].lines[0]
    assert not figures(by_name["features"])
    assert figures(by_name["splits"])
    assert "Collisions" in report.html()


def test_progress_is_told_to_the_end(store, reported):
    class Heard:
        def __init__(self):
            self.left = {}

        def begin(self, title, steps):
            self.now = title
            self.left[title] = steps

        def advance(self, steps):
            self.left[self.now] -= steps

    heard = Heard()
    build_report(store, open_run("latest", reported.store / "checkpoints"), heard)
    names = ("snapshot", "rejects", "features", "splits", "collisions", "quality", "run")
    assert heard.left == dict.fromkeys(names, 0)


def test_bins_hold_what_lies_outside_them_and_say_so():
    counts = _Counts(RATINGS)
    counts.add(np.array([-3.0, 0.1, 40.0], np.float32), np.array([1.0, 1.25, 4.74], np.float32))
    low, high = counts.bins()
    assert (low.told, low.examples, low.label) == ("0.00 to 0.25", 2, 1.0)
    assert low.labels == pytest.approx(2.25)
    assert (high.told, high.predicted, high.label) == ("5.75 and more", 40, 4.5)
    assert high.labels == pytest.approx(4.74)
    assert PROBABILITIES.told(19) == "0.95 to 1.00"
    assert PROBABILITIES.numbers(np.array([1.0])).tolist() == [19]


def test_only_splits_with_a_value_are_drawn(store, reported):
    section = run_section(store, open_run("latest", reported.store / "checkpoints"))
    curve = figure(section, "Learning curve: mae")
    assert curve.table.names == ["epoch", "validation"]
    assert "Training" not in curve.says
    assert "Training" in figure(section, "Learning curve: rmse").says


def test_a_run_without_a_model_yet_is_told_as_that(reported, tmp_path):
    folder = shutil.copytree(reported.checkpoint.parent, tmp_path / "run")
    (folder / "best.pt").unlink()
    with pytest.raises(NotFound, match="run run has no model yet: one is kept when an epoch ends"):
        open_run(str(folder), tmp_path)


def test_a_model_of_another_snapshot_is_pointed_out(store, reported):
    run = open_run("latest", reported.store / "checkpoints")
    there = dataclasses.replace(run, checkpoint=dataclasses.replace(run.checkpoint, snapshot="0" * 12))
    words = [part.lines[0] for part in run_section(store, there).parts if isinstance(part, Words)]
    assert words[0].startswith("The model was trained on snapshot 000000000000, not on ")
    assert not any(isinstance(part, Words) for part in run_section(store, run).parts)


MANY = """
[table]
num_slots = 64
dim = 2
{}
[label]
column = "rating"
[split]
kind = "random"
fractions = [0.8, 0.1, 0.1]
"""


def test_of_many_features_those_with_most_values_are_drawn(tmp_path, write_tiny_source, ingest_folder):
    write_tiny_source(tmp_path / "ml")
    columns = ["user_id", "movie_id", *["gender"] * 13]
    features = [f'[[features]]\nname = "f{n}"\ncolumn = "{c}"\nlookups = 1' for n, c in enumerate(columns)]
    (tmp_path / "many.toml").write_text(MANY.format("\n".join(features)))
    ingest_folder(tmp_path / "ml", tmp_path / "store", spec=str(tmp_path / "many.toml"))
    with FeatureStore(tmp_path / "store") as opened:
        report = build_report(opened, None)
    by_name = {section.name: section for section in report.sections}
    traffic = figure(by_name["features"], "How the traffic")
    assert traffic.says.endswith("Drawn are the 12 features with most values.")
    assert {"f0", "f1"} < {row["feature"] for row in drawn(traffic)}
    assert len(drawn(figure(by_name["collisions"], "Which"))) == 15**2
    assert "layer" not in figure(by_name["collisions"], "Which").chart  # no numbers in the cells


def test_every_figure_says_something_and_has_numbers(store, reported):
    report = build_report(store, open_run("latest", reported.store / "checkpoints"))
    found = [one for section in report.sections for one in figures(section)]
    assert len(found) == 11
    for one in found:
        assert one.says.endswith(".")
        assert one.table.rows
        assert all(len(row) == len(one.table.names) for row in one.table.rows)
    assert report.html() == report.html()
