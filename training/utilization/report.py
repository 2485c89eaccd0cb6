"""How a trained table is used: all that is measured, as one result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurestore.output import table_text
from featurestore.store import FeatureStore
from training.checkpoint import Checkpoint
from training.comparison.measures import CollisionScores, Doubles
from training.embeddings import UnifiedEmbedding
from training.networks import Network
from training.predictor import load_model
from training.pruned import PrunedEmbedding
from training.utilization.rows import SHARES, FeatureRows, RowUse, count_values, name_kinds
from training.utilization.scores import KindScores, score_kinds

BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Utilization:
    """How the table of a model is used by the values of a snapshot.

    model: the checkpoint. trained_on: the snapshot that it was trained on. num_rows, dim: of the table.
    uses, shares: rows by `training.utilization.rows.USES` and `SHARES`. loads: norms by the values of a row,
    see `RowLoads.to_list`. scores: of ``split``.
    """

    model: Path
    snapshot: str
    trained_on: str
    num_rows: int
    dim: int
    uses: Mapping[str, int]
    shares: Mapping[str, int]
    features: Sequence[FeatureRows]
    loads: Sequence[Mapping[str, Any]]
    split: str
    scores: KindScores

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        whole = self.scores.whole
        return {
            "model": str(self.model),
            "snapshot": self.snapshot,
            "trained_on": self.trained_on,
            "table": {"rows": self.num_rows, "dim": self.dim},
            "uses": dict(self.uses),
            "shares": dict(self.shares),
            "features": [asdict(each) for each in self.features],
            "loads": [dict(each) for each in self.loads],
            "split": self.split,
            "scores": whole and whole.to_dict(),
            "kinds": {
                feature: {kind: each.to_dict() for kind, each in kinds.items()}
                for feature, kinds in self.scores.kinds.items()
            },
        }

    def __str__(self) -> str:
        parts = (self._rows_text(), self._features_text(), self._loads_text(), self._scores_text())
        return "\n".join(parts)

    def _rows_text(self) -> str:
        rows = [
            (name, f"{count:,}", f"{count / self.num_rows:.1%}", meaning)
            for counts, meanings in ((self.uses, _USES), (self.shares, _SHARES))
            for (name, count), meaning in zip(counts.items(), meanings, strict=True)
        ]
        return (
            f"model     {self.model}\nsnapshot  {self.snapshot}{self._elsewhere()}\n"
            f"table     {self.num_rows:,} rows of {self.dim} floats\n\n"
            + table_text(["rows", "number", "share", ""], rows)
        )

    def _elsewhere(self) -> str:
        same = self.snapshot == self.trained_on
        return "" if same else f"; the model was trained on {self.trained_on}"

    def _features_text(self) -> str:
        names = ["feature", "values", "rows", *SHARES, "dominated", "of between", "mean norm"]
        rows = [
            (
                each.feature,
                *(f"{number:,}" for number in (each.values, each.rows, *each.shares.values())),
                f"{each.dominated:,}",
                f"{each.dominated_shared:,}",
                "" if each.mean_norm is None else f"{each.mean_norm:.4f}",
            )
            for each in self.features
        ]
        return table_text(names, rows) + _FEATURES_LEGEND

    def _loads_text(self) -> str:
        rows = [
            (
                each["load"],
                f"{each['rows']:,}",
                f"{each['mean_norm']:.4f}",
                f"{each['mean_traffic']:,.1f}",
            )
            for each in self.loads
        ]
        return table_text(["values of a row", "rows", "mean norm", "mean traffic"], rows)

    def _scores_text(self) -> str:
        if self.scores.whole is None:
            return f"The {self.split} split is empty: no example to score.\n"
        metrics = [*self.scores.whole.values, *self.scores.whole.undefined]
        rows = [
            (feature, kind, f"{found.values:,}", f"{found.examples:,}", *_cells(metrics, found))
            for feature, kinds in self.scores.kinds.items()
            for kind, found in kinds.items()
            if found.values
        ]
        return table_text(["feature", "kind", "values", "examples", *metrics], rows) + _SCORES_LEGEND.format(
            split=self.split, scores=self.scores.whole
        )


_USES = (
    "no value of the vocabulary hashes to them",
    "their values are in no split",
    "their values are in validation or test alone",
    "at least one training example looks them up",
)
_SHARES = ("", "several values, all of one feature", "values of several features")
_FEATURES_LEGEND = """\
Dominated: rows of whose training traffic at least 90% is the feature's; of between: those of them that
features share. Mean norm: of the rows that it dominates.
"""
_SCORES_LEGEND = """\
All examples of {split}: {scores}. Clean: no other value that training saw has any of the value's
rows. Within: one of its own feature has. Between: only ones of other features. New: training never saw it.
"""


def _cells(metrics: Sequence[str], found: CollisionScores) -> list[str]:
    """Return a kind's metrics; none where there is no example, or the metric is undefined."""
    known = found.scores.values if found.scores else {}
    return [f"{known[name]:.4f}" if name in known else "" for name in metrics]


def measure_utilization(
    store: FeatureStore,
    checkpoint: Checkpoint,
    path: Path,
    split: str = "test",
    advance: Callable[[int], None] = lambda _rows: None,
) -> Utilization:
    """Measure how the table of a model is used.

    Args:
        store: the snapshot whose values use it.
        checkpoint: the model.
        path: where it comes from, for a person.
        split: the examples to score, ``validation`` or ``test``.
        advance: is told of how many more examples there are scores.

    Raises:
        FingerprintError: the model's slots come from another spec than the snapshot's.
        ArtifactError: the snapshot has no vocabulary, or is damaged.
    """
    checkpoint.check_fits(store.snapshot)
    model, spec = load_model(checkpoint, path), store.spec
    count_values(store)
    name_kinds(store)
    use, norms = RowUse.read(store), row_norms(whole_table(model))
    counted = store.sql("SELECT feature, count(*) AS n FROM value_use GROUP BY feature").to_pylist()
    values = {each["feature"]: each["n"] for each in counted}
    names = [feature.name for feature in spec.features]
    shared = np.bincount(use.shares() + 1, minlength=1 + len(SHARES))[1:].tolist()
    return Utilization(
        path,
        store.snapshot.manifest.id,
        checkpoint.snapshot,
        spec.table.num_slots,
        spec.table.dim,
        use.uses(),
        dict(zip(SHARES, shared, strict=True)),
        use.features(names, [values.get(name, 0) for name in names], norms),
        use.loads(norms).to_list(),
        split,
        score_kinds(store, split, model, advance),
    )


def whole_table(model: Network) -> torch.Tensor:
    """Return a model's table with a row for each slot, (R, D)."""
    embedding = model.embedding
    assert isinstance(embedding, UnifiedEmbedding | PrunedEmbedding)  # of `load_model`
    return embedding.whole().detach()


def row_norms(table: torch.Tensor) -> Doubles:
    """Return the L2 norm of each row, float64 (R,), without a copy of the whole table."""
    blocks = table.split(BLOCK_ROWS)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    norms: Doubles = torch.cat([torch.linalg.vector_norm(block.double(), dim=1) for block in blocks]).numpy()
    return norms
