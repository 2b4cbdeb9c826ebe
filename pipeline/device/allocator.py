"""Memory that tensors give back stays with the process, where the next tensor finds it.

By default the C library (glibc) gives every piece above 32 MiB back to the system at once. The
next tensor of that size gets it anew, zeroed page by page as it is touched: of a step on large
feature maps that can be a quarter of the time.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """For this process, from now on. False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST_INT))
