"""Where a number came from: command, machine, versions, commit. Every result begins with it.

python -m launch.provenance COMMAND     prints it, for a result that has none yet
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from launch.gpus import gpu_names

_PACKAGES = ("local-loss-pipeline", "torch", "pyzmq", "numpy")
_CPUINFO = Path("/proc/cpuinfo")


def provenance(command: str) -> dict[str, Any]:
    """Command, machine, versions and commit of a measurement that begins now.

    `commit` is empty where the program does not run from a clone: the version says what it is.
    """
    return {
        "command": command,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": list(gpu_names()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        **_commit(),
    }


def _processor() -> str:
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
