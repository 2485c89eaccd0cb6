import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

from featurestore.errors import FingerprintError, NotFound, SpecError
from training.job import train
from training.predictor import CHUNK_ROWS, Predictor, command, parse_values
from training.stream import SplitStream

ROW = {"user_id": "1", "movie_id": "2", "gender": "F", "age": "25", "occupation": "4", "zip": "98107"}


@pytest.fixture
def predictor(trained):
    return Predictor.load(trained.checkpoint)


def raw_values(store, columns, split="test"):
    return store.stream(split, columns).read_all()


def test_raw_values_give_what_the_stored_slots_give(predictor, tiny):
    batches = SplitStream(tiny, "test", 512).epoch(0)
    with torch.inference_mode():
        expected = torch.cat([predictor.model(batch.slots) for batch in batches]).numpy()
    predicted = predictor.predict(raw_values(tiny, predictor.columns))
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected, rtol=1e-6)


def test_it_predicts_better_than_the_mean(predictor, tiny):
    labels = raw_values(tiny, ["rating"])["rating"].to_numpy()
    predicted = predictor.predict(raw_values(tiny, predictor.columns))
    assert np.mean((predicted - labels) ** 2) < np.var(labels)


def test_unseen_values_have_slots(predictor):
    unseen, null, empty = (
        predictor.predict(pa.table({name: pa.array([value], pa.string()) for name in ROW}))
        for value in ("never seen", None, "")
    )
    assert np.isfinite([unseen, null, empty]).all()
    assert null == empty  # a null is the empty text; in one batch, rows may be summed in another order


def test_whole_numbers_are_their_digits(predictor):
    numbers = pa.table({name: [value if value == "F" else int(value)] for name, value in ROW.items()})
    assert predictor.predict(numbers) == predictor.predict(pa.Table.from_pylist([ROW]))


@pytest.mark.parametrize("rows", [0, 1, CHUNK_ROWS + 1])
def test_any_number_of_rows(predictor, rows):
    predicted = predictor.predict(
        pa.table({name: pa.array([value] * rows, pa.string()) for name, value in ROW.items()})
    )
    assert predicted.shape == (rows,)
    assert predicted.dtype == np.float32


def test_a_missing_column_is_named(predictor):
    with pytest.raises(ValueError, match="no column 'zip'"):
        predictor.predict(pa.Table.from_pylist([ROW]).drop(["zip"]))


def test_a_binary_label_is_predicted_as_a_probability(binary, binary_store, config):
    predictor = Predictor.load(train(config(binary_store)).checkpoint)
    assert predictor.output == "probability"
    predicted = predictor.predict(raw_values(binary, predictor.columns))
    assert (predicted > 0).all()
    assert (predicted < 1).all()


def test_a_snapshot_of_another_spec_is_refused(trained, tiny, binary):
    assert Predictor.load(trained.checkpoint, tiny.snapshot).columns == list(ROW)
    with pytest.raises(FingerprintError, match=binary.snapshot.manifest.fingerprint):
        Predictor.load(trained.checkpoint, binary.snapshot)


def words(row):
    return [f"{name}={value}" for name, value in row.items()]


def test_the_command_prints_the_prediction(trained, predictor):
    expected = float(predictor.predict(pa.Table.from_pylist([ROW]))[0])
    result = CliRunner().invoke(command, [str(trained.checkpoint), *words(ROW)], catch_exceptions=False)
    assert result.output == f"rating {expected:.4f}\n"
    result = CliRunner().invoke(
        command, [str(trained.checkpoint), "--json", *words(ROW)], catch_exceptions=False
    )
    assert json.loads(result.output) == {"rating": expected, "features": ROW}


def test_all_that_is_wrong_with_the_values_is_told_at_once():
    with pytest.raises(SpecError) as raised:
        parse_values(["user=1", "movie_id=2", "movie_id=3", "zip"], ["user_id", "movie_id", "zip"])
    assert raised.value.problems == [
        "the model has no feature 'user' (did you mean 'user_id'?)",
        "movie_id is given twice",
        "expected FEATURE=VALUE, got 'zip'",
        "no value for user_id: add user_id=VALUE",
    ]


def test_a_value_may_be_empty_or_hold_the_sign():
    assert parse_values(["zip=", "title=a=b"], ["zip", "title"]) == {"zip": "", "title": "a=b"}


def test_a_missing_checkpoint_is_told_without_a_traceback(tmp_path):
    with pytest.raises(NotFound, match="no checkpoint"):
        Predictor.load(tmp_path / "none.pt")
    program = "from featurestore.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "predict", str(tmp_path / "none.pt")], capture_output=True, text=True
    )
    assert result.returncode == 4
    assert result.stderr.startswith("error: no checkpoint")
