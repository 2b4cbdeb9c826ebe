"""Writing that a crash can't leave half done.

Plain system calls through `os`, one at a time: the tests make each of them fail in turn.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TEMPORARY = ".writing-"
"""Begins the name of whatever is not finished; nobody needs it once its writer is gone."""


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte; one call takes at most 2 GiB, or what the disk still has room for."""
    left = memoryview(data).cast("B")
    while left.nbytes:
        left = left[os.write(descriptor, left) :]


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Make a file, and wait until its bytes are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new contents: whatever happens, it holds all of the old or all of the new.

    Raises:
        OSError: where the disk refuses; the file is as it was.
    """
    aside = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        write_synced(aside, data)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def reason(error: OSError) -> str:
    """Why the disk refuses, without the name of the file, which may be a temporary one."""
    return error.strerror or str(error) or type(error).__name__
