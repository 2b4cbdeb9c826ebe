"""A folder that is held open: what is done through it happens in this folder, wherever it goes.

A path is looked up anew with every call, and people move folders and make others under the old
name. A descriptor stays with the folder:

    runs/a ──mv──▶ runs/b       who holds it goes on in what is now runs/b,
    runs/a (a new one)          and never touches what is now called runs/a

A folder that was deleted takes nothing any more, and is not made again: its name may be another's.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from weakref import finalize, ref

from pipeline.system.plain_file import open_regular

_FOLDER = os.O_RDONLY | os.O_DIRECTORY


class Folder:
    """A folder by its descriptor, which is closed at the latest with the object.

    The names that its methods take are looked up in it. They raise OSError as the calls of `os`.

    Args:
        path: the name by which it was opened, for people.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._close = finalize(self, os.close, descriptor)

    @classmethod
    def open(cls, path: Path) -> Folder:
        """The folder that a path leads to now."""
        return cls(path, os.open(path, _FOLDER))

    def close(self) -> None:
        """Let go of it; to do so again does nothing."""
        self._descriptor = -1  # the number may soon be another's: what still comes must fail
        self._close()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- which folder it is ---------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where it is now: the name by which it was opened for as long as that leads to it, else
        the one that the system knows; of a deleted one, that by which it was opened."""
        if self.is_at(self._path):
            return self._path
        with suppress(OSError):  # there may be no /proc
            found = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
            if self.is_at(found):
                return found
        return self._path

    @property
    def deleted(self) -> bool:
        """Whether no name leads to it any more."""
        return not self.is_at(self.path)

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this folder now."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._descriptor))
        except OSError:
            return False

    def leads_to(self, name: str, other: Folder) -> bool:
        """Whether a name in this folder, a link perhaps, leads to the other one."""
        try:
            found = os.stat(name, dir_fd=self._descriptor)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(other._descriptor))

    # --- for one process alone ------------------------------------------------------------

    def lock(self) -> bool:
        """Lock it for this process until it is closed; False where its file system has no locks. On
        a network disk it may keep out this machine's processes only.

        Raises:
            BlockingIOError: where another has locked it.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another run is at work in it") from None
        except OSError:
            return False
        self._close_in_children()
        return True

    def again(self) -> Folder:
        """The same folder, to be closed apart; a lock lasts until both are."""
        folder = Folder(self._path, os.dup(self._descriptor))
        folder._close_in_children()
        return folder

    def _close_in_children(self) -> None:
        """A lock lives until the last descriptor is closed: a child that is forked, by a user's
        own module say, must not keep it when this process has ended."""
        itself = ref(self)

        def close() -> None:
            folder = itself()
            if folder is not None:
                folder.close()

        os.register_at_fork(after_in_child=close)

    # --- what is in it --------------------------------------------------------------------

    def names(self) -> list[str]:
        """Of everything in it, sorted."""
        return sorted(os.listdir(self._descriptor))

    def has(self, name: str) -> bool:
        """Whether there is anything of this name, a link that leads nowhere included."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def has_file(self, name: str) -> bool:
        """Whether a name leads to a file."""
        try:
            return S_ISREG(os.stat(name, dir_fd=self._descriptor).st_mode)
        except OSError:
            return False

    def child(self, name: str, *, make: bool = False) -> Folder:
        """A folder in this one; with `make`, it is made where there is nothing of its name."""
        if make:
            with suppress(FileExistsError):
                self.make(name)
        return Folder(self.path / name, self.open_file(name, _FOLDER))

    def read(self, name: str) -> bytes:
        """All of a regular file."""
        with open_regular(name, self._descriptor) as file:
            return file.read()

    # --- changing it ----------------------------------------------------------------------

    def open_file(self, name: str, flags: int) -> int:
        """A descriptor of a file, as `os.open` gives it."""
        return os.open(name, flags, 0o666, dir_fd=self._descriptor)

    def make(self, name: str) -> None:
        """Make a folder in it."""
        os.mkdir(name, dir_fd=self._descriptor)

    def rename(self, name: str, new: str) -> None:
        """Give something another name; a file that has it, or an empty folder, is replaced."""
        os.replace(name, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def link(self, name: str, into: Folder) -> None:
        """Give a file a second name, the same in another folder: its bytes stay where they are."""
        os.link(name, name, src_dir_fd=self._descriptor, dst_dir_fd=into._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder and all that is in it, if it is there."""
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=self._descriptor)
            return
        inside = Folder(self.path / name, self.open_file(name, _FOLDER | os.O_NOFOLLOW))
        with inside:
            for inner in inside.names():
                inside.remove(inner)
        os.rmdir(name, dir_fd=self._descriptor)

    def sync(self) -> None:
        """Wait until the names in it are on the disk."""
        os.fsync(self._descriptor)
