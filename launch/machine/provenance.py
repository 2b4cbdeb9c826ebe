"""Provenance of a result: command, machine, versions, commit. Every kept result begins with it.

python -m launch.machine.provenance COMMAND     prints it, for a result that has none yet
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from launch.machine.gpus import gpu_names
from pipeline.device.host import processor_fact
from pipeline.errors import ConfigError
from pipeline.storage.atomic import replace_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.storage.folder import Folder

PROVENANCE_FILE = "provenance.json"
"""In a run directory: a list, one for every command that trained a part of the run."""
_PACKAGES = ("local-loss-pipeline", "torch", "pyzmq", "numpy")
_NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "command": str, "processor": str, "cores": (int, NoneType), "versions": dict, "commit": str,
    "uncommitted_changes": bool,
}  # fmt: skip
"""Type of each field that a report reads; `gpus` may be missing."""


def provenance(command: str) -> dict[str, Any]:
    """Command, machine, versions and commit of a measurement that begins now.

    `commit` is empty where the program does not run from a clone: the version says what it is.
    """
    return {
        "command": command,
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpus": list(gpu_names()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        **_commit(),
    }


def program() -> str:
    """This program in few words: version, and commit where it runs from a clone."""
    known = _commit()
    changed = "+" if known["uncommitted_changes"] else ""
    of = f" (commit {known['commit']}{changed})" if known["commit"] else ""
    return f"{_PACKAGES[0]} {_version(_PACKAGES[0])}{of}"


def is_provenance(tree: Any) -> bool:
    """Whether a value that was read has the form of what `provenance` gives."""
    if not isinstance(tree, dict):
        return False
    gpus = tree.get("gpus", [])
    named = isinstance(gpus, list) and all(isinstance(name, str) for name in gpus)
    return named and all(isinstance(tree.get(key, ...), kind) for key, kind in _NEEDED.items())


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Provenance of every command that trained in a run directory.

    Raises:
        ConfigError: where the file is damaged.
    """
    path = folder / PROVENANCE_FILE
    if not path.exists():
        return []
    try:
        starts: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(starts, list) or not all(map(is_provenance, starts)):
        raise _damaged(path, "python -m launch.machine.provenance COMMAND prints what it should be")
    return starts


def write_starts(folder: Folder, starts: list[dict[str, Any]]) -> None:
    """Write who has trained in a run directory; the caller holds its lock."""
    replace_in(folder, PROVENANCE_FILE, (json.dumps(starts, indent=1) + "\n").encode())


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path}: is no list of provenances: {why}; repair it, or move it away: where the run "
        "was trained then counts as not recorded"
    )


def processor() -> str:
    """Name of the processor, with family and model: makers give many the same name."""
    name, family, model = map(processor_fact, ("model name", "cpu family", "model"))
    if not name:
        return platform.processor() or platform.machine()
    return f"{name}, family {family}, model {model}" if family and model else name


def _version(package: str) -> str:
    """Empty where it runs from a clone that was not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> dict[str, Any]:
    """Of the repository that tracks this package: an installed copy may lie in another's."""
    if not _git("ls-files", "__init__.py"):
        return {"commit": "", "uncommitted_changes": False}
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except OSError:  # no git here
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    print(json.dumps([provenance(" ".join(sys.argv[1:]))], indent=1))
