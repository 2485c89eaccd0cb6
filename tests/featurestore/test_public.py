import pickle
import pkgutil
import subprocess
import sys

import pytest

import featurestore
from featurestore import errors
from featurestore.errors import SlotstoreError, SpecError, did_you_mean

PUBLIC = [
    "ArtifactError", "FeatureSpec", "FeatureStore", "NotFound", "QueryError", "SlotstoreError", "SpecError",
    "load_spec", "slot", "xxh32",
]  # fmt: skip


def test_public_names_are_exactly_these():
    assert featurestore.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(featurestore, name).__name__ == name
        assert name in dir(featurestore)


def test_no_public_name_is_a_module():
    """An imported submodule becomes an attribute of its package and would hide the name."""
    assert not set(PUBLIC) & {module.name for module in pkgutil.iter_modules(featurestore.__path__)}


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'featurestore' has no attribute 'Store'"):
        featurestore.Store  # noqa: B018
    with pytest.raises(ImportError):
        from featurestore import Store  # noqa: F401


@pytest.mark.parametrize(
    ("statement", "not_loaded"),
    [
        ("import featurestore.errors", {"duckdb", "pyarrow", "numpy", "click"}),
        ("from featurestore import xxh32", {"duckdb", "click", "rich"}),
        ("from featurestore import load_spec; load_spec('article')", {"duckdb", "click", "rich"}),
        ("from featurestore import *", {"click", "rich", "torch", "apache_beam", "mlflow", "pandas"}),
        ("from featurestore.encode import encode", {"duckdb", "click", "rich"}),
    ],
)
def test_imports_are_as_light_as_they_can_be(statement, not_loaded):
    program = f"import sys\n{statement}\nprint(*sorted({not_loaded!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_tree_of_errors_is_the_one_drawn():
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    drawn = [line for line in errors.__doc__.splitlines() if "--" in line or line.strip() == "SlotstoreError"]
    assert {line.split("--")[-1].split()[0] for line in drawn} == {one.__name__ for one in classes}
    for line in drawn:
        if "exit status" in line:
            name, status = line.split("--")[-1].split()[0], int(line.split()[-1])
            assert getattr(errors, name).exit_code == status
    assert all(issubclass(one, SlotstoreError) for one in classes)
    assert all(one.exit_code != 0 for one in classes)


def test_a_spec_error_says_every_problem_and_survives_pickling():
    error = SpecError("spec x", ["one", "two"])
    assert str(error) == "spec x: 2 problems\n  - one\n  - two"
    assert str(SpecError("spec x", ["one"])) == "spec x: 1 problem\n  - one"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.where, again.problems) == (str(error), "spec x", ["one", "two"])


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("tran", ["train", "test"], " (did you mean 'train'?)"),
        ("zzz", ["train", "test"], " (known: train, test)"),
        ("zzz", [], ""),
    ],
)
def test_did_you_mean(word, known, said):
    assert did_you_mean(word, known) == said
