"""Benchmarks of quality and of layouts still run, at sizes that say nothing about either."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("rating.py", ["--rows", "3k", "--seeds", "2", "--epochs", "1"], ["biased MF", "article", "dcn"]),
        ("layouts.py", ["--rows", "3k", "--rounds", "1", "--budgets", "0.2x"], ["plain", "unified_narrow"]),
        ("narrow.py", ["--batches", "64", "--models", "fm", "--rounds", "1"], ["wide", "by value"]),
        ("pruning.py", ["--rows", "3k", "--rounds", "1", "--epochs", "1"], ["raw values", "slots"]),
    ],
)
def test_a_benchmark_prints_its_table(script, options, said):
    made_up = {key: value for key, value in os.environ.items() if key != "SLOTSTORE_DATA"}
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options],
        capture_output=True, text=True, env=made_up, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for name in said:
        assert re.search(rf"\b{name}\b.*\d", result.stdout), result.stdout
