import threading
from collections import Counter

import numpy as np
import pytest
import torch

from training.prefetch import prefetch
from training.shuffle import Orders, permutation


@pytest.mark.parametrize("rows", [0, 1, 2, 1000, 40_000, 100_000])
def test_a_permutation_has_every_row_once(rows):
    assert (np.sort(permutation(rows, 7)) == np.arange(rows)).all()


def test_a_permutation_depends_on_all_its_seeds_and_on_nothing_else():
    torch.manual_seed(1)
    first = permutation(1000, 7, 3)
    torch.manual_seed(2)
    assert (permutation(1000, 7, 3) == first).all()
    assert (permutation(1000, 3, 7) != first).any()
    assert (permutation(1000, 7, 4) != first).any()


def test_all_permutations_of_three_are_equally_likely():
    drawn = Counter(tuple(permutation(3, seed).tolist()) for seed in range(6000))
    assert len(drawn) == 6
    chi_square = sum((count - 1000) ** 2 / 1000 for count in drawn.values())
    assert chi_square < 20.5  # exceeded by chance once in 1,000 at 5 degrees of freedom; the seeds are fixed


def test_orders_are_those_of_their_epochs_whatever_was_asked_before():
    orders = Orders(1000, seed=7)
    for epoch in (0, 1, 2, 0, 5, 5):
        orders.start(epoch + 1)
        assert orders.start(epoch).result().tolist() == permutation(1000, 7, epoch).tolist()


def numbers(count, started, closed):
    try:
        for number in range(count):
            started.append(number)
            yield number
    finally:
        closed.append(True)


def test_prefetch_yields_all_in_order_and_closes_its_source():
    started, closed = [], []
    assert list(prefetch(numbers(5, started, closed))) == [0, 1, 2, 3, 4]
    assert closed == [True]


def test_prefetch_runs_one_ahead_and_an_abandoned_one_ends_its_thread():
    before = threading.active_count()
    started, closed = [], []
    ahead = prefetch(numbers(100, started, closed))
    assert next(ahead) == 0
    ahead.close()
    assert started in ([0], [0, 1])
    assert closed == [True]
    assert threading.active_count() == before


def test_an_error_in_the_thread_is_raised_where_its_item_was_due():
    def broken():
        yield 1
        raise OSError("the disk is gone")

    ahead = prefetch(broken())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
