"""The source's files, as the manifest remembers them."""

from dataclasses import dataclass

import apache_beam as beam

from featurestore.digest import file_digest
from featurestore.paths import AnyPath
from pipelines.reports import write_report


@dataclass(frozen=True)
class SourceFile:
    """One raw file: its name, size and digest."""

    name: str
    bytes: int
    digest: str


@dataclass
class DescribeSource(beam.PTransform):
    """File names -> `SourceFile`, each with a report."""

    source: AnyPath
    folder: AnyPath

    def expand(self, names: beam.PCollection) -> beam.PCollection:
        """Digest every file."""
        return (
            names
            | "Spread" >> beam.Reshuffle()
            | "Digest" >> beam.Map(_describe, source=self.source, folder=self.folder)
        )


def _describe(name: str, source: AnyPath, folder: AnyPath) -> SourceFile:
    path = source / name
    described = SourceFile(name, path.stat().st_size, file_digest(path))
    write_report(folder, f"source-{name}", described)
    return described
