"""A page about a snapshot, section by section."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from featurestore.errors import NotFound
from featurestore.store import FeatureStore
from training.report.collided import collisions_section
from training.report.features import features_section
from training.report.page import page
from training.report.parts import Section, Words
from training.report.quality import quality_section
from training.report.run import ReportedRun, no_run_section, run_section
from training.report.snapshot import rejects_section, snapshot_section
from training.report.splits import splits_section
from training.utilization.scores import scored_split


@dataclass(frozen=True)
class Report:
    """A page and what is in it."""

    title: str
    sections: Sequence[Section]

    def html(self) -> str:
        """Return the page's file."""
        return page(self.title, self.sections)


class Progress(Protocol):
    """Is told how far a page has come."""

    def begin(self, title: str, steps: int) -> None:
        """A section of so many steps is begun."""

    def advance(self, steps: int) -> None:
        """So many steps more of it are done."""


class Untold:
    """Tells nobody."""

    def begin(self, title: str, steps: int) -> None:
        """Do nothing."""

    def advance(self, steps: int) -> None:
        """Do nothing."""


def build_report(store: FeatureStore, run: ReportedRun | None, progress: Progress | None = None) -> Report:
    """Ask a snapshot, and a run, for all that their page shows.

    Args:
        store: the snapshot.
        run: a run on a snapshot of its spec, or none.
        progress: is told how far it has come.

    Raises:
        FingerprintError: the run's model has another spec than the snapshot.
        ArtifactError: the snapshot or the run is damaged.
    """
    if run:
        run.checkpoint.check_fits(store.snapshot)
    told = progress or Untold()
    sections = []
    for name, make in _SECTIONS.items():
        told.begin(name, 1)
        sections.append(make(store))
        told.advance(1)
    told.begin("run", store.splits.rows[scored_split(store)] if run else 0)
    sections.append(run_section(store, run, told.advance) if run else no_run_section(store))
    of_run = f", run {run.name}" if run else ""
    return Report(f"Snapshot {store.snapshot.manifest.id}{of_run}", sections)


def _of_vocabulary(
    name: str, title: str, make: Callable[[FeatureStore], Section]
) -> Callable[[FeatureStore], Section]:
    """Return what makes a section, or one that says how to build the vocabulary that it is made of."""

    def section(store: FeatureStore) -> Section:
        try:
            store.snapshot.vocabulary()
        except NotFound as error:
            return Section(name, title, [Words([str(error)])])
        return make(store)

    return section


_SECTIONS: dict[str, Callable[[FeatureStore], Section]] = {
    "snapshot": snapshot_section,
    "rejects": rejects_section,
    "features": _of_vocabulary("features", "Features", features_section),
    "splits": splits_section,
    "collisions": _of_vocabulary("collisions", "Collisions", collisions_section),
    "quality": quality_section,
}
