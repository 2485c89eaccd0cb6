import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import BinaryMetrics, RatingMetrics, Scores, auc

# Few distinct scores, so that ties are common.
SCORES = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.floats(-20, 20, width=32))


def accumulate(metrics, scores, labels, batch_size):
    scores, labels = torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)
    for part, truth in zip(scores.split(batch_size), labels.split(batch_size), strict=True):
        metrics.update(part, truth)
    return metrics.compute()


@given(st.lists(st.tuples(SCORES, st.floats(1, 5, width=32)), min_size=1, max_size=60), st.integers(1, 60))
def test_rating_metrics_equal_scikit_learns(rows, batch_size):
    scores, labels = zip(*rows, strict=True)
    found = accumulate(RatingMetrics(), scores, labels, batch_size)
    assert found.values["rmse"] == pytest.approx(
        sklearn.metrics.root_mean_squared_error(labels, scores), rel=1e-9
    )
    assert found.values["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(labels, scores), rel=1e-9)
    assert found.loss == found.values["rmse"]


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=60), st.integers(1, 60))
def test_binary_metrics_equal_scikit_learns(rows, batch_size):
    logits, labels = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = accumulate(BinaryMetrics(), logits, labels, batch_size)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1])
    assert found.values["log_loss"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert found.loss == found.values["log_loss"]
    if len(set(labels)) == 2:
        assert found.values["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, logits), abs=1e-12)
    else:
        assert "auc" not in found.values


def test_auc_by_hand():
    """Of the 2 x 2 pairs, two are right, one is a tie and one is wrong."""
    assert auc(torch.tensor([1.0, 2.0, 2.0, 0.0]), torch.tensor([True, True, False, False])) == 2.5 / 4


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_undefined_and_says_why(label):
    found = accumulate(BinaryMetrics(), [0.0, 1.0, 2.0], [label] * 3, 2)
    assert found.undefined == {"auc": f"all 3 labels are {label}"}
    assert found.to_dict()["auc"] is None
    assert str(found).endswith(f"auc undefined (all 3 labels are {label})")
    assert math.isfinite(found.loss)


@pytest.mark.parametrize("metrics", [RatingMetrics, BinaryMetrics])
def test_no_examples_are_an_error(metrics):
    with pytest.raises(ValueError, match="no examples"):
        metrics().compute()


def test_many_rows_keep_their_precision():
    """Sums are made in float64: a float32 sum of ten million terms would be off by percents."""
    metrics = RatingMetrics()
    for _ in range(100):
        metrics.update(torch.full((100_000,), 3.1), torch.full((100_000,), 3.0))
    assert metrics.compute().values["mae"] == pytest.approx(0.1, rel=1e-6)


def test_scores_are_shown_by_name():
    assert str(Scores({"rmse": 0.91234, "mae": 0.7}, loss=0.91234)) == "rmse 0.9123  mae 0.7000"
