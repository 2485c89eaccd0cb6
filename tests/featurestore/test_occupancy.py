"""The theory of collisions, against all outcomes of small cases, simulation, and many digits of others."""

import decimal
import itertools
import math
import statistics

import numpy as np
import pytest

from featurestore.occupancy import (
    UNLIKELY,
    Measure,
    all_shared_probability,
    expected_between,
    expected_maximum,
    expected_sharing,
    expected_used,
    expected_with_load,
    maximum_is_unlikely,
    pairs_measure,
    pairs_of,
    poisson_tail,
    sharing_deviation,
    sharing_probability,
    slots_for,
    used_deviation,
)

SMALL = [(values, slots) for values in range(6) for slots in (1, 2, 3, 4)]


def outcomes(values, slots):
    """Every way in which the values can fall, as the number of values in each slot."""
    return [
        [row.count(slot) for slot in range(slots)] for row in itertools.product(range(slots), repeat=values)
    ]


@pytest.mark.parametrize(("values", "slots"), SMALL)
def test_every_outcome_of_a_small_case(values, slots):
    loads = outcomes(values, slots)
    used = [sum(load > 0 for load in row) for row in loads]
    sharing = [sum(load for load in row if load > 1) for row in loads]
    assert expected_used(values, slots) == pytest.approx(statistics.fmean(used))
    assert used_deviation(values, slots) == pytest.approx(statistics.pstdev(used), abs=1e-7)
    assert expected_sharing(values, slots) == pytest.approx(statistics.fmean(sharing))
    assert sharing_deviation(values, slots) == pytest.approx(statistics.pstdev(sharing), abs=1e-7)
    pairs = [sum(map(pairs_of, row)) for row in loads]
    measure = pairs_measure(0, pairs_of(values), 1 / slots)
    assert measure.expected == pytest.approx(statistics.fmean(pairs))
    assert measure.deviation == pytest.approx(statistics.pstdev(pairs), abs=1e-7)
    for load in range(values + 2):
        found = statistics.fmean(row.count(load) for row in loads)
        assert expected_with_load(load, values, slots) == pytest.approx(found)
    assert expected_between(1, values, values, slots) == pytest.approx(statistics.fmean(used))


@pytest.mark.parametrize(
    ("lookups", "others", "slots"), [(1, 3, 4), (2, 2, 3), (2, 3, 4), (3, 1, 3), (3, 2, 1)]
)
def test_every_outcome_of_a_value_with_several_lookups(lookups, others, slots):
    rows = itertools.product(range(slots), repeat=lookups + others)
    shared = [not set(row[:lookups]).isdisjoint(row[lookups:]) for row in rows]
    assert sharing_probability(lookups, others, slots) == pytest.approx(statistics.fmean(shared))


def test_sums_over_loads():
    assert expected_between(0, 1000, 1000, 10) == pytest.approx(10)
    assert sum(expected_with_load(load, 30, 7) for load in range(31)) == pytest.approx(7)
    assert sum(load * expected_with_load(load, 30, 7) for load in range(31)) == pytest.approx(30)


@pytest.mark.parametrize(("values", "slots"), [(300, 1000), (5000, 1000), (1000, 1000)])
def test_simulation(values, slots):
    """Means within 5 of their own deviations, deviations within a tenth, of 2,000 draws."""
    rng = np.random.default_rng(7)
    draws = 2_000
    loads = [np.bincount(rng.integers(0, slots, values), minlength=slots) for _ in range(draws)]
    used = [np.count_nonzero(load) for load in loads]
    sharing = [load[load > 1].sum() for load in loads]
    for found, expected, deviation in (
        (used, expected_used(values, slots), used_deviation(values, slots)),
        (sharing, expected_sharing(values, slots), sharing_deviation(values, slots)),
    ):
        assert abs(np.mean(found) - expected) < 5 * deviation / math.sqrt(draws)
        assert np.std(found) == pytest.approx(deviation, rel=0.1)
    assert np.mean([load.max() for load in loads]) == pytest.approx(expected_maximum(values, slots), rel=0.03)


def test_all_slots_of_a_value_are_shared_by_simulation():
    """20,000 values of 3 lookups among 500 other uses of 400 slots."""
    rng = np.random.default_rng(3)
    taken = np.zeros((20_000, 400), bool)
    np.put_along_axis(taken, rng.integers(0, 400, (20_000, 500)), values=True, axis=1)
    own = rng.integers(0, 400, (20_000, 3))
    found = np.take_along_axis(taken, own, axis=1).all(axis=1).mean()
    assert all_shared_probability(3, 500, 400) == pytest.approx(found, rel=0.03)


def digits(values, slots):
    """Expected slots in use, its variance, and expected sharing, with 80 digits."""
    with decimal.localcontext(prec=80):
        m = decimal.Decimal(slots)
        one, two = (1 - 1 / m) ** values, (1 - 2 / m) ** values
        variance = m * (m - 1) * two + m * one - m * m * one * one
        return float(m * (1 - one)), float(variance), float(values * (1 - (1 - 1 / m) ** (values - 1)))


@pytest.mark.parametrize("values", [2, 1_000, 10**6, 2**31])
@pytest.mark.parametrize("slots", [3, 1_000, 2**31 - 1])
def test_large_numbers_keep_their_digits(values, slots):
    used, variance, sharing = digits(values, slots)
    assert expected_used(values, slots) == pytest.approx(used, rel=1e-12)
    assert expected_sharing(values, slots) == pytest.approx(sharing, rel=1e-12)
    assert used_deviation(values, slots) ** 2 == pytest.approx(variance, rel=1e-5)
    assert expected_with_load(0, values, slots) == pytest.approx(slots - used, rel=1e-5, abs=1e-5 * slots)


def test_the_fullest_slot_of_large_numbers():
    """That of 2**31 uses in as many slots is known: n balls in n bins, about ln n / ln ln n, here 12."""
    assert 11 < expected_maximum(2**31, 2**31) < 13
    assert expected_maximum(2**31, 2_000) == pytest.approx(2**31 / 2_000, rel=0.01)
    assert expected_maximum(2**31, 2_000) > 2**31 / 2_000
    assert (expected_maximum(0, 5), expected_maximum(9, 1)) == (0, 9)
    assert expected_maximum(1, 2**31 - 1) == pytest.approx(1)
    assert not maximum_is_unlikely(12, 2**31, 2**31)
    assert maximum_is_unlikely(20, 2**31, 2**31)
    assert not maximum_is_unlikely(0, 0, 10)


@pytest.mark.parametrize("mean", [1e-9, 0.3, 2.0, 40.0])
def test_a_poisson_tail_is_the_sum_of_its_chances(mean):
    chances = [math.exp(-mean) * mean**number / math.factorial(number) for number in range(120)]
    for least in (0, 1, 2, 5, 39, 40, 41, 80):
        assert poisson_tail(least, mean) == pytest.approx(math.fsum(chances[least:]), rel=1e-9)


def test_a_poisson_tail_far_away():
    assert poisson_tail(10_000, 1.0) == 0
    assert poisson_tail(1, 10_000.0) == 1
    assert poisson_tail(3, 0.0) == 0
    assert poisson_tail(2**31, 2.0**31) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("observed", "expected", "deviation", "unlikely"),
    [
        (140, 100, 10, False),
        (141, 100, 10, True),
        (59, 100, 10, True),
        (60, 100, 10, False),
        (1, 0.01, 0.1, False),  # z is 9.9, but it happens once in a hundred times
        (3, 0.01, 0.1, True),
        (1, 1e-6, 1e-3, True),
        (0, 0.01, 0.1, False),
        (5, 1.0, None, False),
        (7, 7.0, 0.0, False),
    ],
)
def test_what_chance_does_not_explain(observed, expected, deviation, unlikely):
    measure = Measure(observed, expected, deviation)
    assert measure.is_unlikely is unlikely
    if unlikely:
        assert abs(measure.z) > UNLIKELY


def test_z():
    assert Measure(120, 100, 10).z == 2
    assert Measure(80, 100, 10).z == -2
    assert Measure(5, 1.0).z is None
    assert Measure(7, 7.0, 0.0).z is None
    assert Measure(8, 7.0, 0.0).z == math.inf


def test_the_fewest_slots_for_a_wish():
    found = slots_for(lambda slots: sharing_probability(1, 999, slots), 0.1, 2**31 - 1)
    assert sharing_probability(1, 999, found) <= 0.1 < sharing_probability(1, 999, found - 1)
    assert slots_for(lambda slots: 1 / slots, 0.5, 2) == 2
    assert slots_for(lambda slots: 1 / slots, 0.5, 1) is None
    assert slots_for(lambda _: 0.0, 0.5, 10) == 1


@pytest.mark.parametrize("function", [expected_used, used_deviation, sharing_deviation, expected_maximum])
@pytest.mark.parametrize(("values", "slots"), [(-1, 5), (5, 0), (5, -1)])
def test_numbers_that_cannot_be(function, values, slots):
    with pytest.raises(ValueError, match=f"got {values} and {slots}"):
        function(values, slots)
