"""Copies made of a snapshot for training: where they lie, what they take, how they go.

A copy can be made again from its snapshot at any time, so nothing is lost with it. Its file is
``<store>/cache/<snapshot>/<name>``; of a store that is a URL, in a folder of the store's name here.
"""

from dataclasses import dataclass
from pathlib import Path

from featurestore.paths import AnyPath, files_below, local_folder, remove_tree


@dataclass(frozen=True)
class Cached:
    """The copies of one snapshot: their files, names relative to its folder, and bytes."""

    snapshot: str
    files: tuple[str, ...]
    bytes: int


def cache_folder(store: AnyPath) -> Path:
    """Return the folder with a store's copies."""
    return local_folder(store) / "cache"


def cached(store: AnyPath) -> list[Cached]:
    """Return what is there, a snapshot each, sorted by its id."""
    root = cache_folder(store)
    found = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        files = files_below(folder)
        found.append(Cached(folder.name, tuple(files), sum((folder / name).stat().st_size for name in files)))
    return found


def clear_cache(store: AnyPath, snapshots: list[str] | None = None) -> list[Cached]:
    """Remove the copies of some snapshots, or of all, and return what there was."""
    removed = [one for one in cached(store) if snapshots is None or one.snapshot in snapshots]
    for one in removed:
        remove_tree(cache_folder(store) / one.snapshot)
    return removed
