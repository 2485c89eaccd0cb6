"""What a training goes on from, and whether it can."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
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

    @classmethod
    def load(cls, config: TrainConfig, note: Callable[[str], None]) -> "Resumed":
        """Find and load it; ``note`` is told where it is not the last one.

        Raises:
            NotFound: there is no such run or checkpoint.
            ArtifactError: none of its checkpoints is intact.
        """
        assert config.resume is not None
        found = find_run(config.resume, config.folder / "checkpoints")
        if isinstance(found, Path):
            return cls(load_checkpoint(found), str(found), RunFolder(found.parent))
        return cls(found.load_last(note), f"run {found.path}", found)

    def check(self, config: TrainConfig, store: FeatureStore) -> None:
        """Raise SpecError or FingerprintError where a training cannot go on with this config and snapshot."""
        self.checkpoint.check_fits(store.snapshot)
        problems = [*config.kept_problems(self.checkpoint.config, self.what), *self._ended(config)]
        if problems:
            raise SpecError("train", problems)
        here, there = store.snapshot.manifest.id, self.checkpoint.snapshot
        if self.checkpoint.rows and here != there:
            raise FingerprintError(
                f"{self.what} is {self.checkpoint.rows:,} rows into an epoch of snapshot {there}: "
                f"snapshot {here} cannot go on with it. Give --snapshot {there}, or the best.pt beside it, "
                "which is of an epoch's end."
            )

    def _ended(self, config: TrainConfig) -> Iterator[str]:
        checkpoint, state = self.checkpoint, TrainState.from_dict(self.checkpoint.state)
        if checkpoint.epoch >= config.epochs:
            yield f"--epochs must be above the {checkpoint.epoch} that {self.what} has had"
        elif state.without_gain >= config.patience:
            yield (
                f"--patience must be above the {state.without_gain} epochs without a gain that ended "
                f"{self.what}"
            )


def load_resumed_config(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """Return the settings to resume ``config.resume`` with: the run's own, but for those ``given`` now.

    Raises:
        NotFound: there is no such run or checkpoint.
        ArtifactError: none of its checkpoints is intact.
    """
    checkpoint = Resumed.load(config, _say_nothing).checkpoint
    settings = config.resumed(checkpoint.config, given)
    if "snapshot" in given:
        return settings
    return dataclasses.replace(settings, snapshot=checkpoint.snapshot)


def _say_nothing(_: str) -> None:
    """Leave it to the training, which loads the checkpoint again."""
