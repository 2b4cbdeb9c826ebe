"""Which machine this is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def host_identity() -> str:
    """The same for processes that may share memory; process ids are checked by inode."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{os.uname().nodename}"


def clock_identity() -> str:
    """The same for processes that have one monotonic clock: those of a machine since it was booted,
    but for containers to which the kernel shows another (time namespaces)."""
    namespace = ""
    with suppress(OSError):  # an older kernel has none
        namespace = os.readlink("/proc/self/ns/time")
    return f"{host_identity()} {namespace}".rstrip()
