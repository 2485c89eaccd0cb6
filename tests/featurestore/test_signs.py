"""Signs by slots: known ones, one by one in plain integers, and as random as they must be."""

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from featurestore.hashing import MAX_SLOTS, default_seed, xxh32
from featurestore.signs import fmix32, projection_signs, slot_signs

SLOTS = st.integers(0, MAX_SLOTS - 1)
KNOWN = [
    "--++--+-++-+-----+--+++--+---+-+--+--+++",
    "-+++++-+-++-++--+-++++++-+-+---++++-+---",
    "-++-+-+++--+-------+-+-++----+----+--++-",
]


def mixed(word):
    """MurmurHash3's fmix32, as its source says it."""
    word ^= word >> 16
    word = word * 0x85EBCA6B % 2**32
    word ^= word >> 13
    word = word * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


def sign(slots, number):
    """One sign of one value, in integers that do not wrap."""
    factors = [2 * xxhash.xxh64_intdigest(str(lookup).encode()) + 1 for lookup in range(len(slots))]
    total = sum(factor * slot for factor, slot in zip(factors, slots, strict=True)) % 2**64
    word = mixed((total // 2**32 + 0x9E3779B9 * (number // 32)) % 2**32)
    return 1 - 2 * (word >> number % 32 & 1)


@given(st.lists(SLOTS, min_size=1, max_size=9), st.integers(1, 70))
def test_signs_are_those_of_plain_integers(slots, count):
    found = slot_signs(np.array(slots, np.int32), count)
    assert found.dtype == np.float32
    assert found.tolist() == [sign(slots, number) for number in range(count)]


def test_known_signs():
    """A model trained with them must find them again: they never change."""
    signs = slot_signs(np.array([[17, 4], [4, 17], [2**31 - 2, 0]], np.int32), 40)
    told = ["".join("-+"[int(one > 0)] for one in row) for row in signs]
    assert told == KNOWN


def test_the_finalizer_by_known_values():
    """fmix32(1) and fmix32(2^32 - 1), as widely published for MurmurHash3."""
    assert fmix32(np.array([0, 1, 2**32 - 1], np.uint32)).tolist() == [0, 0x514E28B7, 0x81F16F39]


def test_values_that_share_all_slots_but_one_have_signs_as_if_by_chance():
    """Of 64 signs 32 agree, with a deviation of 4 for a pair; of all pairs together hardly any."""
    slots = np.tile(np.array([5, 6, 7, 8], np.int32), (2000, 1))
    slots[:, 2] = np.arange(2000)
    signs = slot_signs(slots, 64)
    agree = (signs[:-1] == signs[1:]).sum(1)
    assert abs(agree.mean() - 32) < 0.5
    assert agree.min() >= 12
    assert agree.max() <= 52
    of_pairs = np.abs(signs.T @ signs / len(signs) - np.eye(64))
    assert of_pairs.max() < 0.13  # five deviations


def test_the_first_signs_do_not_depend_on_how_many_there_are():
    slots = np.array([[1, 2, 3]], np.int32)
    assert slot_signs(slots, 50)[:, :7].tolist() == slot_signs(slots, 7).tolist()


def test_the_projection_has_a_sign_for_each_place_and_column():
    found = projection_signs(9, 30)
    assert found.shape == (9, 30)
    assert found.dtype == np.float32
    assert set(np.unique(found)) == {-1, 1}
    assert found[2, 4] == 1 - 2 * (xxh32("2/4", default_seed("projection", 0)) & 1)
    assert projection_signs(3, 30).tolist() == found[:3].tolist()
