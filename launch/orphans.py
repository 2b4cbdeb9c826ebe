"""What becomes of processes whose launcher is gone, however it went. Linux only.

A worker that runs finds out by itself (`workerprocess.Heart`), removes the folders and ends. One
that is stopped (SIGSTOP) can't: the kernel tells the fork server, which wakes its workers; where
it has none yet, it removes the folder in which it listens.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_LAUNCHER, _FOLDER = "PIPELINE_LAUNCHER", "PIPELINE_FORKSERVER_FOLDER"


def prepare_fork_server(folder: str) -> None:
    """For the launcher: what the fork server that it starts next must know."""
    os.environ[_LAUNCHER], os.environ[_FOLDER] = str(os.getpid()), folder


def mind_orphans() -> None:
    """For the fork server: be told of the launcher's death, and act. It lives on for as long as
    workers do; one that is still to be started will clean up, too."""
    signal.signal(signal.SIGUSR1, _on_launchers_death)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1.value)
    if os.environ.get(_LAUNCHER) != str(os.getppid()):
        _on_launchers_death()


def _on_launchers_death(*_: Any) -> None:
    children = _children()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGCONT)
    if not children and os.environ.get(_FOLDER):
        shutil.rmtree(os.environ[_FOLDER], ignore_errors=True)


def _children() -> list[int]:
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    except OSError:  # a kernel that does not list them
        return []
    return [int(child) for child in text.split()]
