import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from featurestore.hashing import MAX_SEED, default_seed, hash_values, slot, slots_of, xxh32

PRIME = 2654435761
# xxHash's own sanity checks (tests/sanity_test_vectors.h of the release and the older xxhsum.c).
OFFICIAL = [
    (0, 0, 0x02CC5D05),
    (0, PRIME, 0x36B78AE7),
    (1, 0, 0xB85CBEE5),
    (1, PRIME, 0xD5845D64),
    (14, 0, 0xE5AA0AB4),
    (14, PRIME, 0x4481951D),
    (101, 0, 0x1F1AA412),
    (101, PRIME, 0x498EC8E2),
]
seeds = st.integers(0, MAX_SEED)
texts = st.text(max_size=40)


def official_buffer(length):
    generator, data = PRIME, bytearray()
    for _ in range(length):
        data.append(generator >> 24)
        generator = generator * generator % 2**32
    return bytes(data)


def reference(data, seed):
    """XXH32 written from the specification, to be independent of the library."""
    p1, p2, p3, p4, p5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393

    def low(x):
        return x & 0xFFFFFFFF

    def rotl(x, r):
        return low(x << r) | low(x) >> (32 - r)

    n, position = len(data), 0
    if n >= 16:
        lanes = [low(seed + p1 + p2), low(seed + p2), seed, low(seed - p1)]
        while position + 16 <= n:
            for lane in range(4):
                word = int.from_bytes(data[position + 4 * lane : position + 4 * lane + 4], "little")
                lanes[lane] = low(rotl(low(lanes[lane] + word * p2), 13) * p1)
            position += 16
        h = sum(rotl(lane, r) for lane, r in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        h = seed + p5
    h = low(h + n)
    while position + 4 <= n:
        h = low(rotl(low(h + int.from_bytes(data[position : position + 4], "little") * p3), 17) * p4)
        position += 4
    for byte in data[position:]:
        h = low(rotl(low(h + byte * p5), 11) * p1)
    for shift, prime in ((15, p2), (13, p3), (16, 1)):
        h = low((h ^ h >> shift) * prime)
    return h


@pytest.mark.parametrize(("length", "seed", "expected"), OFFICIAL)
def test_official_vectors(length, seed, expected):
    data = official_buffer(length)
    assert reference(data, seed) == expected
    assert xxhash.xxh32_intdigest(data, seed) == expected


@given(texts, seeds)
def test_xxh32_is_the_specification_over_utf8(text, seed):
    assert xxh32(text, seed) == reference(text.encode(), seed)


def test_known_slots_of_the_article():
    assert [slot("1193", seed, 1000) for seed in range(4)] == [502, 749, 60, 5]
    assert slot("98107-2117", 6, 1000) == 367


def test_null_is_the_empty_text():
    assert xxh32(None, 5) == xxh32("", 5)
    assert hash_values(pa.array([None, ""]), [5]).tolist() == [[xxh32("", 5)] * 2]


@given(st.lists(st.none() | texts, max_size=20), st.lists(seeds, max_size=3))
def test_hash_values_equals_xxh32_value_by_value(values, some_seeds):
    hashes = hash_values(pa.array(values, pa.string()), some_seeds)
    assert hashes.dtype == np.uint32
    assert hashes.shape == (len(some_seeds), len(values))
    assert hashes.tolist() == [[xxh32(value, seed) for value in values] for seed in some_seeds]


@given(st.lists(st.integers(0, 2**32 - 1)), st.integers(1, 2**31 - 1))
def test_slots_are_hashes_modulo_the_table(hashes, num_slots):
    slots = slots_of(np.array(hashes, np.uint32), num_slots)
    assert slots.dtype == np.int32
    assert slots.tolist() == [value % num_slots for value in hashes]


def test_default_seeds_never_change():
    assert {(name, k): default_seed(name, k) for name in ("user_id", "movie_id", "zip") for k in (0, 1)} == {
        ("user_id", 0): 1511298233,
        ("user_id", 1): 4165068212,
        ("movie_id", 0): 2927469742,
        ("movie_id", 1): 3928708786,
        ("zip", 0): 3243975284,
        ("zip", 1): 3738885993,
    }


def test_text_that_is_no_unicode_has_no_slot():
    with pytest.raises(ValueError, match="surrogates"):
        slot("\ud800", 0, 10)


def test_conformance_file_holds_what_the_specification_says():
    vectors = json.loads(Path(__file__).parents[1].joinpath("conformance.json").read_text())
    assert len(vectors) >= 40
    for vector in vectors:
        data = (vector["value"] or "").encode()
        assert reference(data, vector["seed"]) == vector["hash"], vector
        assert vector["slot"] == vector["hash"] % vector["num_slots"], vector
