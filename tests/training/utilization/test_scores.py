"""Metrics by kind, against a loop over predictions."""

import collections
import dataclasses

import pyarrow as pa
import pytest
import torch

from featurestore.errors import ArtifactError
from featurestore.store import FeatureStore
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.job import train
from training.predictor import Predictor
from training.utilization.report import measure_utilization
from training.utilization.rows import KINDS, count_values, name_kinds
from training.utilization.scores import score_kinds


@pytest.fixture
def predictor(small):
    return Predictor.load(small.checkpoint)


def test_each_example_is_scored_with_the_values_of_its_kind(opened, predictor):
    count_values(opened)
    name_kinds(opened)
    told = []
    found = score_kinds(opened, "test", predictor.model, told.append)
    rows = opened.sql("FROM test").to_pylist()
    predicted = predictor.predict(pa.Table.from_pylist(rows).select(predictor.columns)).tolist()
    kinds = {
        (row["feature"], row["value"]): KINDS[row["kind"]]
        for row in opened.sql("FROM value_kinds").to_pylist()
    }
    errors = collections.defaultdict(list)
    for row, score in zip(rows, predicted, strict=True):
        for feature in ("user_id", "movie_id", "zip"):
            errors[feature, kinds[feature, row[feature]]].append((score - row["rating"]) ** 2)
    for feature, by_kind in found.kinds.items():
        for kind, scores in by_kind.items():
            squares = errors[feature, kind]
            assert scores.examples == len(squares)
            assert scores.values == sum(key[0] == feature and each == kind for key, each in kinds.items())
            if squares:
                rmse = (sum(squares) / len(squares)) ** 0.5
                assert scores.scores.values["rmse"] == pytest.approx(rmse, rel=1e-5)
            else:
                assert scores.scores is None
    assert sum(told) == len(rows)
    assert len({key[1] for key in errors}) > 1  # else kinds were not told apart


def test_the_metrics_of_all_examples_are_those_of_the_training(trained, tiny):
    checkpoint = load_checkpoint(trained.checkpoint)
    found = measure_utilization(tiny, checkpoint, trained.checkpoint)
    assert found.scores.whole.values == pytest.approx(trained.test.values, rel=1e-6)
    for kinds in found.scores.kinds.values():
        assert sum(scores.examples for scores in kinds.values()) == tiny.splits.rows["test"]


def test_a_binary_label_is_scored_by_log_loss_and_auc(binary_store, tmp_path):
    result = train(TrainConfig(binary_store, epochs=1, tracking=False, checkpoint_dir=tmp_path / "run"))
    with FeatureStore(binary_store) as store:
        found = measure_utilization(store, load_checkpoint(result.checkpoint), result.checkpoint)
    assert found.scores.whole.values == pytest.approx(result.test.values, rel=1e-6)
    assert set(found.scores.whole.values) == {"log_loss", "auc"}


def test_norms_are_those_of_the_trained_rows_with_the_decay_they_owe(tiny_store, tiny, tmp_path):
    """Of row-wise Adagrad, whose rows decay when they are next used."""
    config = TrainConfig(
        tiny_store, epochs=1, tracking=False, checkpoint_dir=tmp_path / "run", optimizer="rowwise_adagrad",
        weight_decay=0.1,
    )  # fmt: skip
    checkpoint = load_checkpoint(train(config).checkpoint)
    state = checkpoint.optimizer["table"]["state"][0]
    owing = {**state, "log_decay": -1.0, "decayed": torch.zeros_like(state["decayed"])}
    optimizer = {**checkpoint.optimizer, "table": {**checkpoint.optimizer["table"], "state": {0: owing}}}
    found = measure_utilization(
        tiny, dataclasses.replace(checkpoint, optimizer=optimizer), tmp_path, split="validation"
    )
    norms = checkpoint.model["embedding.weight"].double().norm(dim=1) * torch.tensor(-1.0).exp()
    told = sum(each["rows"] * each["mean_norm"] for each in found.loads)
    assert told == pytest.approx(float(norms.sum()), rel=1e-5)


def test_a_slot_that_the_table_does_not_have_is_an_error(opened, predictor):
    count_values(opened)
    name_kinds(opened)
    opened.sql("CREATE OR REPLACE TABLE altered AS FROM test")
    opened.sql("UPDATE altered SET movie_id_slot_0 = 24")
    opened.sql("CREATE OR REPLACE VIEW test AS FROM altered")
    with pytest.raises(ArtifactError, match=r"a slot that the table does not have, of 24 rows: .* verify"):
        score_kinds(opened, "test", predictor.model, print)
