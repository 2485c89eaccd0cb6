import threading

import pytest

from training.prefetch import prefetch


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
