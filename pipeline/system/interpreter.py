"""Python processes that import nothing from the current folder, whatever version of Python runs.

`python -c` looks there first, so that a user's `queue.py` would be taken for Python's own. `-P`
prevents it from 3.11 on; before, the path is set by the first statement, ahead of any import. Both
packages are loaded from the files that this process has loaded them from.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def look_here_last() -> None:
    """From now on find modules in the current folder, too, where no other place has them."""
    here = current_folder()
    if here is not None:
        sys.path[:] = [*(entry for entry in sys.path if entry not in ("", here)), here]


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
