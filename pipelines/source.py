"""SOURCE on the command line -> a folder of raw files of a known format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import SourceError
from pipelines.movielens import ML_1M, SourceFormat, recognise
from pipelines.synthetic import generate
from pipelines.synthetic_shape import parse_shape

SYNTHETIC = "synthetic:"


@dataclass(frozen=True)
class Source:
    """Raw files: where they are and what format they have. ``uri`` is what the user asked for."""

    uri: str
    folder: Path
    format: SourceFormat

    @property
    def ratings(self) -> Path:
        """The file of ratings."""
        return self.folder / self.format.ratings


def open_source(
    uri: str, store: Path, format_name: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Source:
    """Open a folder, or make the synthetic source that ``synthetic:SHAPE`` names.

    Synthetic files are kept in ``<store>/sources`` and used again. ``progress`` is called with the
    number of ratings generated so far and that of all.

    Raises:
        SourceError: the folder is missing or holds no known format, or the shape is not understood.
        StoreBusy: another process is generating the same source.
    """
    if not uri.startswith(SYNTHETIC):
        return Source(uri, Path(uri), recognise(Path(uri), format_name))
    try:
        shape = parse_shape(uri.removeprefix(SYNTHETIC))
    except ValueError as error:
        raise SourceError(f"source {uri!r}: {error}") from error
    folder = store / "sources" / f"synthetic-{shape.rows}-{shape.seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    generate(shape, folder, None if progress is None else lambda rows: progress(rows, shape.rows))
    return Source(uri, folder, ML_1M)
