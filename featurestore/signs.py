"""Signs that a value has by its slots alone, for tables whose rows are narrow: see `Table.vector`.

Values that share a row must not pull it the same way, or it comes to the mean of what they want. In a count
sketch (M. Charikar, K. Chen, M. Farach-Colton, "Finding Frequent Items in Data Streams", ICALP 2002) each
reads it with a sign of its own. Here that sign is a hash of *all* slots of the value, so that nothing but
slots has to be stored, streamed or served: values that share one row of several have different signs there.

`training.combiners` says the same to torch and is tested against this file.
"""

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from featurestore.hashing import default_seed, hash_values

WORD_BITS = 32
STEP = 0x9E3779B9
"""Between the words of a value: 2^32 over the golden ratio."""


def signs_of(hashes: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Return -1 or 1 for each hash, by its last bit: float32 of the same shape."""
    return (1 - 2 * (hashes & 1).astype(np.float32)).astype(np.float32)


@functools.cache
def multipliers(lookups: int) -> npt.NDArray[np.uint64]:
    """Return an odd number for each lookup, uint64 (k,): 2 h + 1, h the xxh64 of its number as text."""
    hashes = [xxhash.xxh64_intdigest(str(lookup).encode()) for lookup in range(lookups)]
    factors = np.array(hashes, np.uint64) * np.uint64(2) + np.uint64(1)
    factors.flags.writeable = False  # all who ask get the same one
    return factors


def slot_signs(slots: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.float32]:
    """Return ``count`` signs of each value.

        h = floor((sum over l of multiplier_l * slots[l] mod 2^64) / 2^32)
        signs[j] = 1 - 2 * bit (j mod 32) of fmix32(h + STEP * floor(j / 32) mod 2^32)

    h is vector multiply-shift (M. Thorup, "High Speed Hashing for Integers and Strings", 2015, section 3.1);
    fmix32 is the finalizer of MurmurHash3 (A. Appleby).

    Args:
        slots: int32 (..., k), those of one feature's lookups.
        count: of the signs; the first ones do not depend on it.

    Returns:
        float32 (..., count), each -1 or 1.
    """
    factors = multipliers(slots.shape[-1])
    hashes = ((slots.astype(np.uint64) * factors).sum(-1) >> np.uint64(32)).astype(np.uint32)
    steps = np.arange(-(-count // WORD_BITS), dtype=np.uint32) * np.uint32(STEP)
    words = fmix32(hashes[..., None] + steps)
    bits = words[..., None] >> np.arange(WORD_BITS, dtype=np.uint32) & np.uint32(1)
    return signs_of(bits.reshape(*words.shape[:-1], -1)[..., :count])


def fmix32(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return the words with every bit depending on all of theirs: MurmurHash3's finalizer."""
    words = (words ^ words >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    words = (words ^ words >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return words ^ words >> np.uint32(16)


@functools.cache
def projection_signs(inputs: int, dim: int) -> npt.NDArray[np.float32]:
    """Return the signs of a fixed projection, float32 (inputs, dim): nobody learns or stores it.

    That of (place, column) is 1 where the last bit of the hash of "place/column" is 0, else -1.
    """
    places = pa.array([f"{place}/{column}" for place in range(inputs) for column in range(dim)])
    (hashes,) = hash_values(places, [default_seed("projection", 0)])
    signs = signs_of(hashes).reshape(inputs, dim)
    signs.flags.writeable = False
    return signs
