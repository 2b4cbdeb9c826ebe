"""A user's objects as bytes, for processes that this one starts. The only file that imports
cloudpickle, and only the process that starts others makes such bytes (invariant 10).

What a worker would import from the same file as this process travels by its name. All the rest
travels by value: what `__main__`, a notebook or a test module defines, which no worker could
import, or only by running the user's script once more.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import cache
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import ConfigError, one_line
from pipeline.system.interpreter import (
    current_folder,
    has_installed,
    inside,
    look_here_last,
    module_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_OURS = frozenset({"pipeline", "launch", "__main__", "__mp_main__"})
"""Packages that every process has; and modules that cloudpickle takes by value anyway."""


class Modules(NamedTuple):
    """The user's modules that a process has imported, by their outermost names: those that workers
    find where other modules are, or in the current folder, or not at all."""

    found: tuple[str, ...] = ()
    here: tuple[str, ...] = ()
    by_value: tuple[str, ...] = ()


def packed(what: str, objects: Any, modules: Modules) -> bytes:
    """The bytes of a user's objects.

    Args:
        what: names them in an error.
        modules: those of this process.

    Raises:
        ConfigError: where they can't travel: a lock, an open file, a generator is in them.
    """
    import cloudpickle

    try:
        with _travelling_by_value(modules.by_value):
            inner = cloudpickle.dumps(objects)
    except Exception as error:  # whatever a user's object raises
        raise ConfigError(
            f"{what}: can't be sent to worker processes: {one_line(error)}; leave out what is held "
            "of this process (files, locks, threads), or train without stages"
        ) from error
    return bytes(cloudpickle.dumps((tuple(modules), inner)))


def packed_modules(data: bytes | memoryview) -> Modules:
    """The modules that `packed` was given."""
    import cloudpickle

    return Modules(*cloudpickle.loads(data)[0])


def unpacked(data: bytes | memoryview) -> Any:
    """The objects that `packed` was given.

    Raises:
        ConfigError: for what importing or rebuilding them raises.
    """
    import cloudpickle

    modules, inner = cloudpickle.loads(data)
    for module in Modules(*modules).here:
        look_here_last(module)
    try:
        return cloudpickle.loads(inner)
    except Exception as error:
        raise ConfigError(f"can't be rebuilt in a worker process: {one_line(error)}") from error


def users_modules() -> Modules:
    """Those of this process."""
    found, here, by_value = list[str](), list[str](), list[str]()
    path = module_path()
    for name, file in _files():
        if _leads_to(name, path, file):
            found.append(name)
        elif _leads_to(name, [current_folder() or ""], file):
            here.append(name)
        else:
            by_value.append(name)
    return Modules(tuple(found), tuple(here), tuple(by_value))


def _files() -> Iterator[tuple[str, str]]:
    """Outermost names and a file of each, where neither Python nor an installer has put it."""
    places = {*sys.path, os.path.dirname(os.__file__)}
    installed = tuple(map(inside, filter(has_installed, places)))
    files: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            files.setdefault(name.partition(".")[0], file)
    for name, file in files.items():
        if name not in _OURS and not _true_path(file).startswith(installed):
            yield name, file


@cache
def _true_path(file: str) -> str:
    """Kept: a process may have hundreds of packages, and train many times."""
    return os.path.realpath(file)


def _leads_to(name: str, path: list[str], file: str) -> bool:
    """Whether the module of a name is found in `path`, and is this file."""
    spec = PathFinder.find_spec(name, path)
    origin = spec.origin if spec else None
    return origin is not None and os.path.realpath(origin) == os.path.realpath(file)


@contextmanager
def _travelling_by_value(names: Iterable[str]) -> Iterator[None]:
    import cloudpickle

    before = set(cloudpickle.list_registry_pickle_by_value())
    new = [name for name in names if name in sys.modules and name not in before]
    for name in new:
        cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        yield
    finally:
        for name in new:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])
