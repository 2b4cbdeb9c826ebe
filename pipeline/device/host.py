"""The machine that a process runs on: its C library's allocator, and what its processor is."""

from __future__ import annotations

import ctypes
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """From now on memory that tensors free stays with this process, where the next tensor finds it.
    False where the C library has no such setting.

    By default glibc gives every piece above 32 MiB back to the system at once. The next tensor of
    that size gets it anew, zeroed page by page as it is touched: of a step on large feature maps
    that can be a quarter of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST_INT))


def processor_fact(name: str) -> str:
    """`vendor_id`, `model name` or another entry of /proc/cpuinfo, of the first core; empty where
    the system has no such entry."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    facts = (line.split(":", 1) for line in lines if ":" in line)
    return next((value.strip() for key, value in facts if key.strip() == name), "")
