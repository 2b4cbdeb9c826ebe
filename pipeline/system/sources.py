"""Which code a process runs: versions, and a digest of every source file. The processes of a run
compare theirs, since N of them equal one only where all run the same.

Files can be replaced while a run goes on (pip install, git pull), and a worker that is started
later then runs others than those before it.
"""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.system.given import code_line, is_given, own_modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_OWN = ("pipeline", "launch")
_OTHERS = ("torch", "numpy")
_HARDWARE = ("processor",)
_DIGITS = 16
_SOURCE = ".py"


@cache
def running_code() -> tuple[str, ...]:
    """A line `name what` for each version and source file, as they were when it was first asked:
    ask early, before others could take their place."""
    flags = "-" + "O" * sys.flags.optimize if sys.flags.optimize else ""
    versions = [f"python {platform.python_version()}{flags}", *map(_version, _OTHERS)]
    folders = [Path(str(sys.modules[name].__file__)).parent for name in _OWN if name in sys.modules]
    lines = (
        _line(path.relative_to(folder.parent).as_posix(), path)
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    )
    return (*versions, *lines)


def own_code(named: Iterable[str]) -> tuple[str, ...]:
    """The same for a user's modules that this process has imported: of each `package.module:name`,
    those of its package, and those that lie beside its file. Of objects given in place of names,
    what travelled to workers, and the modules that it may need."""
    lines, names = list[str](), list[str]()
    for name in named:
        if is_given(name):
            lines += code_line()
            names += own_modules()
        else:
            names.append(name.partition(":")[0])
    return tuple(dict.fromkeys([*lines, *_own_files(names)]))


def _own_files(names: Iterable[str]) -> list[str]:
    """A line for each file of these modules, of their packages, and beside them."""
    modules = [sys.modules[name] for name in names if _module_file(name)]
    if not modules:
        return []
    folders = {os.path.dirname(str(module.__file__)) for module in modules}
    roots = {module.__name__.partition(".")[0] for module in modules}
    # no `Path` of each: a notebook has thousands of modules, which would take a tenth of a second
    paths = {
        Path(file)
        for name in list(sys.modules)
        if (file := _module_file(name)).endswith(_SOURCE)
        and (name.partition(".")[0] in roots or os.path.dirname(file) in folders)
    }
    return [_line(str(path), path) for path in sorted(paths)]


def difference(ours: Sequence[str], theirs: Sequence[str], *, common: bool = False) -> str | None:
    """The first thing of which two processes have different versions; None where they agree.

    Args:
        common: what only one of them has is no difference.
    """
    one, other = _table(ours), _table(theirs)
    for name in [*one, *(name for name in other if name not in one)]:
        if one.get(name) != other.get(name) and not (
            common and (one.keys() ^ other.keys()) & {name}
        ):
            return (
                f"{name} is {one.get(name, 'not there')} here, {other.get(name, 'not there')} there"
            )
    return None


def difference_between_hosts(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """The same of two machines, where packages lie elsewhere: of Python and our own files, without
    which there is no understanding each other."""
    one, other = (
        [line for line in lines if line.partition(" ")[0] not in _OTHERS]
        for lines in (_code(ours), _code(theirs))
    )
    return difference(one, other)


def unlike(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Of what may round otherwise: versions of packages, and what `facts` say of the hardware."""
    one, other = (
        {name: what.partition(":")[0] for name, _, what in (line.partition(" ") for line in lines)}
        for lines in (ours, theirs)
    )
    names = (name for name in one if name in (*_OTHERS, *_HARDWARE) and name in other)
    return [
        f"{name} is {other[name] or 'unknown'}, elsewhere {one[name] or 'unknown'}"
        for name in names
        if one[name] != other[name]
    ]


def _code(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.partition(" ")[0] not in _HARDWARE]


def changed_files(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The files of two lists, as `own_code` gives them, that are in both and are not the same;
    given objects, which a network's weights make others each time, are none."""
    one, other = _table(before), _table(now)
    both = (name for name in one if name in other and name.endswith(_SOURCE))
    return [name for name in both if one[name] != other[name]]


def _table(lines: Iterable[str]) -> dict[str, str]:
    return {name: what for name, _, what in (line.rpartition(" ") for line in lines)}


def _version(package: str) -> str:
    spec = find_spec(package)
    try:
        number = version(package)
    except PackageNotFoundError:
        number = "of-no-version"
    return f"{package} {number}:{spec.origin if spec else None}"


def _line(name: str, path: Path) -> str:
    try:
        return f"{name} {sha256(path.read_bytes()).hexdigest()[:_DIGITS]}"
    except OSError as error:
        return f"{name} {error.strerror or 'unreadable'}"


def _module_file(name: str) -> str:
    """Of an imported module; empty where it has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file if isinstance(file, str) else ""
