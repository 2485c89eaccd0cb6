"""Memory that a step frees, kept for the next one."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let malloc keep up to 1 GiB of what is freed; return whether it does.

    glibc gives a freed block of more than 32 MiB back to the system at once, and its pages are zeroed again
    when the next step asks for it: with batches of 65,536, on two noisy cores, that was a third of the time
    of the article's network and two fifths of DCN-V2's. It is a setting of the process, and stays.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    return all(mallopt(option, KEPT_BYTES) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
