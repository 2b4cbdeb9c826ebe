"""Provenance of a result: command, machine, versions, commit. Every kept result begins with it, and
every run has it for each command that trained a part of it.

python -m launch.machine.provenance COMMAND     prints it, for a result that has none yet
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from socket import gethostname
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
_ROOT = Path(__file__).resolve().parents[2]
"""Of a clone, where this program runs from one."""
_OF_ITS_OWN = re.compile(rf'^name = "{_PACKAGES[0]}"$', re.MULTILINE)
_GIT_S = 5.0
"""Longest time that git may take, on a disk that is slow."""
_NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "command": str, "processor": str, "cores": (int, NoneType), "versions": dict, "commit": str,
    "uncommitted_changes": bool,
}  # fmt: skip
"""Type of each field that a report reads; `gpus` may be missing."""


def provenance(command: str) -> dict[str, Any]:
    """Command, machine, versions and commit of a measurement that begins now.

    `commit` is this program's; empty where it does not run from a clone of its own repository: the
    version says what it is. Nothing of the environment is in it, which may hold secrets.
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
    return f"{_PACKAGES[0]} {_release_of_this()}"


def release() -> str:
    """As `program`, without its name, and PyTorch's version: `0.1.0 (commit 66a1c21), torch
    2.9.1`; nothing of it is imported."""
    return f"{_release_of_this()}, torch {_version('torch')}"


def _release_of_this() -> str:
    known = _commit()
    changed = "+" if known["uncommitted_changes"] else ""
    of = f" (commit {known['commit']}{changed})" if known["commit"] else ""
    return f"{_version(_PACKAGES[0])}{of}"


def is_provenance(tree: Any) -> bool:
    """Whether a value that was read has the form of what `provenance` gives."""
    if not isinstance(tree, dict):
        return False
    gpus = tree.get("gpus", [])
    named = isinstance(gpus, list) and all(isinstance(name, str) for name in gpus)
    return named and all(isinstance(tree.get(key, ...), kind) for key, kind in _NEEDED.items())


def start_of(command: str, step: int) -> dict[str, Any]:
    """Provenance of a command that begins to train now, after so many steps of its run."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"time": now, "host": gethostname(), "after_step": step, **provenance(command)}


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
    commit, changed = _found_commit(_ROOT)
    return {"commit": commit, "uncommitted_changes": changed}


@cache  # the code that runs was loaded before
def _found_commit(root: Path) -> tuple[str, bool]:
    """Commit, and whether there are changes to it; empty where no clone of this program's own
    repository lies there. An installed copy may lie in another's, or be a part of it."""
    if not ((root / ".git").exists() and _is_own(root) and _git(root, "ls-files", "launch")):
        return "", False
    commit = _git(root, "rev-parse", "--short", "HEAD")
    return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))


def _is_own(root: Path) -> bool:
    try:
        return bool(_OF_ITS_OWN.search((root / "pyproject.toml").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _git(root: Path, *words: str) -> str:
    # variables of git's may name another repository, as within its hooks
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
            env={**own, "GIT_OPTIONAL_LOCKS": "0"},
            timeout=_GIT_S,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):  # no git here, or no answer
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    print(json.dumps([provenance(" ".join(sys.argv[1:]))], indent=1))
