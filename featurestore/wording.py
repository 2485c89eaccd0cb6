"""What a person reads of labels and splits."""

from collections.abc import Iterable

from featurestore.output import moment
from featurestore.spec import SPLITS, Label, SplitRule
from featurestore.splits import Splits


def rule_text(cut: Splits) -> str:
    """Return the rule that cuts splits, with its boundaries."""
    rule = cut.rule
    fractions = f"fractions {_listed(rule.fractions)}"
    facts = {
        "time": f"{fractions}, boundaries {_listed(map(moment, cut.boundaries))}",
        "random": f"{fractions}, seed {rule.seed}",
        "leave_last": f"the last {rule.last} of each user are test, the {rule.last} before them validation",
        "files": _files_text(rule),
    }
    return f"{rule.kind}, {facts[rule.kind]}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"


def _files_text(rule: SplitRule) -> str:
    named = {split: getattr(rule, split) for split in SPLITS}
    told = [f"{split} {', '.join(names)}" for split, names in named.items() if names]
    if rule.validation_fraction:
        told.append(f"validation {rule.validation_fraction:g} of train, seed {rule.seed}")
    return "; ".join(told)


def label_text(label: Label) -> str:
    """Return what is predicted, and which examples are left out."""
    told = label.column if label.threshold is None else f"{label.column} >= {label.threshold:g}"
    return f"{told}{', without those of ' + dropped_text(label) if label.drop else ''}"


def dropped_text(label: Label) -> str:
    """Return the values whose examples are in no split."""
    return " or ".join(map(str, label.drop))
