"""Children that nobody else would end: those that a user's code starts in this process, and this
one, should its parent be gone. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOKS, _LOOK_S = 50, 0.002
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_HARMLESS = "resource_tracker"
"""multiprocessing's own helper, which ends with the process that it serves."""


def end_with_parent(parent: int) -> None:
    """From now on the kernel kills this process, a stopped one too, when its parent is gone.

    Args:
        parent: which process that should be; it may be gone already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def no_process_left() -> Iterator[None]:
    """No child of this process that is started in here may live on; a copy of it ends here.

    Raises:
        ConfigError: naming what was left, which is ended.
    """
    own = os.getpid()
    before = set(children_of(own))
    yield
    if os.getpid() != own:  # a fork that came back from the call, too
        os._exit(1)
    left = {pid: _command(pid) for pid in set(children_of(own)) - before}
    left = {pid: command for pid, command in left.items() if command and _HARMLESS not in command}
    for pid in left:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if left:
        pid, command = min(left.items())
        raise ConfigError(
            f"leaves a process running ({pid}: {command[:80]}), and every process of a run would; "
            "it is to end what it starts before it returns"
        )


def children_of(process: int) -> list[int]:
    """What any thread of a process has started, and has not been waited for; none of a process that
    is gone, nor where the kernel does not list them."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):  # at every call of a user's: no paths
            with (
                suppress(OSError),
                open(f"/proc/{process}/task/{thread}/children", "rb", 0) as file,
            ):
                found += map(int, file.read().split())
    return found


def _command(pid: int) -> str:
    """Empty for what has ended, and for nothing else: the line of a process that has just become
    another program is there a moment later, and it may have none at all."""
    with suppress(OSError):
        for _ in range(_LOOKS):
            line = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
            if line.strip("\0 ") or _has_ended(pid):
                return line.replace("\0", " ").strip()
            sleep(_LOOK_S)
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip() or str(pid)
    return ""


def _has_ended(pid: int) -> bool:
    """Whether only its exit status is left of it."""
    state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    return state in "ZX"
