"""A user's own code on its way to other hosts, which have no such files: the modules that planning
has imported, as an archive, and objects as `system.given` packs them.

Modules lie on a host as they lay here: those of the current folder are found there last, by those
who may (`interpreter.look_here_last`); those of PYTHONPATH wherever others look for modules.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

from pipeline.system.interpreter import current_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HERE, ON_PATH = "here", "path"
"""Folders of the archive."""


@dataclass(frozen=True, slots=True)
class UsersCode:
    """`packed`: as of `given.Given`; `modules`: the archive; both may be empty."""

    packed: bytes | memoryview = field(default=b"", repr=False)
    modules: bytes = field(default=b"", repr=False)


def users_code(own_code: Iterable[str], packed: bytes | memoryview) -> UsersCode:
    """What a run needs elsewhere.

    Args:
        own_code: as `sources.own_code` gave it when the run was planned.
    """
    files = {line.rpartition(" ")[0] for line in own_code}
    found = list(_modules(files))
    if not found:
        return UsersCode(packed)
    archive = BytesIO()
    with ZipFile(archive, "w") as zipped:
        for place, file in found:
            zipped.write(file, place)
    return UsersCode(packed, archive.getvalue())


def _modules(files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Where each of these files goes, and the file."""
    here, wanted = current_folder(), set(files)
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or file not in wanted or name == "__main__":
            continue
        inner = name.replace(".", "/") + ("/__init__.py" if hasattr(module, "__path__") else ".py")
        root = Path(os.path.realpath(file)).parents[inner.count("/")]
        is_here = here is not None and root == Path(os.path.realpath(here))
        yield f"{HERE if is_here else ON_PATH}/{inner}", file


def unpack(modules: bytes, folder: Path) -> None:
    """Lay an archive out in a new folder, which only its owner can enter."""
    folder.mkdir(mode=0o700)
    for part in (HERE, ON_PATH):
        (folder / part).mkdir()
    with ZipFile(BytesIO(modules)) as zipped:
        zipped.extractall(folder)
