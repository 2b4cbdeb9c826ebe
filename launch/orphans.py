"""What becomes of processes whose launcher is gone, however it went. Linux only.

The fork server is killed by the kernel with its launcher. Workers are its children: each is sent
SIGCONT, so that one which was stopped goes on, finds that nobody is left (`workerprocess.Heart`),
removes the folder of sockets and ends.
"""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent() -> None:
    """For the fork server."""
    _on_the_parents_death(signal.SIGKILL)


def wake_when_orphaned() -> None:
    """For a worker."""
    _on_the_parents_death(signal.SIGCONT)


def _on_the_parents_death(number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number.value)
