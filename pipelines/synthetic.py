"""MovieLens-shaped files of any size, with structure a model can learn.

``generate(parse_shape("10m"), folder)`` writes ``users.dat``, ``movies.dat`` and ``ratings.dat`` in the
format of MovieLens-1M, and ``synthetic.json``, which says that the other three are complete. Every rating
comes from one model::

    liking = user bias + movie bias + taste . movie + noise                mean 0, variance 1
    taste  = personal (6) @ loadings (6, 18) + gender, age and occupation effects (18 each)
    movie  = its genres, scaled to length 1, + a character of its own      (18)
    rating = 1 + how many of CUTS lie below the liking

so a biased matrix factorization beats the mean, and a model that knows genres and demographics can use
them. Popularity, activity, demographics and rating shares follow MovieLens-1M.

Users are drawn in chunks, each from its own seed: memory stays bounded at any size, and one shape gives
the same bytes on every run.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from featurestore.errors import SourceError, StoreBusy
from pipelines.synthetic_shape import SyntheticShape
from pipelines.synthetic_text import movie_lines, rating_lines, user_lines
from pipelines.synthetic_world import draw_people, draw_world, ratings_per_user, user_chunks

GENERATOR_VERSION = 1  # raise it with every change that alters a byte of the output
MARKER = "synthetic.json"
DATA_FILES = ("users.dat", "movies.dat", "ratings.dat")


def generate(
    shape: SyntheticShape,
    out_dir: Path,
    progress: Callable[[int], None] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the files of ``shape`` into ``out_dir``, or keep those already there.

    The folder appears at once when everything is written; a killed run leaves only the hidden
    ``.<name>.partial`` beside it, which the next run clears. ``progress`` is called with the number of
    ratings written so far. ``overwrite`` replaces an earlier output, and nothing else.

    Raises:
        SourceError: ``out_dir`` holds another shape, altered files or files of someone else.
        StoreBusy: another process is generating into ``out_dir``.
        OSError: the disk refused.
    """
    out_dir = out_dir.resolve()
    if not overwrite and is_complete(shape, out_dir):
        return
    _refuse_to_replace(shape, out_dir, overwrite=overwrite)
    with _staged(out_dir) as folder:
        for rows in _write_files(shape, folder):
            if progress is not None:
                progress(rows)
        sizes = {name: (folder / name).stat().st_size for name in DATA_FILES}
        (folder / MARKER).write_text(json.dumps(_identity(shape) | {"bytes": sizes}, indent=2) + "\n")


def is_complete(shape: SyntheticShape, out_dir: Path) -> bool:
    """Say whether ``out_dir`` holds the whole output of ``shape``, by its marker and the files' sizes."""
    marker = _read_marker(out_dir)
    sizes = {path.name: path.stat().st_size for name in DATA_FILES if (path := out_dir / name).is_file()}
    return marker == _identity(shape) | {"bytes": sizes} and len(sizes) == len(DATA_FILES)


# --- the folder -----------------------------------------------------------------------------------------


def _identity(shape: SyntheticShape) -> dict[str, object]:
    """Return what the bytes depend on, as the marker states it."""
    return {"format": "slotstore-synthetic", "generator": GENERATOR_VERSION} | asdict(shape)


def _read_marker(folder: Path) -> dict[str, object] | None:
    """Return the marker of ``folder``, or None where there is no readable one."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("format") == "slotstore-synthetic" else None


def _refuse_to_replace(shape: SyntheticShape, out_dir: Path, *, overwrite: bool) -> None:
    """Raise SourceError unless ``out_dir`` is free, or is an output of ours that may be replaced."""
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise SourceError(f"{out_dir}: is a file; name a folder that is new, empty or an earlier output")
    names = {path.name for path in out_dir.iterdir()}
    marker = _read_marker(out_dir)
    foreign = sorted(names - {MARKER, *DATA_FILES} if marker else names)
    if foreign:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        remedy = "which `slotstore generate` did not write and will not replace; name another folder"
        raise SourceError(f"{out_dir}: holds {some}, {remedy}")
    if marker and not overwrite:
        raise SourceError(_describe_other(marker, shape, out_dir))


def _describe_other(marker: Mapping[str, object], shape: SyntheticShape, out_dir: Path) -> str:
    """Say how the output in ``out_dir`` differs from the one of ``shape``, and what to do."""
    remedy = "name another folder, or replace it with --overwrite (overwrite=True)"
    wanted = _identity(shape)
    differing = [key for key in wanted if marker.get(key) != wanted[key]]
    if not differing:
        return f"{out_dir}: its files do not have the sizes that {MARKER} states; {remedy}"
    there = ", ".join(f"{key} {marker.get(key)}" for key in differing)
    asked = ", ".join(f"{key} {wanted[key]}" for key in differing)
    return f"{out_dir}: holds a synthetic set with {there}, not {asked}; {remedy}"


@contextmanager
def _staged(out_dir: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder that takes the place of ``out_dir`` if the block succeeds."""
    staging = out_dir.with_name(f".{out_dir.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    with _locked(staging, out_dir):
        for left_over in staging.iterdir():  # of a killed run; the folder itself carries our lock
            left_over.unlink()
        try:
            yield staging
            _publish(staging, out_dir)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def _locked(staging: Path, out_dir: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``staging``; the system drops it when the process ends, however it ends."""
    handle = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait for it or name another folder"
            raise StoreBusy(f"{out_dir}: another process is generating here; {remedy}") from error
        yield
    finally:
        os.close(handle)


def _publish(staging: Path, out_dir: Path) -> None:
    """Rename ``staging`` to ``out_dir``, moving an earlier output out of the way first."""
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)  # of a run killed between the lines below
    if out_dir.exists():
        out_dir.rename(replaced)
    staging.rename(out_dir)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_files(shape: SyntheticShape, folder: Path) -> Iterator[int]:
    """Write the three ``.dat`` files, yielding the number of ratings so far after each chunk.

    Memory is bounded by the chunk, the movies and some 50 bytes a user.
    """
    world = draw_world(_rng(shape, "world"), shape)
    (folder / "movies.dat").write_bytes(movie_lines(_rng(shape, "titles"), world))
    first_id, rows = 1, 0
    with (folder / "users.dat").open("wb") as users, (folder / "ratings.dat").open("wb") as ratings:
        for number, counts in enumerate(user_chunks(ratings_per_user(_rng(shape, "activity"), shape))):
            rng = _rng(shape, "chunk", number)
            people = draw_people(rng, first_id, counts, world)
            users.write(user_lines(rng, people))
            ratings.write(rating_lines(rng, people, world))
            first_id += len(counts)
            rows += int(counts.sum())
            yield rows


def _rng(shape: SyntheticShape, purpose: str, number: int = 0) -> np.random.Generator:
    """Return a generator of its own for one purpose and chunk, so that neither shifts another's numbers."""
    key = ("world", "titles", "activity", "chunk").index(purpose)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(shape.seed, spawn_key=(key, number))))
