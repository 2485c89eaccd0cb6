"""Raw feature values to predictions, for serving and for `slotstore predict`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from featurestore.encode import encode
from featurestore.errors import ArtifactError, SpecError, did_you_mean
from featurestore.snapshot import Snapshot
from featurestore.spec import FeatureSpec
from training.checkpoint import Checkpoint, load_checkpoint
from training.models import build_model
from training.networks import Network
from training.optimizers import settled
from training.pruned import pruned_table

CHUNK_ROWS = 65_536
"""Rows predicted at a time."""


class Predictor:
    """A trained model that takes raw values.

    Their slots come from `featurestore.encode`, as those of its training data did. Every value has
    slots, so a user or movie never seen before needs no special case.
    """

    def __init__(self, model: nn.Module, spec: FeatureSpec) -> None:
        self.model, self.spec = model.eval(), spec
        self.columns = list(dict.fromkeys(feature.column for feature in spec.features))

    def __repr__(self) -> str:
        return f"Predictor({', '.join(self.columns)} -> {self.output})"

    @property
    def output(self) -> str:
        """What is predicted: ``rating``, or the ``probability`` that a binary label is 1."""
        return "probability" if self.spec.label.is_binary else "rating"

    @classmethod
    def load(cls, checkpoint: str | Path, snapshot: Snapshot | None = None) -> Self:
        """Load a checkpoint, on the CPU.

        Raises:
            ArtifactError: it is missing, damaged or of another format version.
            FingerprintError: ``snapshot`` was made from another spec.
        """
        loaded = load_checkpoint(Path(checkpoint))
        if snapshot is not None:
            loaded.check_fits(snapshot)
        return cls(load_model(loaded, Path(checkpoint)), loaded.load_spec())

    def predict(self, table: pa.Table) -> npt.NDArray[np.float32]:
        """Predict ratings or probabilities, float32 (n,).

        Args:
            table: n rows with at least `columns`, text or whole numbers.

        Raises:
            ValueError: a column is missing or holds neither text nor whole numbers.
        """
        slots = encode(table, self.spec).select(self.spec.slot_columns)
        parts = [self._score(slots.slice(start, CHUNK_ROWS)) for start in range(0, len(slots), CHUNK_ROWS)]
        return np.concatenate([np.empty(0, np.float32), *parts])

    @torch.inference_mode()
    def _score(self, slots: pa.Table) -> npt.NDArray[np.float32]:
        rows = torch.from_numpy(np.stack([column.to_numpy() for column in slots.columns], axis=1))  # (n, L)
        scores = self.model(rows)
        scores = scores.sigmoid() if self.spec.label.is_binary else scores
        result: npt.NDArray[np.float32] = scores.numpy()
        return result


def load_model(checkpoint: Checkpoint, path: Path) -> Network:
    """Return the model of a checkpoint, whole or pruned, on the CPU and ready to predict.

    Raises:
        ArtifactError: it is pruned, and the remap of the slots and the table do not fit each other.
    """
    name, spec = checkpoint.config["model"], checkpoint.load_spec()
    if not checkpoint.is_pruned:
        model = build_model(name, spec)
        model.load_state_dict(settled(checkpoint.model, checkpoint.optimizer))
        return model.eval()
    try:
        model = build_model(name, spec, table=pruned_table(checkpoint.model))
        model.load_state_dict(checkpoint.model)
    except (KeyError, ValueError, RuntimeError) as error:  # RuntimeError: torch's, of a table of another size
        raise ArtifactError(
            f"{path} is no intact checkpoint ({error}): prune the one it was made of again"
        ) from error
    return model.eval()


EPILOG = """\b
Examples:
  slotstore predict best.pt user_id=1 movie_id=1193 gender=F age=1 occupation=10 zip=48067
  slotstore predict best.pt user_id=new movie_id=1193 gender= age=25 occupation=4 zip=98107 --json

Values never seen in training have slots too; an empty value stands for an unknown one."""


@click.command("predict", epilog=EPILOG)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("values", nargs=-1, metavar="FEATURE=VALUE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def command(checkpoint: Path, values: Sequence[str], *, as_json: bool) -> None:
    """Predict from raw feature values, with the model in CHECKPOINT (`slotstore train` writes best.pt).

    Give each feature of the model's spec once, as FEATURE=VALUE.
    """
    predictor = Predictor.load(checkpoint)
    row = parse_values(values, predictor.columns)
    predicted = float(predictor.predict(pa.table({name: [value] for name, value in row.items()}))[0])
    if as_json:
        click.echo(json.dumps({predictor.output: predicted, "features": row}))
    else:
        click.echo(f"{predictor.output} {predicted:.4f}")


def parse_values(values: Iterable[str], columns: Sequence[str]) -> dict[str, str]:
    """Read ``name=value`` words into a value for each of ``columns``; SpecError names every problem."""
    row: dict[str, str] = {}
    problems = []
    for word in values:
        name, equals, value = word.partition("=")
        if not equals:
            problems.append(f"expected FEATURE=VALUE, got {word!r}")
        elif name not in columns:
            problems.append(f"the model has no feature {name!r}{did_you_mean(name, columns)}")
        elif name in row:
            problems.append(f"{name} is given twice")
        row[name] = value
    problems += [f"no value for {name}: add {name}=VALUE" for name in columns if name not in row]
    if problems:
        raise SpecError("predict", problems)
    return row
