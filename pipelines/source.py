"""SOURCE on the command line -> a folder of raw files of a known format."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from featurestore.errors import ArtifactError, SourceError
from featurestore.paths import AnyPath, RemotePath, as_path
from pipelines.movielens import ML_1M, SourceFormat, read_from, recognise
from pipelines.synthetic import generate, is_complete
from pipelines.synthetic_shape import SyntheticShape, parse_shape

SYNTHETIC = "synthetic:"


Stamp = tuple[int, int, int]
"""A file's size, modification time and inode: another one means that it was written to or replaced."""


@dataclass(frozen=True)
class Source:
    """Raw files: where they are and what format they have. ``uri`` is what the user asked for.

    Those of a synthetic source, which has a ``shape``, are there once it is prepared.
    """

    uri: str
    folder: AnyPath
    format: SourceFormat
    shape: SyntheticShape | None = None

    @property
    def ratings(self) -> list[AnyPath]:
        """The files of ratings."""
        return [self.folder / name for name in self.format.files_of_ratings]

    def read_from(self, files: tuple[str, ...]) -> "Source":
        """Return the source with its ratings in ``files``, which a split names; itself where there are none.

        Raises:
            SourceError: a file is not there, or not one of ratings; or the source is synthetic.
        """
        if files and self.shape:
            raise SourceError(
                f"source {self.uri!r} has one file of ratings, the spec's split names {', '.join(files)}: "
                "ingest a folder that has them, or use another spec"
            )
        try:
            return dataclasses.replace(self, format=read_from(self.format, self.folder, files))
        except OSError as error:
            raise SourceError(f"{self.uri} cannot be read: {error}") from error

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make the files of a synthetic source, or use those made before.

        ``progress`` is called with the number of ratings generated so far and that of all.

        Raises:
            StoreBusy: another process is generating the same source.
            ArtifactError: the store cannot be written.
        """
        if (shape := self.shape) is None or isinstance(self.folder, RemotePath):
            return
        report = None if progress is None else lambda rows: progress(rows, shape.rows)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            generate(shape, self.folder, report, overwrite=not is_complete(shape, self.folder))
        except OSError as error:
            raise ArtifactError(f"{self.folder} cannot be written: {error}") from error

    def stamps(self) -> dict[str, Stamp]:
        """Return each file's stamp, to see later whether it has changed."""
        found = {name: (self.folder / name).stat() for name in self.format.files}
        return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def open_source(uri: str, store: AnyPath, format_name: str | None = None) -> Source:
    """Find out what a source is; synthetic files are kept in ``<store>/sources``. Nothing is written.

    Raises:
        SourceError: the folder is missing or holds no known format, or the shape is not understood.
    """
    if not uri.startswith(SYNTHETIC):
        folder = as_path(uri)
        try:
            return Source(uri, folder, recognise(folder, format_name))
        except OSError as error:
            raise SourceError(f"{uri} cannot be read: {error}") from error
    try:
        shape = parse_shape(uri.removeprefix(SYNTHETIC))
    except ValueError as error:
        raise SourceError(f"source {uri!r}: {error}") from error
    if isinstance(store, RemotePath):
        raise SourceError(
            f"source {uri!r} is made in a local store, and {store} is a URL: `slotstore generate` it into a "
            "folder and ingest that"
        )
    return Source(uri, store / "sources" / f"synthetic-{shape.rows}-{shape.seed}", ML_1M, shape)
