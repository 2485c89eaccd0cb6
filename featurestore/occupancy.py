"""What chance does to n values in m slots: balls in bins, and birthdays.

All formulas take every hash as uniform and independent of the others, and all but those said to be
approximate are exact then. `hash % m` is not quite uniform where m does not divide 2**32, by less than one
part in 2**32 / m. They are computed with log1p and expm1, and keep 6 digits for n and m up to 2**31. Counts
that cannot be (no slots, a negative number of values) raise ValueError.

Sources: N. L. Johnson and S. Kotz, "Urn Models and Their Application", Wiley 1977, section 3.1, for the mean
and the variance of the number of empty bins; W. Feller, "An Introduction to Probability Theory and Its
Applications", vol. 1, 3rd ed., Wiley 1968, sections II.3 (birthdays) and IV.2 (occupancy); M. Raab and
A. Steger, "Balls into Bins: A Simple and Tight Analysis", RANDOM 1998, for the fullest bin.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HASHES = 2**32
"""Values that a 32-bit hash can have."""
UNLIKELY = 4.0
"""Standard deviations beyond which chance is no explanation: a normal's tail of 3.2e-5 on either side."""
_TAIL = math.erfc(UNLIKELY / math.sqrt(2)) / 2
_FEW = 100
_SURE = 745.0
"""exp(-745) is the least positive double."""


@dataclass(frozen=True)
class Measure:
    """A count beside what theory expects of it: its mean and, where it is known, its standard deviation."""

    observed: int
    expected: float
    deviation: float | None = None

    @property
    def z(self) -> float | None:
        """How many deviations above the mean; None where none is known, or there is no chance in it."""
        if self.deviation is None or (self.deviation == 0 and self.observed == round(self.expected)):
            return None
        gap = self.observed - self.expected
        return gap / self.deviation if self.deviation else math.copysign(math.inf, gap)

    @property
    def is_unlikely(self) -> bool:
        """Whether chance explains it badly: `UNLIKELY` deviations off, and as rare as that.

        Where few are expected a deviation says less than it seems, for one pair where a hundredth is expected
        is ten of them. There the tail of a Poisson distribution decides.
        """
        if self.z is None or abs(self.z) <= UNLIKELY:
            return False
        return self.z < 0 or self.expected >= _FEW or poisson_tail(self.observed, self.expected) < _TAIL


# Slots in use


def expected_used(values: int, slots: int) -> float:
    """Return how many of m slots n values use: m (1 - (1 - 1/m)^n)."""
    _check(values, slots)
    return -slots * math.expm1(_times(values, _log_left(1, slots)))


def used_deviation(values: int, slots: int) -> float:
    """Return the standard deviation of that number.

    Var = m (m-1) (1 - 2/m)^n + m (1 - 1/m)^n - m^2 (1 - 1/m)^2n, Johnson and Kotz 1977, section 3.1. With
    p = (1 - 1/m)^n it is m p (1 - p) + m (m-1) p^2 ((1 - 1/(m-1)^2)^n - 1): no squares are subtracted.
    """
    _check(values, slots)
    if values < 2 or slots == 1:
        return 0.0
    log_empty = values * _log_left(1, slots)
    both = math.expm1(values * _log_both(slots))
    variance = slots * math.exp(log_empty) * -math.expm1(log_empty)
    variance += slots * (slots - 1) * math.exp(2 * log_empty) * both
    return math.sqrt(max(variance, 0.0))


# Values that share


def expected_sharing(values: int, slots: int) -> float:
    """Return how many of n values share their slot with another: n (1 - (1 - 1/m)^(n-1))."""
    return values * sharing_probability(1, max(values - 1, 0), slots)


def sharing_deviation(values: int, slots: int) -> float:
    """Return the standard deviation of that number.

    Two values are both alone with probability q = (1 - 1/m) (1 - 2/m)^(n-2), one is with p = (1 - 1/m)^(n-1):
    Var = n p (1 - p) + n (n-1) (q - p^2), put as for `used_deviation`.
    """
    _check(values, slots)
    if values < 2 or slots == 1:
        return 0.0
    log_alone = (values - 1) * _log_left(1, slots)
    both = math.expm1(_times(values - 2, _log_both(slots)) - _log_left(1, slots))
    variance = values * math.exp(log_alone) * -math.expm1(log_alone)
    variance += values * (values - 1) * math.exp(2 * log_alone) * both
    return math.sqrt(max(variance, 0.0))


def sharing_probability(lookups: int, others: int, slots: int) -> float:
    """Return how likely a value with k lookups has a slot that one of ``others`` uses falls into, too.

    1 - E (1 - d/m)^others, over the number d of distinct slots that k lookups take.
    """
    _check(others, slots)
    return _over_taken(lookups, slots, lambda taken: -math.expm1(_times(others, _log_left(taken, slots))))


def all_shared_probability(lookups: int, others: int, slots: int) -> float:
    """Return how likely all slots of a value with k lookups are shared with ``others`` uses, approximately.

    E (1 - (1 - 1/m)^others)^d: the slots are taken as independent, which is wrong by one part in ``others``.
    """
    one = sharing_probability(1, others, slots)
    return _over_taken(lookups, slots, lambda taken: one**taken)


def _over_taken(lookups: int, slots: int, function: Callable[[int], float]) -> float:
    """Return the mean of a function of the number of distinct slots that some lookups take."""
    chances = {0: 1.0}
    for _ in range(lookups):
        following: dict[int, float] = {}
        for taken, chance in chances.items():
            for number, step in ((taken, taken / slots), (taken + 1, 1 - taken / slots)):
                if step > 0:
                    following[number] = following.get(number, 0.0) + chance * step
        chances = following
    return sum(chance * function(taken) for taken, chance in chances.items())


# Pairs


def pairs_measure(observed: int, pairs: int, chance: float) -> Measure:
    """Return how many of some pairs meet, each with the same chance: mean N p, variance N p (1 - p).

    The variance is exact for pairs of uses of a hash: whether a meets b says nothing on whether a meets c.
    """
    return Measure(observed, pairs * chance, math.sqrt(pairs * chance * (1 - chance)))


def pairs_of(values: int) -> int:
    """Return n (n-1) / 2."""
    return values * (values - 1) // 2


# Load


def expected_with_load(load: int, uses: int, slots: int) -> float:
    """Return how many of m slots have exactly j of n uses: m C(n, j) m^-j (1 - 1/m)^(n-j)."""
    _check(uses, slots)
    if load > uses:
        return 0.0
    ways = math.lgamma(uses + 1) - math.lgamma(load + 1) - math.lgamma(uses - load + 1)
    missed = _times(uses - load, _log_left(1, slots))
    return slots * math.exp(ways - load * math.log(slots) + missed)


def expected_between(first: int, last: int, uses: int, slots: int) -> float:
    """Return how many of m slots have ``first`` to ``last`` of n uses; 40 deviations off there are none."""
    mean = uses / slots
    width = 40 * math.sqrt(mean) + 40
    loads = range(max(first, math.floor(mean - width)), min(last, math.ceil(mean + width)) + 1)
    return math.fsum(expected_with_load(load, uses, slots) for load in loads)


def expected_maximum(uses: int, slots: int) -> float:
    """Return how many uses the fullest slot has, approximately.

    It has at least ceil(n / m). Above that the loads are taken as m independent Poisson numbers of mean
    n / m: one of them reaches j with chance 1 - (1 - P(load >= j))^m, of which this is the sum over j.
    """
    _check(uses, slots)
    least = -(-uses // slots)
    if slots == 1 or not uses:
        return float(least)
    tails = itertools.accumulate(reversed(list(_poisson_terms(least + 1, uses / slots))))
    return least - math.fsum(math.expm1(slots * math.log1p(-min(tail, 0.5))) for tail in tails)


def maximum_is_unlikely(load: int, uses: int, slots: int) -> bool:
    """Return whether a slot as full as this would hardly come by chance: m P(load >= j) is an upper bound."""
    return slots * poisson_tail(load, uses / slots) < _TAIL


def poisson_tail(least: int, mean: float) -> float:
    """Return P(X >= least) for a Poisson number X of this mean."""
    if least <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    if least > mean:
        return math.fsum(_poisson_terms(least, mean))
    return 1.0 - math.fsum(_poisson_terms(least - 1, mean, step=-1))  # the lower part is the smaller one


def _poisson_terms(first: int, mean: float, step: int = 1) -> Iterator[float]:
    """Yield a Poisson number's chances to be ``first``, and so on away from the mean, while they count."""
    log_term = first * math.log(mean) - mean - math.lgamma(first + 1)
    term = least = math.exp(log_term) if log_term > -_SURE else 0.0
    number = first
    while number >= 0 and term > least * 1e-17:
        yield term
        term *= mean / (number + 1) if step > 0 else number / mean
        number += step


# The number of slots


def slots_for(sharing: Callable[[int], float], wanted: float, most: int) -> int | None:
    """Return the fewest slots with which ``sharing`` falls to ``wanted``; None if ``most`` are too few."""
    low, high = 0, most
    if sharing(most) > wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sharing(middle) <= wanted else (middle, high)
    return high


def _check(values: int, slots: int) -> None:
    if values < 0 or slots < 1:
        raise ValueError(f"expected a count of at least 0 and one or more slots, got {values} and {slots}")


def _log_left(taken: int, slots: int) -> float:
    """Return log(1 - taken/m), the log of the chance to miss so many slots."""
    return math.log1p(-taken / slots) if taken < slots else -math.inf


def _times(count: int, log: float) -> float:
    """Return the log of a chance to the power of ``count``; 0 is 1 to the power of 0."""
    return count * log if count else 0.0


def _log_both(slots: int) -> float:
    """Return log((1 - 2/m) / (1 - 1/m)^2), which is log(1 - 1/(m-1)^2)."""
    return math.log1p(-1 / (slots - 1) ** 2) if slots > 2 else -math.inf
