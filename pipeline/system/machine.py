"""Which machine, or which container of it, this process is on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_OF_MEMORY = ("pid", "ipc", "mnt")
"""Namespaces: memory is opened by way of a process's number, and of files that both can see."""


def memory_identity() -> str:
    """The same for processes that may open each other's memory: those of one machine since it was
    booted, and there of one container. The machine comes first, a word for each."""
    return " ".join([_boot(), *map(_namespace, _OF_MEMORY)])


def is_on_this_machine(identity: str) -> bool:
    """Whether a `memory_identity` is of this machine, in whatever container."""
    return identity.partition(" ")[0] == _boot()


def clock_identity() -> str:
    """The same for processes that have one monotonic clock: those of a machine since it was booted,
    but for containers to which the kernel shows another (time namespaces)."""
    return f"{_boot()} {_namespace('time')}".rstrip()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{os.uname().nodename}"


def _namespace(kind: str) -> str:
    with suppress(OSError):  # an older kernel has none
        return os.readlink(f"/proc/self/ns/{kind}")
    return ""
