"""What the system refuses, in words that say which limit it is and what to do about it."""

from __future__ import annotations

import errno
import resource
from typing import TYPE_CHECKING

from pipeline.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEMORY = (
    "there is no memory left, or no more is allowed (ulimit -v): a smaller data.batch_size or "
    "fewer --stages need less"
)
_PROCESSES = "no more processes or threads are allowed (ulimit -u): raise it, or use fewer --stages"
_CURES: Mapping[int, str] = {
    errno.ENFILE: "the system may open no more files (sysctl fs.file-max): end other programs",
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _PROCESSES,
    errno.ENOSPC: "the disk is full: free some space, or use a folder on another disk",
    errno.EDQUOT: "your quota of the disk is used up: free some space, or use another disk",
    errno.EROFS: "this file system can't be written to: use a folder on another",
    errno.EACCES: "you may not do that: use a file or folder of your own",
    errno.EPERM: "you may not do that: use a file or folder of your own",
    errno.EIO: "the disk fails, or the connection to it: look at the system's log (dmesg)",
    errno.ESTALE: "the disk's server has lost it: mount it anew",
}
_SAYINGS: Mapping[str, str] = {
    "can't start new thread": _PROCESSES,
    "can't allocate memory": _MEMORY,
    "out of memory": _MEMORY,
    "failed to map segment": _MEMORY,
    "cannot allocate memory": _MEMORY,
    "Cannot allocate memory": _MEMORY,
}
"""Of errors without a type or number of their own, as of a library that can't be loaded."""


def cure_of(error: BaseException) -> str | None:
    """Which limit of the system an error has met, and what helps; None where it is no such error.

    It is then nobody's bug, so nobody needs its traceback.
    """
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, RuntimeError | ImportError):
        text = str(error)
        return next((cure for saying, cure in _SAYINGS.items() if saying in text), None)
    number = getattr(error, "errno", None)  # of OSError and of zmq's own errors
    if number == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"a process may open {most} files (ulimit -n): raise it, or use fewer --stages"
    if number == errno.EFBIG:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return f"a file may have {most} bytes (ulimit -f): raise it"
    return _CURES.get(number) if isinstance(number, int) else None


def with_cure(error: Exception) -> str:
    """The error in a line, and what helps, where that is known."""
    cure = cure_of(error)
    return f"{one_line(error)}; {cure}" if cure else one_line(error)
