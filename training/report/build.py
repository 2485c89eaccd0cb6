"""A page about a snapshot, section by section."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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

SECTIONS = 7


@dataclass(frozen=True)
class Report:
    """A page and what is in it."""

    title: str
    sections: Sequence[Section]

    def html(self) -> str:
        """Return the page's file."""
        return page(self.title, self.sections)


def build_report(
    store: FeatureStore, run: ReportedRun | None, progress: Callable[[str], None] = lambda _title: None
) -> Report:
    """Ask a snapshot, and a run, for all that their page shows.

    Args:
        store: the snapshot.
        run: a run on a snapshot of its spec, or none.
        progress: is told of each section before it is made; there are `SECTIONS`.

    Raises:
        FingerprintError: the run's model has another spec than the snapshot.
        ArtifactError: the snapshot or the run is damaged.
    """
    sections = []
    for title, make in _sections(store, run):
        progress(title)
        try:
            sections.append(make())
        except NotFound as error:  # no vocabulary: the rest can be shown, and this says how to build one
            sections.append(Section(title.partition(" ")[0], title.capitalize(), [Words([str(error)])]))
    told = f", run {run.name}" if run else ""
    return Report(f"Snapshot {store.snapshot.manifest.id}{told}", sections)


def _sections(store: FeatureStore, run: ReportedRun | None) -> Iterator[tuple[str, Callable[[], Section]]]:
    yield "snapshot", lambda: snapshot_section(store)
    yield "rejects", lambda: rejects_section(store)
    yield "features", lambda: features_section(store)
    yield "splits", lambda: splits_section(store)
    yield "collisions", lambda: collisions_section(store)
    yield "quality", lambda: quality_section(store)
    yield "run", lambda: run_section(store, run) if run else no_run_section(store)
