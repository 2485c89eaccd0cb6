"""The order of rows: permutations that are a function of their seeds alone."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

Order = npt.NDArray[np.int64]


def permutation(rows: int, *seeds: int) -> Order:
    """Return a permutation of ``range(rows)``, int64 (rows,), drawn from ``seeds``."""
    mixed = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
    order: Order = torch.randperm(rows, generator=torch.Generator().manual_seed(mixed)).numpy()
    return order


class Orders:
    """The permutation of each epoch; a thread makes the next one while an epoch runs.

    To permute takes longer than to gather: 0.3 s against 0.2 s for 8 M rows.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._thread = ThreadPoolExecutor(1, "slotstore-order")
        self._made: dict[int, Future[Order]] = {}

    def start(self, epoch: int) -> Future[Order]:
        """Return the order of ``epoch`` to wait for, and start to make the next."""
        made = {number: self._made.get(number) or self._submit(number) for number in (epoch, epoch + 1)}
        self._made = {epoch + 1: made[epoch + 1]}  # an order that is no longer ahead is let go
        return made[epoch]

    def _submit(self, epoch: int) -> Future[Order]:
        return self._thread.submit(permutation, self._rows, self._seed, epoch)
