"""A trained model without the rows that no value has, and the proof that it predicts the same."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurestore.errors import ArtifactError, SpecError
from featurestore.output import table_text
from featurestore.paths import typed
from featurestore.store import FeatureStore
from training.checkpoint import PRUNED_VERSION, Checkpoint, save_checkpoint
from training.comparison.measures import Flags
from training.metrics import Scores
from training.networks import Network
from training.objective import objective_for
from training.optimizers import TABLE, settled
from training.predictor import load_model
from training.pruned import KEPT, prune
from training.stream import SplitStream
from training.utilization.rows import no_vocabulary
from training.utilization.scores import BATCH_ROWS

UNSEEN_SEED = 0
_NOT_WORTH_IT = "In memory it is not worth it: nearly all rows are in use, and the remap takes more.\n"


@dataclass(frozen=True)
class Bytes:
    """Bytes of a part of a model, before and after."""

    part: str
    file: tuple[int, int]
    memory: tuple[int, int]


@dataclass(frozen=True)
class Unseen:
    """Metrics of a split where every value of a feature is replaced by one that nobody has seen."""

    feature: str
    whole: Scores
    pruned: Scores

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "feature": self.feature,
            "whole": self.whole.to_dict(),
            "pruned": self.pruned.to_dict(),
        }


@dataclass(frozen=True)
class Pruning:
    """What was pruned.

    kept: rows in use, of num_rows. bytes: by part, the model as a whole last; its file has
    settings, and room between the parts, beside them. examples: of the split, whose
    predictions are the same. unseen: by feature; none where the split is empty.
    """

    model: Path
    output: Path
    snapshot: str
    kept: int
    num_rows: int
    bytes: Sequence[Bytes]
    split: str
    examples: int
    unseen: Sequence[Unseen]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "model": str(self.model),
            "output": str(self.output),
            "snapshot": self.snapshot,
            "rows": {"kept": self.kept, "whole": self.num_rows},
            "bytes": [asdict(each) for each in self.bytes],
            "split": self.split,
            "examples": self.examples,
            "unseen": [each.to_dict() for each in self.unseen],
        }

    def __str__(self) -> str:
        names = ["bytes", "file before", "after", "memory before", "after"]
        parts = [
            (each.part, *(f"{number:,}" for number in (*each.file, *each.memory))) for each in self.bytes
        ]
        return (
            f"pruned    {self.model}\ninto      {self.output}\n"
            f"rows      {self.kept:,} of {self.num_rows:,}, and one for all others\n\n"
            f"{table_text(names, parts)}\n{self._gone()}{self._checked()}"
        )

    def _gone(self) -> str:
        whole = self.bytes[-1]
        told = [
            f"{before - after:,} of {before:,} bytes in {place} ({1 - after / before:.1%})"
            if after < before
            else f"none of {before:,} bytes in {place}, where it takes {after - before:,} more"
            for place, (before, after) in (("the file", whole.file), ("memory", whole.memory))
        ]
        worth = "" if whole.memory[1] < whole.memory[0] else _NOT_WORTH_IT
        return f"Gone: {', '.join(told)}.\n{worth}"

    def _checked(self) -> str:
        same = f"The rows of all values of snapshot {self.snapshot} are the same, bit for bit"
        if not self.unseen:
            return f"{same}. The {self.split} split is empty: no prediction to compare.\n"
        metrics = list(self.unseen[0].whole.values)
        rows = [
            (each.feature, *(_cell(scores, name) for name in metrics for scores in (each.whole, each.pruned)))
            for each in self.unseen
        ]
        names = [f"{name} {which}" for name in metrics for which in ("whole", "pruned")]
        return (
            f"{same}, and so are the predictions of the {self.examples:,} examples of {self.split}.\n\n"
            f"{table_text(['unseen', *names], rows)}"
            f"Examples of {self.split} whose value of a feature is replaced by one never seen.\n"
        )


def _cell(scores: Scores, metric: str) -> str:
    return f"{scores.values[metric]:.6f}" if metric in scores.values else ""


def used_slots(store: FeatureStore) -> Flags:
    """Return the slots that values of the vocabulary have, of all features and lookups: bool (R,).

    Raises:
        ArtifactError: the vocabulary is empty.
    """
    used = np.zeros(store.spec.table.num_slots, dtype=np.bool_)
    for batch in store.read("SELECT DISTINCT slot FROM slots"):
        used[batch.column(0).to_numpy()] = True
    if not used.any():
        raise no_vocabulary(store)
    return used


def prune_checkpoint(checkpoint: Checkpoint, kept: Flags) -> Checkpoint:
    """Return a checkpoint with the rows of the kept slots, bool (R,), and with nothing that only trains."""
    weights = prune(settled(checkpoint.model, checkpoint.optimizer), kept)
    return dataclasses.replace(
        checkpoint, model=weights, optimizer={}, random={}, format_version=PRUNED_VERSION
    )


def prune_table(
    store: FeatureStore,
    checkpoint: Checkpoint,
    path: Path,
    output: Path,
    split: str = "test",
    advance: Callable[[int], None] = lambda _rows: None,
) -> Pruning:
    """Write a model without the rows that no value has, after it has been found to predict the same.

    Args:
        store: the snapshot whose values have the rows that are kept.
        checkpoint: the model.
        path: its file.
        output: the file to write.
        split: the examples to compare the predictions of, ``validation`` or ``test``.
        advance: is told of how many more examples have been compared.

    Raises:
        SpecError: the model is pruned already, or there is such a file.
        FingerprintError: the model's slots come from another spec than the snapshot's.
        ArtifactError: the snapshot has no vocabulary or not all values in it, or a file cannot be written.
    """
    _check_output(checkpoint, path, output)
    checkpoint.check_fits(store.snapshot)
    kept = used_slots(store)
    pruned = prune_checkpoint(checkpoint, kept)
    models = load_model(checkpoint, path), load_model(pruned, output)
    _check_rows(*models, kept)
    examples, unseen = _compare(store, split, models, advance)
    save_checkpoint(output, pruned)
    return Pruning(
        path,
        output,
        store.snapshot.manifest.id,
        int(kept.sum()),
        len(kept),
        _bytes(checkpoint, pruned, models, (path, output)),
        split,
        examples,
        unseen,
    )


def _check_output(checkpoint: Checkpoint, path: Path, output: Path) -> None:
    problems = []
    if checkpoint.is_pruned:
        problems.append(f"{path} is pruned already: prune the checkpoint that it was made of")
    if output.exists():
        problems.append(f"--output: there is a file {output}: remove it, or name another")
    if problems:
        raise SpecError("prune-table", problems)


def _check_rows(whole: Network, pruned: Network, kept: Flags) -> None:
    """See that every kept slot leads to the row it led to, bit for bit."""
    slots = torch.from_numpy(np.flatnonzero(kept))
    for some in slots.split(BATCH_ROWS):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        one, other = (model.embedding(some[:, None]) for model in (whole, pruned))
        assert same_bits(one, other), "a kept row is another"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two float32 tensors are the same bit for bit: -0.0 is not 0.0, and a NaN may be itself."""
    return one.detach().view(torch.int32).equal(other.detach().view(torch.int32))


@torch.inference_mode()
def _compare(
    store: FeatureStore, split: str, models: tuple[Network, Network], advance: Callable[[int], None]
) -> tuple[int, list[Unseen]]:
    """Return how many predictions are the same, which all must be, and metrics of values never seen.

    Such a value's slots are those that a hash may give: any, each as likely.
    """
    fresh, features = objective_for(store.spec.label).metrics, store.spec.features
    generator = torch.Generator().manual_seed(UNSEEN_SEED)
    metrics = [(fresh(), fresh()) for _ in features]
    with contextlib.closing(SplitStream(store, split, BATCH_ROWS)) as stream:
        for batch in stream.epoch(0):
            if not same_bits(*(model(batch.slots) for model in models)):
                raise ArtifactError(
                    f"predictions of {split} differ: examples of snapshot {store.snapshot.manifest.id} have "
                    "values that its vocabulary lacks. "
                    f"`slotstore snapshots verify --store {typed(store.path)}` says what is damaged; "
                    "nothing was written"
                )
            first = 0
            for feature, pair in zip(features, metrics, strict=True):
                slots, last = batch.slots.clone(), first + len(feature.seeds)
                slots[:, first:last].random_(store.spec.table.num_slots, generator=generator)
                for model, of_model in zip(models, pair, strict=True):
                    of_model.update(model(slots), batch.labels)
                first = last
            advance(len(batch.labels))
    if not stream.rows:
        return 0, []
    named = zip(features, metrics, strict=True)
    return stream.rows, [Unseen(feature.name, *(each.compute() for each in pair)) for feature, pair in named]


def _bytes(
    checkpoint: Checkpoint,
    pruned: Checkpoint,
    models: tuple[Network, Network],
    files: tuple[Path, Path],
) -> list[Bytes]:
    """Return what each part takes before and after, in the file and in memory; the whole last."""
    both = (checkpoint, pruned)
    tables = _pair(_size(each.model[TABLE]) for each in both)
    remaps = _pair(_size(each.model.get(KEPT)) for each in both)
    tensors = _pair(sum(map(_size, each.model.values())) for each in both)
    network = _pair(
        whole - table - remap for whole, table, remap in zip(tensors, tables, remaps, strict=True)
    )
    optimizer = _pair(_size(each.optimizer) for each in both)
    remap = _pair(sum(map(_size, model.embedding.buffers())) for model in models)
    buffers = _pair(sum(map(_size, model.buffers())) for model in models)
    constants = tuple(every - own for every, own in zip(buffers, remap, strict=True))
    here = _pair(sum(map(_size, model.parameters())) for model in models)
    whole = _pair(path.stat().st_size for path in files)
    return [
        Bytes("table", tables, _pair(_size(model.get_parameter(TABLE)) for model in models)),
        Bytes("remap", remaps, remap),
        Bytes("network", network, _pair(map(sum, zip(network, constants, strict=True)))),
        Bytes("optimizer", optimizer, (0, 0)),
        Bytes("whole", whole, _pair(one + other for one, other in zip(here, buffers, strict=True))),
    ]


def _pair(numbers: Iterable[int]) -> tuple[int, int]:
    before, after = numbers
    return before, after


def _size(content: object) -> int:
    """Return the bytes of the tensors in a nested mapping or list."""
    match content:
        case torch.Tensor():
            return content.nbytes
        case Mapping():
            return sum(map(_size, content.values()))
        case list() | tuple():
            return sum(map(_size, content))
    return 0
