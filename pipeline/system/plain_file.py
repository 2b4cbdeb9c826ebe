"""Files that may be anything: opened only if they are regular ones."""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, or a link to one, open for reading.

    Raises:
        OSError: as `open`, and for whatever is no regular file.
    """
    # without O_NONBLOCK, to open a FIFO waits for a writer; a regular file reads as ever
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("is no regular file")
    return os.fdopen(descriptor, "rb")
