"""What a training goes on from, and whether it can."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import FingerprintError, SpecError
from featurestore.store import FeatureStore
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import TrainConfig
from training.loop import TrainState
from training.run_folder import RunFolder, find_run


@dataclass(frozen=True)
class Resumed:
    """The checkpoint to go on from.

    what: where it comes from, for a person.
    folder: the run that it belongs to.
    """

    checkpoint: Checkpoint
    what: str
    folder: RunFolder
    damaged: bool = False  # the run's last checkpoint, so that the one before was taken

    @classmethod
    def load(cls, config: TrainConfig, note: Callable[[str], None]) -> "Resumed":
        """Find and load it; ``note`` is told where it is not the last one.

        Raises:
            NotFound: there is no such run or checkpoint.
            ArtifactError: none of its checkpoints is intact.
            SpecError: it is a pruned model.
        """
        assert config.resume is not None
        found = find_run(config.resume, config.folder / "checkpoints")
        if isinstance(found, Path):
            return cls(_whole(load_checkpoint(found), found), str(found), RunFolder(found.parent))
        told: list[str] = []
        checkpoint = _whole(found.load_last(told.append), found.last)
        for text in told:
            note(text)
        return cls(checkpoint, f"run {found.path}", found, damaged=bool(told))

    def check(self, config: TrainConfig, store: FeatureStore) -> None:
        """Raise SpecError or FingerprintError where a training cannot go on with this config and snapshot."""
        self.checkpoint.check_fits(store.snapshot)
        if problems := [*config.kept_problems(self.checkpoint.config, self.what)]:
            raise SpecError("train", problems)
        here, there = store.snapshot.manifest.id, self.checkpoint.snapshot
        if self.checkpoint.rows and here != there:
            raise FingerprintError(
                f"{self.what} is {self.checkpoint.rows:,} rows into an epoch of snapshot {there}: "
                f"snapshot {here} cannot go on with it. Give --snapshot {there}, or the best.pt beside it, "
                "which is of an epoch's end."
            )

    def over(self, config: TrainConfig) -> str | None:
        """Return what to raise where there is nothing left to train, else None."""
        epochs, state = self.checkpoint.epoch, TrainState.from_dict(self.checkpoint.state)
        if epochs >= config.epochs:
            return f"{self.what} has had its {epochs} epochs: to train on, raise --epochs"
        if state.without_gain >= config.patience:
            return (
                f"{self.what} has ended after {state.without_gain} epochs without a gain: to train on, raise "
                "--patience"
            )
        return None


def load_resumed_config(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """Return the settings to resume ``config.resume`` with: the run's own, but for those ``given`` now.

    Raises:
        NotFound: there is no such run or checkpoint.
        ArtifactError: none of its checkpoints is intact.
        SpecError: it is a pruned model.
    """
    checkpoint = Resumed.load(config, _say_nothing).checkpoint
    settings = config.resumed(checkpoint.config, given)
    if "snapshot" in given:
        return settings
    return dataclasses.replace(settings, snapshot=checkpoint.snapshot)


def _whole(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return a checkpoint that has all that training needs."""
    if checkpoint.is_pruned:
        problem = (
            f"--resume: {path} is a pruned model, without the rows that no value has and without the "
            "optimizer's state: go on from the run that it was made of, then prune again"
        )
        raise SpecError("train", [problem])
    return checkpoint


def _say_nothing(_: str) -> None:
    """Leave it to the training, which loads the checkpoint again."""
