"""The spec: one TOML file that says which features share which table, the label and the split.

.. code-block:: toml

    [table]
    num_slots = 1000        # rows of the shared table, 1..2**31-1
    dim = 10                # floats a row

    [[features]]
    name = "user_id"        # slot columns are user_id_slot_0, user_id_slot_1, ...
    column = "user_id"      # source column; the name by default
    seeds = [0, 1]          # or `lookups = 2`, with seeds made from the name

    [label]
    column = "rating"
    threshold = 4.0         # optional: a binary label, rating >= 4.0

    [split]
    kind = "time"           # "time", "random" or "leave_last"
    fractions = [0.8, 0.1, 0.1]
"""

import dataclasses
import datetime
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from featurestore.errors import SpecError, did_you_mean
from featurestore.hashing import MAX_SEED, MAX_SLOTS, default_seed

SPECS = Path(__file__).parent / "specs"
DEFAULT_SPEC = "movielens"
SPLITS = ("train", "validation", "test")
SPLIT_KINDS = ("time", "random", "leave_last")
MAX_LOOKUPS = 64
MAX_DIM = 65_536

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SLOT_COLUMN = re.compile(r".*_slot_[0-9]+")


@dataclass(frozen=True)
class Table:
    """The shared embedding table: ``num_slots`` rows of ``dim`` floats."""

    num_slots: int
    dim: int


@dataclass(frozen=True)
class Feature:
    """A named column of raw values and the seeds of its lookups."""

    name: str
    column: str
    seeds: tuple[int, ...]

    @property
    def slot_columns(self) -> tuple[str, ...]:
        """Names of the feature's slot columns, one a lookup."""
        return tuple(f"{self.name}_slot_{lookup}" for lookup in range(len(self.seeds)))


@dataclass(frozen=True)
class Label:
    """What is predicted: a numeric column, or whether it reaches ``threshold``."""

    column: str
    threshold: float | None = None

    @property
    def is_binary(self) -> bool:
        """Whether the label is 0 or 1."""
        return self.threshold is not None


@dataclass(frozen=True)
class SplitRule:
    """How examples are divided into train, validation and test.

    kind ``time``: by event time, at ``boundaries`` (the first unix second of validation and of
    test) or at the times that leave the given ``fractions``. kind ``random``: by a hash of user,
    movie and ``seed``. kind ``leave_last``: each user's last ``last`` examples are test, the
    ``last`` before them validation.
    """

    kind: str
    fractions: tuple[float, ...] = ()
    boundaries: tuple[int, ...] = ()
    seed: int = 0
    last: int = 1


@dataclass(frozen=True)
class FeatureSpec:
    """All that decides which slots an example has, its label and its split."""

    name: str
    table: Table
    features: tuple[Feature, ...]
    label: Label
    split: SplitRule

    @property
    def slot_columns(self) -> tuple[str, ...]:
        """All slot columns, in the order in which a model concatenates their rows."""
        return tuple(column for feature in self.features for column in feature.slot_columns)

    def feature(self, name: str) -> Feature:
        """Return the feature called ``name``; ValueError if there is none."""
        for feature in self.features:
            if feature.name == name:
                return feature
        known = [feature.name for feature in self.features]
        raise ValueError(f"no feature {name!r} in spec {self.name!r}{did_you_mean(name, known)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical form: plain values, seeds listed, defaults filled in."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @property
    def fingerprint(self) -> str:
        """Hex digest of the canonical form. The spec's name does not count."""
        content = {key: value for key, value in self.to_dict().items() if key != "name"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fit(self, columns: Iterable[str]) -> tuple[Self, list[str]]:
        """Drop the features whose column is not in ``columns``; return the spec and what was dropped."""
        known = set(columns)
        kept = tuple(feature for feature in self.features if feature.column in known)
        dropped = [feature.name for feature in self.features if feature.column not in known]
        return dataclasses.replace(self, features=kept), dropped

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """Raise SpecError, naming every missing column, unless a source with ``columns`` has them all."""
        known = list(columns)
        problems = [
            f"feature {feature.name!r} needs column {feature.column!r}, which the source does not have"
            f"{did_you_mean(feature.column, known)}"
            for feature in self.features
            if feature.column not in known
        ]
        if problems:
            raise SpecError(f"spec {self.name!r} does not fit {where}", problems)


def load_spec(name_or_path: str | Path) -> FeatureSpec:
    """Load a shipped spec by its name, or one from a TOML file.

    Raises:
        SpecError: with every problem of the file, or the known names where there is no such file.
    """
    shipped = SPECS / f"{name_or_path}.toml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = did_you_mean(str(name_or_path), shipped_specs())
        message = f"neither a shipped spec nor a readable file{hint}: {error.strerror}"
        raise SpecError(f"spec {str(name_or_path)!r}", [message]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"spec {path}", [f"not TOML: {error}"]) from error
    return parse_spec(data, name=path.stem, where=f"spec {path.name}")


def shipped_specs() -> list[str]:
    """Names of the specs that come with the package."""
    return sorted(path.stem for path in SPECS.glob("*.toml"))


def parse_spec(data: Mapping[str, Any], name: str, where: str) -> FeatureSpec:
    """Build a spec from parsed TOML, or from `FeatureSpec.to_dict`; SpecError lists every problem."""
    problems: list[str] = []
    _unknown_keys(data, ("name", "table", "features", "label", "split"), "", problems)
    spec = FeatureSpec(
        name=str(data.get("name", name)),
        table=_table(_section(data, "table", problems), problems),
        features=_features(data.get("features"), problems),
        label=_label(_section(data, "label", problems), problems),
        split=_split(_section(data, "split", problems), problems),
    )
    if problems:
        raise SpecError(where, problems)
    return spec


def _section(data: Mapping[str, Any], key: str, problems: list[str]) -> Mapping[str, Any]:
    section = data.get(key)
    if isinstance(section, Mapping):
        return section
    problems.append(f"[{key}] is missing" if section is None else f"[{key}] must be a table, got {section!r}")
    return {}


def _unknown_keys(data: Mapping[str, Any], known: Sequence[str], place: str, problems: list[str]) -> None:
    problems.extend(f"unknown key {place}{key}{did_you_mean(key, known)}" for key in data if key not in known)


def _integer(data: Mapping[str, Any], key: str, place: str, low: int, high: int, problems: list[str]) -> int:
    value = data.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    if data or value is not None:  # a missing section is reported once, as a whole
        got = "nothing" if value is None else repr(value)
        problems.append(f"{place}{key} must be a whole number in {low}..{high}, got {got}")
    return low


def _table(data: Mapping[str, Any], problems: list[str]) -> Table:
    _unknown_keys(data, ("num_slots", "dim"), "table.", problems)
    return Table(
        num_slots=_integer(data, "num_slots", "table.", 1, MAX_SLOTS, problems),
        dim=_integer(data, "dim", "table.", 1, MAX_DIM, problems),
    )


def _features(items: object, problems: list[str]) -> tuple[Feature, ...]:
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        problems.append("at least one [[features]] entry is needed")
        return ()
    features = []
    for number, item in enumerate(items):
        if isinstance(item, Mapping):
            features.append(_feature(item, f"features[{number}].", problems))
        else:
            problems.append(f"features[{number}] must be a table, got {item!r}")
    names = [feature.name for feature in features]
    problems.extend(
        f"feature {name!r} is listed twice" for name in sorted(set(names)) if names.count(name) > 1
    )
    return tuple(features)


def _feature(data: Mapping[str, Any], place: str, problems: list[str]) -> Feature:
    _unknown_keys(data, ("name", "column", "lookups", "seeds"), place, problems)
    name = _identifier(data.get("name"), f"{place}name", problems)
    column = _identifier(data.get("column", name), f"{place}column", problems)
    if ("seeds" in data) == ("lookups" in data):
        problems.append(
            f"{place}: give either lookups = k or seeds = [...], {'not both' if 'seeds' in data else 'got none'}"
        )
        return Feature(name, column, ())
    if "seeds" in data:
        return Feature(name, column, _seeds(data["seeds"], place, problems))
    lookups = _integer(data, "lookups", place, 1, MAX_LOOKUPS, problems)
    return Feature(name, column, tuple(default_seed(name, lookup) for lookup in range(lookups)))


def _identifier(value: object, place: str, problems: list[str]) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        problems.append(f"{place} must be a name of letters, digits and _, got {value!r}")
    elif _SLOT_COLUMN.fullmatch(value):
        problems.append(f"{place} must not end like a slot column, got {value!r}")
    return str(value)


def _seeds(value: object, place: str, problems: list[str]) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= MAX_SEED for seed in value
    )
    if not whole or not 1 <= len(value) <= MAX_LOOKUPS or len(set(value)) != len(value):
        problems.append(
            f"{place}seeds must be 1..{MAX_LOOKUPS} distinct whole numbers in 0..{MAX_SEED}, got {value!r}"
        )
        return ()
    return tuple(value)


def _label(data: Mapping[str, Any], problems: list[str]) -> Label:
    _unknown_keys(data, ("column", "threshold"), "label.", problems)
    threshold = data.get("threshold")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
        problems.append(f"label.threshold must be a number, got {threshold!r}")
        threshold = None
    column = _identifier(data["column"], "label.column", problems) if "column" in data else "rating"
    if column != "rating":
        problems.append(f"label.column must be 'rating', the only label MovieLens has, got {column!r}")
    return Label(column, None if threshold is None else float(threshold))


def _split(data: Mapping[str, Any], problems: list[str]) -> SplitRule:
    kind = data.get("kind", "time")
    if kind not in SPLIT_KINDS:
        problems.append(
            f"split.kind must be one of {', '.join(SPLIT_KINDS)}, got {kind!r}{did_you_mean(str(kind), SPLIT_KINDS)}"
        )
        return SplitRule("time")
    _unknown_keys(data, ("kind", "fractions", "boundaries", "seed", "last"), "split.", problems)
    rule = SplitRule(
        kind=kind,
        fractions=_fractions(data.get("fractions") or (), problems),
        boundaries=_boundaries(data.get("boundaries") or (), problems),
        seed=_integer({"seed": 0, **data}, "seed", "split.", 0, MAX_SEED, problems),
        last=_integer({"last": 1, **data}, "last", "split.", 1, 1_000_000, problems),
    )
    needs = {"time": ("fractions", "boundaries"), "random": ("fractions",), "leave_last": ()}[kind]
    given = [key for key in ("fractions", "boundaries") if getattr(rule, key)]
    if data and len([key for key in given if key in needs]) != min(len(needs), 1):
        problems.append(
            f"a {kind} split needs exactly one of {' or '.join(needs)}, got {' and '.join(given) or 'none'}"
        )
    problems.extend(f"split.{key} does not apply to a {kind} split" for key in given if key not in needs)
    return rule


def _fractions(value: object, problems: list[str]) -> tuple[float, ...]:
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(part, (int, float)) and not isinstance(part, bool) and 0 <= part <= 1 for part in value
    )
    if value and (not numbers or len(value) not in (2, 3) or abs(sum(value) - 1) > 1e-9 or value[0] == 0):
        problems.append(
            "split.fractions must be 2 or 3 numbers (train, validation, test) that add up to 1, train above 0, "
            f"got {value!r}"
        )
        return ()
    return tuple(float(part) for part in value)


def _boundaries(value: object, problems: list[str]) -> tuple[int, ...]:
    try:
        moments = tuple(_unix_seconds(moment) for moment in value)
    except (TypeError, ValueError):
        moments = ()
    if value and (len(moments) not in (1, 2) or list(moments) != sorted(moments)):
        problems.append(
            "split.boundaries must be 1 or 2 rising times (the first of validation, the first of test), as unix "
            f"seconds or ISO dates, got {value!r}"
        )
        return ()
    return moments


def _unix_seconds(moment: object) -> int:
    if isinstance(moment, str):
        moment = datetime.datetime.fromisoformat(moment)
    if isinstance(moment, datetime.datetime):
        aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return int(aware.timestamp())
    if isinstance(moment, datetime.date):
        return int(datetime.datetime.combine(moment, datetime.time(), datetime.UTC).timestamp())
    if isinstance(moment, bool) or not isinstance(moment, int):
        raise TypeError(f"not a time: {moment!r}")
    return moment
