"""Writing that a crash can't leave half done.

Plain system calls through `os`, one at a time: the tests make each of them fail in turn.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

TEMPORARY = ".writing-"
"""Prefix of unfinished files and folders; they can be removed once their writer has ended."""


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte; one call takes at most 2 GiB, or what the disk still has room for."""
    left = memoryview(data).cast("B")
    while left.nbytes:
        left = left[os.write(descriptor, left) :]


def write_synced(folder: Folder, name: str, data: bytes | memoryview) -> None:
    """Make a file, and wait until its bytes are on the disk."""
    descriptor = folder.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_in(folder: Folder, name: str, data: bytes) -> None:
    """Give a file new contents: whatever happens, it holds all of the old or all of the new.

    Raises:
        OSError: where the disk refuses; the file is as it was.
    """
    aside = f"{TEMPORARY}{name}"
    try:
        write_synced(folder, aside, data)
        folder.rename(aside, name)
    except OSError:
        with suppress(OSError):
            folder.remove(aside)
        raise
    folder.sync()


def replace_file(path: Path, data: bytes) -> None:
    """As `replace_in`, by a path."""
    with Folder.open(path.parent) as folder:
        replace_in(folder, path.name, data)


def reason(error: OSError, folder: Folder) -> str:
    """Why a folder's disk refuses; without the file's name, which may be a temporary one."""
    if folder.deleted:
        return "the folder was deleted"
    return error.strerror or str(error) or type(error).__name__
