"""`slotstore utilization` as it is typed."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from featurestore.errors import ArtifactError, FingerprintError, NotFound
from training.utilization.command import command


def run(*args):
    return CliRunner().invoke(command, [*map(str, args)], catch_exceptions=False).stdout


def test_people_read_tables(small):
    told = run("--store", small.store)
    for line in ("no value", "left out", "held out", "trained", "one value", "within", "between"):
        assert f"\n{line} " in told
    assert f"model     {small.checkpoint}\n" in told
    assert "table     24 rows of 4 floats" in told
    assert "user_id   new " in told
    assert "All examples of test: rmse " in told


def test_machines_read_json_however_the_run_is_named(small):
    told = run("--store", small.store, "--json")
    found = json.loads(told)
    assert sum(found["uses"].values()) == found["table"]["rows"] == 24
    assert found["uses"]["no value"] + sum(found["shares"].values()) == 24
    assert [each["feature"] for each in found["features"]] == ["user_id", "movie_id", "zip"]
    assert found["kinds"]["user_id"]["new"]["values"] == 1
    for name in ("latest", "aaaa", small.checkpoint.parent, small.checkpoint):
        assert run(name, "--store", small.store, "--json") == told


def test_another_split_has_other_examples(small):
    found = json.loads(run("--store", small.store, "--split", "validation", "--json"))
    assert found["split"] == "validation"
    assert "All examples of validation: " in run("--store", small.store, "--split", "validation")


def test_where_the_test_split_is_empty_validation_is_scored(article_store, article_model):
    told = run(article_model, "--store", article_store)
    assert "All examples of validation: rmse " in told
    told = run(article_model, "--store", article_store, "--split", "test")
    assert "The test split is empty: no example to score." in told


def test_an_unknown_run_names_the_nearest(small, tmp_path):
    with pytest.raises(
        NotFound, match=r"no run '20260101-000000-aaab' .*did you mean '20260101-000000-aaaa'"
    ):
        run("20260101-000000-aaab", "--store", small.store)
    with pytest.raises(NotFound, match=r"no checkpoint .*none.pt"):
        run(tmp_path / "none.pt", "--store", small.store)
    with pytest.raises(NotFound, match=r"no run 'latest' in .*: `slotstore train` makes one"):
        run("--store", tmp_path)


def test_a_model_of_another_spec_is_refused(small, tiny_store, tiny):
    with pytest.raises(FingerprintError, match=tiny.snapshot.manifest.fingerprint):
        run(small.checkpoint, "--store", tiny_store, "--snapshot", "latest")


def test_a_snapshot_that_is_not_there_is_named(small, tiny_store):
    with pytest.raises(NotFound, match=r"no snapshot '[0-9a-f]{12}' in "):
        run(small.checkpoint, "--store", tiny_store)


def test_a_lost_vocabulary_says_how_it_is_mended(small, tmp_path):
    store = shutil.copytree(small.store, tmp_path / "store")
    for path in store.glob("snapshots/*/vocabulary/*.parquet"):
        path.unlink()
    with pytest.raises(ArtifactError, match=r"vocabulary/part.* is missing(.|\n)*Ingest the source again"):
        run("--store", store)


def test_a_mistake_is_told_without_a_traceback(small):
    program = "from featurestore.cli import main; main()"
    words = ["utilization", "nothing", "--store", str(small.store)]
    result = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert result.returncode == 4
    assert result.stderr.startswith("error: no run 'nothing' in ")
