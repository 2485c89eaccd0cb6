"""One item ahead: an iterator that works in a thread while its last item is used."""

import contextlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield the items of ``items``, each computed while the one before it is in use.

    At most one item waits, so memory holds two. An error in the thread is raised here, where its item
    was due. Closing or dropping the generator ends the thread, after the item it is working on.
    """
    end = object()
    with contextlib.closing(items), ThreadPoolExecutor(1, "slotstore-prefetch") as thread:
        ahead = thread.submit(next, items, end)
        while (item := ahead.result()) is not end:
            ahead = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # `end` never gets here
