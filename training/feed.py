"""Which feed to take: by the bytes of the data and what is free, measured."""

import os
from dataclasses import dataclass

import torch

from featurestore.store import FeatureStore
from training.order import WINDOW_ROWS
from training.packing import RowFormat
from training.resources import available_memory, device_memory
from training.stream import FEEDS

CHOICES = ("auto", *FEEDS)
SHARE = 0.5
"""Of what is free, the most that data may take: the model, its gradients and its optimizer need the rest."""


@dataclass(frozen=True)
class FeedChoice:
    """A feed and, for a person, why."""

    feed: str
    why: str

    def __str__(self) -> str:
        return f"{self.feed}: {self.why}"


def packed_bytes(store: FeatureStore) -> int:
    """Return the bytes of all splits as packed rows."""
    return sum(store.splits.rows.values()) * RowFormat.of(store.spec).words * 4


def choose_feed(
    wanted: str, store: FeatureStore, device: torch.device, window_rows: int = WINDOW_ROWS
) -> FeedChoice:
    """Return the feed to take: what was ``wanted``, or for ``auto`` the fastest one that fits.

    On a CPU the device's memory is the machine's, and the feed is called ``memory``. The processes that
    torchrun started on this machine share its memory.
    """
    needed = packed_bytes(store)
    said = f"the splits take {_mb(needed)} as packed slots"
    if wanted not in ("auto", "device"):
        return FeedChoice(wanted, f"as asked; {said}")
    if device.type != "cpu" and (wanted == "device" or _fits(needed, device_memory(device))):
        asked = "as asked; " if wanted == "device" else ""
        return FeedChoice("device", f"{asked}{said}, {_free(device_memory(device))} of {device}")
    if max(store.splits.rows.values()) > window_rows:
        needed += 16 * store.splits.rows["train"]  # while the rows are brought into their base order
    if wanted == "device" or _fits(needed, available_memory(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
        return FeedChoice("memory", f"{said}, {_free(available_memory())}")
    return FeedChoice("stream", f"{said}, more than half of what is free: {_free(available_memory())}")


def _fits(needed: int, free: int | None, processes: int = 1) -> bool:
    return free is None or needed * processes <= SHARE * free


def _free(memory: int | None) -> str:
    return "free memory unknown" if memory is None else f"{_mb(memory)} free"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
