"""The spec: one TOML file that says which features share which table, the label and the split.

.. code-block:: toml

    [table]
    num_slots = 1000        # rows of the shared table, 1..2**31-1
    dim = 10                # floats a row
    vector = 30             # optional, for narrow rows: floats of the vector that a feature's rows make

    [[features]]
    name = "user_id"        # slot columns are user_id_slot_0, user_id_slot_1, ...
    column = "user_id"      # source column; the name by default
    seeds = [0, 1]          # or `lookups = 2`, with seeds made from the name

    [label]
    column = "rating"
    threshold = 4.0         # optional: a binary label, rating >= 4.0
    drop = [3.0]            # optional: examples with these ratings are in no split

    [split]
    kind = "time"           # "time", "random", "leave_last" or "files"
    fractions = [0.8, 0.1, 0.1]
"""

import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from featurestore.errors import SpecError, did_you_mean
from featurestore.hashing import MAX_SEED, MAX_SLOTS, default_seed
from featurestore.paths import AnyPath, as_path
from featurestore.section import Section, as_integer, as_number, as_unix_seconds

SPECS = Path(__file__).parent / "specs"
DEFAULT_SPEC = "movielens"
SPLITS = ("train", "validation", "test")
SPLIT_KINDS = ("time", "random", "leave_last", "files")
MAX_LOOKUPS = 64
LAST_SECOND = 4_102_444_800
"""2100-01-01 in unix seconds: a later boundary is one in milliseconds."""
MAX_DIM = 65_536
MAX_PROJECTION = 1 << 22
"""Signs of the projection that makes a vector: each is a hash of its place, once a model is built."""
MAX_LAST = 1_000_000
MAX_LABEL = 1_000_000

_SLOT_COLUMN = re.compile(r".*_slot_[0-9]+", re.IGNORECASE)
_USED_BY = {
    "time": ("fractions", "boundaries"),
    "random": ("fractions", "seed"),
    "leave_last": ("last",),
    "files": (*SPLITS, "validation_fraction", "seed"),
}
"""The keys of a split that a split of each kind uses."""
_LATER = {"table": ("vector",), "label": ("drop",), "split": (*SPLITS, "validation_fraction")}
"""Keys that a canonical form has only where they are used."""


@dataclass(frozen=True)
class Table:
    """The shared embedding table: ``num_slots`` rows of ``dim`` floats.

    A model concatenates the rows of a feature's lookups or, where ``vector`` is given, makes one vector of so
    many floats of them, by signs and a projection that cost nothing: see `training.combiners`.
    """

    num_slots: int
    dim: int
    vector: int | None = None

    def __str__(self) -> str:
        read = "" if self.vector is None else f", read as vectors of {self.vector}"
        return f"{self.num_slots:,} slots x {self.dim}{read}"


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

    def with_lookups(self, count: int) -> Self:
        """Return the feature with its first ``count`` lookups, further ones having the seeds of its name.

        Raises:
            SpecError: such a seed is one that it lists already.
        """
        further = (default_seed(self.name, lookup) for lookup in range(len(self.seeds), count))
        seeds = (*self.seeds[:count], *further)
        if not _are_seeds(seeds):
            said = f"its seeds would be {list(seeds)}, not distinct ones: list them in a spec, and ingest"
            raise SpecError(f"feature {self.name!r}", [said])
        return dataclasses.replace(self, seeds=seeds)


@dataclass(frozen=True)
class Label:
    """What is predicted: a numeric column, or whether it reaches ``threshold``.

    Examples whose value is in ``drop`` belong to no split.
    """

    column: str
    threshold: float | None = None
    drop: tuple[float, ...] = ()

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
    ``last`` before them validation. kind ``files``: by the file that an example was read from, whose name
    ``train``, ``validation`` or ``test`` lists; without files of validation, ``validation_fraction`` of
    the examples of train are, by that hash.
    """

    kind: str
    fractions: tuple[float, ...] = ()
    boundaries: tuple[int, ...] = ()
    seed: int = 0
    last: int = 1
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation_fraction: float = 0.0

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the ratings are read from; none where the format says it."""
        return (*self.train, *self.validation, *self.test)


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
        """All slot columns, in the order in which a model reads them."""
        return tuple(column for feature in self.features for column in feature.slot_columns)

    def feature(self, name: str) -> Feature:
        """Return the feature called ``name``; ValueError if there is none."""
        for feature in self.features:
            if feature.name == name:
                return feature
        known = [feature.name for feature in self.features]
        raise ValueError(f"no feature {name!r} in spec {self.name!r}{did_you_mean(name, known)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical form: plain values, seeds listed, defaults filled in.

        What is of a later date than the first stores is left out where it says nothing: fingerprints stay.
        """
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for section, keys in _LATER.items():
            plain[section] = {key: value for key, value in plain[section].items() if value or key not in keys}
        return plain

    @property
    def fingerprint(self) -> str:
        """Hex digest of the canonical form. The spec's name does not count."""
        content = {key: value for key, value in self.to_dict().items() if key != "name"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def resized(self, num_slots: int | None = None, lookups: Mapping[str, int] | None = None) -> Self:
        """Return the spec with another number of slots, and of lookups of some features.

        Args:
            num_slots: rows of the table; as they are by default.
            lookups: by feature. Fewer are the first ones. A further one has the seed that its feature's name
                and its number give, also where the spec lists the seeds of those before.

        Raises:
            SpecError: with every number out of range and every unknown feature.
        """
        asked, known = dict(lookups or {}), {feature.name: feature for feature in self.features}
        problems = [f"--lookups: {_unknown_feature(name, known)}" for name in asked if name not in known]
        problems += [
            f"--lookups {name}={count}: a feature takes 1 to {MAX_LOOKUPS} lookups"
            for name, count in asked.items()
            if not 1 <= count <= MAX_LOOKUPS
        ]
        if num_slots is not None and not 1 <= num_slots <= MAX_SLOTS:
            problems.append(f"--num-slots must be in 1..{MAX_SLOTS}, got {num_slots}")
        if problems:
            raise SpecError("re-slotting", problems)
        table = self.table if num_slots is None else dataclasses.replace(self.table, num_slots=num_slots)
        features = tuple(one.with_lookups(asked.get(one.name, len(one.seeds))) for one in self.features)
        if problems := _projections(table, features):
            raise SpecError("re-slotting", problems)
        return dataclasses.replace(self, table=table, features=features)

    def fit(self, columns: Iterable[str]) -> tuple[Self, list[str]]:
        """Drop the features whose column is not in ``columns``; return the spec and what was dropped.

        Raises:
            SpecError: no feature is left.
        """
        known = set(columns)
        kept = tuple(feature for feature in self.features if feature.column in known)
        dropped = [feature.name for feature in self.features if feature.column not in known]
        if not kept:
            raise SpecError(f"spec {self.name!r}", [f"no feature has its column in {sorted(known)}"])
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


def _unknown_feature(name: str, known: Iterable[str]) -> str:
    listed, hint = ", ".join(known), did_you_mean(name, known)
    return f"no feature {name!r}{hint}" + ("" if listed in hint else f", the spec has {listed}")


def load_spec(name_or_path: str | AnyPath) -> FeatureSpec:
    """Load a shipped spec by its name, or one from a TOML file or from the manifest of a snapshot.

    Raises:
        SpecError: with every problem of the file, or the known names where there is no such file.
    """
    name = str(name_or_path)
    path = SPECS / f"{name}.toml" if name in shipped_specs() else as_path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)["spec"] if name.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        hint = did_you_mean(str(name_or_path), shipped_specs())
        message = f"neither a shipped spec nor a readable file{hint}: {error.strerror}"
        raise SpecError(f"spec {str(name_or_path)!r}", [message]) from error
    except (ValueError, RecursionError) as error:  # also of numbers too long and lists too deep
        kind = "JSON" if name.endswith(".json") else "TOML"
        raise SpecError(f"spec {path}", [f"not {kind}: {error}"]) from error
    except (LookupError, TypeError) as error:
        raise SpecError(f"spec {path}", ["not the manifest of a snapshot: it has no spec"]) from error
    return parse_spec(data, name=PurePosixPath(name).stem, where=f"spec {path.name}")


def shipped_specs() -> list[str]:
    """Names of the specs that come with the package."""
    return sorted(path.stem for path in SPECS.glob("*.toml"))


def parse_spec(data: Mapping[str, Any], name: str, where: str) -> FeatureSpec:
    """Build a spec from parsed TOML, or from `FeatureSpec.to_dict`; SpecError lists every problem."""
    whole = Section(data, "", []).only("name", "table", "features", "label", "split")
    spec = FeatureSpec(
        name=whole.text("name", name),
        table=_table(whole.section("table")),
        features=tuple(_feature(section) for section in whole.sections("features")),
        label=_label(whole.section("label")),
        split=_split(whole.section("split")),
    )
    problems = whole.problems + _clashes(spec.features) + _projections(spec.table, spec.features)
    if problems:
        raise SpecError(where, problems)
    return spec


def _table(section: Section) -> Table:
    section.only("num_slots", "dim", "vector")
    vector = section.integer("vector", 1, MAX_DIM) if section.data.get("vector") is not None else None
    return Table(section.integer("num_slots", 1, MAX_SLOTS), section.integer("dim", 1, MAX_DIM), vector)


def _projections(table: Table, features: Sequence[Feature]) -> list[str]:
    """Return what of a vector cannot be: its rows are meant to be narrow."""
    lookups = max((len(feature.seeds) for feature in features), default=0)
    signs = lookups * table.dim * (table.vector or 0)
    said = (
        f"table.vector makes {table.vector} floats of {lookups} lookups of {table.dim}: a projection of "
        f"{signs} signs, expected at most {MAX_PROJECTION}: take a smaller dim, as 1, or a smaller vector"
    )
    return [said] if signs > MAX_PROJECTION else []


def _feature(section: Section) -> Feature:
    section.only("name", "column", "lookups", "seeds")
    name = section.identifier("name")
    if _SLOT_COLUMN.fullmatch(name):
        section.note("name", "a name that does not end like a slot column")
    column = section.identifier("column") if "column" in section.data else name
    return Feature(name, column, _seeds(section, name))


def _seeds(section: Section, feature: str) -> tuple[int, ...]:
    given = [key for key in ("lookups", "seeds") if key in section.data]
    if len(given) != 1:
        got = "not both" if given else "got none"
        section.problems.append(
            f"{section.place.rstrip('.')}: give either lookups = k or seeds = [...], {got}"
        )
        return ()
    if given == ["seeds"]:
        expected = f"1..{MAX_LOOKUPS} distinct whole numbers in 0..{MAX_SEED}"
        return section.items("seeds", as_integer, _are_seeds, expected)
    lookups = section.integer("lookups", 1, MAX_LOOKUPS)
    return tuple(default_seed(feature, lookup) for lookup in range(lookups))


def _are_seeds(seeds: Sequence[int]) -> bool:
    return 1 <= len(seeds) == len(set(seeds)) <= MAX_LOOKUPS and 0 <= min(seeds) <= max(seeds) <= MAX_SEED


def _clashes(features: Sequence[Feature]) -> list[str]:
    """Return which names are the same to SQL, which does not tell case apart."""
    names = [feature.name for feature in features if feature.name]
    pairs = [pair for pair in itertools.combinations(names, 2) if pair[0].lower() == pair[1].lower()]
    return [
        f"feature {one!r} is listed twice"
        if one == other
        else f"features {one!r} and {other!r} differ only in case, which SQL does not tell apart"
        for one, other in dict.fromkeys(pairs)
    ]


def _label(section: Section) -> Label:
    section.only("column", "threshold", "drop")
    if section.data.get("column", "rating") != "rating":
        section.note("column", "'rating', the only label MovieLens has")
    drop = section.items("drop", as_number, _are_labels, f"distinct numbers of at most {MAX_LABEL}")
    return Label("rating", section.number("threshold"), tuple(sorted(drop)))


def _are_labels(values: Sequence[float]) -> bool:
    return _are_distinct(values) and all(abs(value) <= MAX_LABEL for value in values)


def _are_distinct(values: Sequence[object]) -> bool:
    return len(set(values)) == len(values)


def _split(section: Section) -> SplitRule:
    section.only(*(field.name for field in dataclasses.fields(SplitRule)))
    kind = section.choice("kind", SPLIT_KINDS, "time")
    parts = "2 or 3 numbers (train, validation, test) that add up to 1, train above 0"
    names = "distinct names of files in the source's folder"
    times = "1 or 2 rising times (the first of validation, the first of test), as unix seconds or ISO dates"
    rule = SplitRule(
        kind=kind or "time",
        fractions=section.items("fractions", as_number, _are_fractions, parts),
        boundaries=section.items("boundaries", as_unix_seconds, _are_boundaries, times),
        seed=section.integer("seed", 0, MAX_SEED, default=0),
        last=section.integer("last", 1, MAX_LAST, default=1),
        **{key: section.items(key, _as_file_name, _are_distinct, names) for key in SPLITS},
        validation_fraction=_fraction(section, "validation_fraction"),
    )
    if kind and section.present:
        section.problems.extend(_misfits(rule, section.data))
    return rule


def _as_file_name(value: object) -> str:
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or value in ("", ".", "..")
        or {*value} & {*"/\\"}
    ):
        raise ValueError(f"not the name of a file: {value!r}")
    return value


def _fraction(section: Section, key: str) -> float:
    value = section.number(key) or 0.0
    if not 0 <= value < 1:
        section.note(key, "a number of at least 0 and below 1")
        return 0.0
    return value


def _are_fractions(parts: Sequence[float]) -> bool:
    if not parts:  # as in the canonical form of a split that has none
        return True
    return len(parts) in (2, 3) and min(parts) >= 0 and parts[0] > 0 and abs(sum(parts) - 1) <= 1e-9


def _are_boundaries(times: Sequence[int]) -> bool:
    return (
        len(times) <= 2 and list(times) == sorted(times) and all(0 <= time <= LAST_SECOND for time in times)
    )


def _misfits(rule: SplitRule, data: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a split of this kind lacks, or is given and does not use."""
    used = _USED_BY[rule.kind]
    cuts = [key for key in ("fractions", "boundaries") if key in used]
    given = [key for key in cuts if data.get(key, []) != []]
    if cuts and len(given) != 1:
        got = " and ".join(given) or "none"
        yield f"a {rule.kind} split needs exactly one of {' or '.join(cuts)}, got {got}"
    if rule.kind == "files":
        yield from _file_misfits(rule, data)
    for field in dataclasses.fields(rule):
        if field.name not in ("kind", *used) and getattr(rule, field.name) != field.default:
            yield f"split.{field.name} does not apply to a {rule.kind} split"


def _file_misfits(rule: SplitRule, data: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not fit together in a split by files."""
    for key in ("train", "test"):
        if data.get(key, []) == []:
            yield f"a files split needs split.{key}, the names of one or more files"
    for name, times in Counter(rule.files).items():
        if times > 1:
            splits = " and ".join(key for key in SPLITS if name in getattr(rule, key))
            yield f"file {name!r} is in {splits}: a file belongs to one split"
    if rule.validation and rule.validation_fraction:
        yield "split.validation_fraction does not apply where split.validation names files"
