"""Files that may be anything: opened only if they are regular ones."""

from __future__ import annotations

import os
from errno import EINVAL
from stat import S_ISREG
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str], folder: int | None = None) -> BinaryIO:
    """A regular file, or a link to one, open for reading.

    Args:
        folder: the descriptor of the folder that `path` is relative to; None: the current one.

    Raises:
        OSError: as `open`, and for whatever is no regular file.
    """
    # without O_NONBLOCK, to open a FIFO waits for a writer; a regular file reads as ever
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=folder)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(EINVAL, "is no regular file")
    return os.fdopen(descriptor, "rb")
