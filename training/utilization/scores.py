"""The metrics of examples by what happens to the rows of their values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from featurestore.database import identifier
from featurestore.errors import ArtifactError
from featurestore.paths import typed
from featurestore.splits import quoted
from featurestore.store import FeatureStore
from training.comparison.measures import CollisionScores
from training.metrics import Metrics, Scores
from training.networks import Network
from training.objective import objective_for, targets
from training.utilization.rows import KINDS, text_of

BATCH_ROWS = 16_384


@dataclass(frozen=True)
class KindScores:
    """Metrics of one split: of all its examples, None of none; by feature, and by kind of its value."""

    whole: Scores | None
    kinds: Mapping[str, Mapping[str, CollisionScores]]


@torch.inference_mode()
def score_kinds(
    store: FeatureStore, split: str, model: Network, advance: Callable[[int], None]
) -> KindScores:
    """Score the examples of a split, apart by which of `KINDS` each feature's value is.

    Call `training.utilization.rows.name_kinds` before. The split is streamed; where the label is binary 5
    bytes are kept of an example for each feature.

    Args:
        store: the snapshot.
        split: ``validation`` or ``test``.
        model: on the CPU.
        advance: is told of how many more examples there are scores.

    Raises:
        ArtifactError: an example has a slot that the table does not have.
    """
    fresh, features = objective_for(store.spec.label).metrics, store.spec.features
    whole, rows = fresh(), 0
    parts = [[_Part(fresh()) for _ in KINDS] for _ in features]
    for batch in store.read(_query(store, split), batch_rows=BATCH_ROWS):
        slots, labels, kinds = _read(batch, store)
        scores = _score(model, slots, store)
        whole.update(scores, labels)
        rows += len(labels)
        for of_feature, of_kinds in zip(parts, kinds, strict=True):
            for kind, part in enumerate(of_feature):
                part.add(scores, labels, of_kinds == kind)
        advance(len(labels))
    counted = store.sql("SELECT feature, kind, count(*) AS n FROM value_kinds GROUP BY ALL").to_pylist()
    values = {(each["feature"], each["kind"]): each["n"] for each in counted}
    return KindScores(
        whole.compute() if rows else None,
        {
            feature.name: {
                name: part.result(values.get((feature.name, kind), 0))
                for kind, (name, part) in enumerate(zip(KINDS, of_feature, strict=True))
            }
            for feature, of_feature in zip(features, parts, strict=True)
        },
    )


@dataclass
class _Part:
    """The examples of one kind of one feature."""

    metrics: Metrics
    examples: int = 0

    def add(self, scores: torch.Tensor, labels: torch.Tensor, chosen: torch.Tensor) -> None:
        self.metrics.update(scores[chosen], labels[chosen])
        self.examples += int(chosen.sum())

    def result(self, values: int) -> CollisionScores:
        return CollisionScores(values, self.examples, self.metrics.compute() if self.examples else None)


def scored_split(store: FeatureStore) -> str:
    """Return the split to score where nobody says which: test, or validation where that is empty."""
    return "test" if store.splits.rows["test"] else "validation"


def _query(store: FeatureStore, split: str) -> str:
    """Return SQL for the examples of a split: their slots, the label, the kind of each feature's value."""
    columns = [identifier(name) for name in (*store.spec.slot_columns, store.spec.label.column)]
    joins = []
    for number, feature in enumerate(store.spec.features):
        columns.append(f"coalesce(k{number}.kind, {KINDS.index('new')})")
        joins.append(
            f"LEFT JOIN value_kinds AS k{number} "
            f"ON k{number}.feature = {quoted(feature.name)} AND k{number}.value = {text_of(feature)}"
        )
    return f"SELECT {', '.join(columns)} FROM {split} {' '.join(joins)}"  # noqa: S608  # quoted


def _read(
    batch: pa.RecordBatch, store: FeatureStore
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return slots int32 (B, L), labels float32 (B,) as the model learned them, and kinds (B,) by feature."""
    columns = [column.to_numpy() for column in batch.columns]
    lookups, label = len(store.spec.slot_columns), store.spec.label
    labels = targets(columns[lookups], label)
    slots = torch.from_numpy(np.stack(columns[:lookups], axis=1))
    return slots, torch.from_numpy(labels), [torch.tensor(kinds) for kinds in columns[lookups + 1 :]]


def _score(model: Network, slots: torch.Tensor, store: FeatureStore) -> torch.Tensor:
    try:
        scores: torch.Tensor = model(slots)
    except IndexError as error:
        raise ArtifactError(
            f"snapshot {store.snapshot.manifest.id} has a slot that the table does not have, of "
            f"{store.spec.table.num_slots:,} rows: "
            f"`slotstore snapshots verify --store {typed(store.path)}` says what is damaged"
        ) from error
    return scores
