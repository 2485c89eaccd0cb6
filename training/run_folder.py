"""The folder of a run: its best checkpoint, where it stands, and where it stood before."""

import contextlib
import datetime
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ArtifactError, NotFound, TrainingError, VersionError, did_you_mean
from featurestore.paths import locked, write_whole
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

_NAME = re.compile(r"\d{8}-\d{6}-.*")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its checkpoints.

    best.pt: the model of the best epoch. best-before.pt: that of the one before, for a run that is killed
    when a new best is kept and the state of that moment is not yet. last.pt: the newest state, from which the
    run is resumed. previous.pt: the state before, in case that one is damaged.
    """

    path: Path

    @property
    def best(self) -> Path:
        """The model of the best epoch."""
        return self.path / "best.pt"

    @property
    def best_before(self) -> Path:
        """The model of the best epoch before that."""
        return self.path / "best-before.pt"

    @property
    def last(self) -> Path:
        """The newest state."""
        return self.path / "last.pt"

    @property
    def previous(self) -> Path:
        """The state before that."""
        return self.path / "previous.pt"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, made if missing: two trainings in it would mix their checkpoints.

        Raises:
            ArtifactError: it cannot be written.
            TrainingError: another training holds it.
        """
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(locked(self.path / "run.lock"))
            except BlockingIOError as error:
                raise TrainingError(
                    f"another training keeps its checkpoints in {self.path}: wait for it, or use another "
                    "--checkpoint-dir"
                ) from error
            except OSError as error:
                raise ArtifactError(f"cannot keep checkpoints in {self.path}: {error}") from error
            yield

    def take_best(self, checkpoint: Checkpoint, source: "RunFolder") -> bool:
        """Make best.pt the model of the best epoch before ``checkpoint``; False where it is not there.

        What the run ``source`` holds is taken if it is of that epoch, and of no other training.
        """
        for candidate in (source.best, source.best_before):
            if _is_best_of(_intact(candidate), checkpoint):
                if candidate != self.best:
                    write_whole(self.best, candidate.read_bytes(), durable=True)
                return True
        self.best.unlink(missing_ok=True)
        if checkpoint.rows == 0 and checkpoint.state["history"] and checkpoint.state["history"][-1]["best"]:
            save_checkpoint(self.best, checkpoint)
            return True
        return False

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the model of a new best epoch."""
        save_checkpoint(self.best, checkpoint, self.best_before)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write the newest state; the one it takes the place of becomes the previous one."""
        save_checkpoint(self.last, checkpoint, self.previous)

    def load_last(self, note: Callable[[str], None]) -> Checkpoint:
        """Load the newest state that is intact; ``note`` is told where that is not the last one.

        Raises:
            NotFound: there is none.
            ArtifactError: none is intact.
        """
        try:
            return load_checkpoint(self.last)
        except VersionError:
            raise
        except (NotFound, ArtifactError) as error:
            if not self.previous.exists():
                raise
            checkpoint = load_checkpoint(self.previous)
            note(f"{error}\nGoing on from the checkpoint before it: {describe(checkpoint)}.")
            return checkpoint


def _intact(path: Path) -> Checkpoint | None:
    """Return a checkpoint, None where there is none that can be used."""
    try:
        return load_checkpoint(path, mmap=True)
    except ArtifactError:
        return None


def _is_best_of(candidate: Checkpoint | None, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint was kept at the end of the best epoch in another one's history."""
    if candidate is None or candidate.is_pruned:
        return False
    bests = [index for index, result in enumerate(checkpoint.state["history"]) if result["best"]]
    before = checkpoint.state["history"][: bests[-1] + 1] if bests else []
    mine = [
        [{**result, "seconds": 0.0} for result in history] for history in (candidate.state["history"], before)
    ]
    same_model = candidate.config["model"] == checkpoint.config["model"]
    return bool(bests) and candidate.rows == 0 and mine[0] == mine[1] and same_model


def at(epoch: int, rows: int) -> str:
    """Return how far a training has come, for a person."""
    return f"epoch {epoch}, {rows:,} rows into it"


def describe(checkpoint: Checkpoint) -> str:
    """Return where a checkpoint stands, for a person."""
    return at(checkpoint.epoch + 1, checkpoint.rows)


def new_run(checkpoints: Path, name: str | None) -> RunFolder:
    """Return a folder that no other run has: the time in UTC, a few random digits, the run's own name."""
    now = datetime.datetime.now(datetime.UTC)
    return RunFolder(
        checkpoints / "-".join(filter(None, [f"{now:%Y%m%d-%H%M%S}", secrets.token_hex(2), name]))
    )


def find_run(run: str, checkpoints: Path) -> RunFolder | Path:
    """Return the run, or the checkpoint file, that a person names.

    Args:
        run: a checkpoint file, a run's folder, its name or a part of it, or ``latest``.
        checkpoints: the folder with the store's runs.

    Raises:
        NotFound: none, or several, are called that.
    """
    path = Path(run)
    if path.is_file() or (path.suffix == ".pt" and not path.is_dir()):
        return path
    if path.is_dir() and run not in ("", "."):
        return RunFolder(path)
    names = sorted(each.name for each in checkpoints.glob("*") if each.is_dir())
    if run == "latest" and (made := [name for name in names if _NAME.fullmatch(name)]):
        return RunFolder(checkpoints / made[-1])
    matching = [name for name in names if run == name] or [name for name in names if run and run in name]
    if len(matching) == 1:
        return RunFolder(checkpoints / matching[0])
    if matching:
        raise NotFound(f"{len(matching)} runs are called like {run!r}: {', '.join(matching)}")
    remedy = did_you_mean(run, names) if names else ": `slotstore train` makes one"
    raise NotFound(f"no run {run!r} in {checkpoints}{remedy}")


def find_model(run: str, checkpoints: Path) -> Path:
    """Return the checkpoint file with the model of a run, that of its best epoch, named as for `find_run`."""
    found = find_run(run, checkpoints)
    return found if isinstance(found, Path) else found.best
