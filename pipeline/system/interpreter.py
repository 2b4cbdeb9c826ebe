"""Python processes that import nothing from the current folder, whatever version of Python runs.

`python -c` looks there first, so that a user's `queue.py` would be taken for Python's own. `-P`
prevents it from 3.11 on; before, the path is set by the first statement, ahead of any import. Both
packages are loaded from the files that this process has loaded them from.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_IMPORT_MACHINERY = ("importlib", "_frozen_importlib")
_PROGRAM = """\
import sys
sys.path[:] = {path}
try:
    from importlib import util
    for name, file in {packages}:
        spec = util.spec_from_file_location(name, file)
        sys.modules[name] = util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    from {module} import main
except (ImportError, OSError) as error:
    sys.exit(f"{module}: {{error}}")
main({arguments})
"""


def python_command(module: str, *arguments: int | str) -> list[str]:
    """The command line of a process that calls `module.main(*arguments)`.

    Args:
        module: of `pipeline` or of a package that this process has imported.
    """
    names = dict.fromkeys(("pipeline", module.partition(".")[0]))
    program = _PROGRAM.format(
        path=ascii(module_path()),
        packages=ascii([(name, str(sys.modules[name].__file__)) for name in names]),
        module=module,
        arguments=", ".join(map(ascii, arguments)),
    )
    return [sys.executable, *_flags(), "-c", program]


def python_environment() -> dict[str, str]:
    """For such a process: Python reads PYTHONPATH before its first statement."""
    kept = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(without_current_folder(kept.split(os.pathsep))) if kept else ""
    return {**os.environ, "PYTHONPATH": path}


def module_path() -> list[str]:
    """Where modules are looked for, the current folder left out."""
    return without_current_folder(sys.path)


def without_current_folder(entries: Iterable[str]) -> list[str]:
    """Entries of a module path, absolute, without the current folder."""
    here = current_folder()
    if here is None:  # it was deleted: nothing can be relative to it
        return [entry for entry in entries if os.path.isabs(entry)]
    absolute = [os.path.join(here, entry) for entry in entries if entry]
    return [entry for entry in absolute if os.path.realpath(entry) != os.path.realpath(here)]


def look_here_last(module: str) -> None:
    """From now on find this module, and what the user's own files import, in the current folder,
    too, where no other place has them.

    Libraries find nothing there: one that tries to import pandas, to see whether it is installed,
    would execute a file that a user has called so.
    """
    here = current_folder()
    if here is None:
        return
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]
    finder = next((f for f in sys.meta_path if isinstance(f, _Folder) and f.path == here), None)
    if finder is None:
        finder = _Folder(here)
        sys.meta_path.append(finder)
    finder.named.add(module.partition(".")[0])


class _Folder(MetaPathFinder):
    """Finds modules of a folder: those named, and those that files of the folder import."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.named: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As every finder; modules within packages are found by these."""
        if path is None and (fullname in self.named or self._holds(_importing_file())):
            return PathFinder.find_spec(fullname, [self.path], target)
        return None

    def _holds(self, file: str) -> bool:
        """Installed packages are none of the user's own files, as in a virtual environment in the
        folder; what PYTHONPATH names in it, as its `src`, may be."""
        within = [entry for entry in sys.path if is_in(entry, self.path) and is_in(file, entry)]
        return is_in(file, self.path) and not any(map(has_installed, within))


def has_installed(entry: str) -> bool:
    """Whether an entry of the module path has packages of an installer, which notes them there, or
    the standard library."""
    with suppress(OSError):  # not there, or an archive
        names = os.listdir(entry)
        return "os.py" in names or any(name.endswith(".dist-info") for name in names)
    return False


def _importing_file() -> str:
    """Of the statement that is about to import; empty where no file has it."""
    frame = sys._getframe(1)
    while frame.f_back:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and module.partition(".")[0] not in _IMPORT_MACHINERY:
            break
        frame = frame.f_back
    return frame.f_code.co_filename


def is_in(path: str, folder: str) -> bool:
    """Whether a file lies in a folder, or in one below it."""
    return os.path.realpath(path).startswith(inside(folder))


def inside(folder: str) -> str:
    """What the real paths of all that lies in a folder begin with."""
    return os.path.join(os.path.realpath(folder), "")


def current_folder() -> str | None:
    """Absolute; None where it was deleted."""
    with suppress(FileNotFoundError):
        return os.getcwd()
    return None


def _flags() -> list[str]:
    """Options of this interpreter that decide what is imported, and how."""
    flags = sys.flags
    given = ("-" + "O" * flags.optimize, "-E", "-s", "-I")
    holds = (flags.optimize, flags.ignore_environment, flags.no_user_site, flags.isolated)
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    utf8 = ["-X", "utf8"] if flags.utf8_mode else []
    return [*(flag for flag, is_set in zip(given, holds, strict=True) if is_set), *safe_path, *utf8]
