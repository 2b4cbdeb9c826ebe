"""A command's answer, and the most memory that it and all processes that it starts take at once.

A page that several processes share counts in parts (the kernel's proportional set size), so that
shared memory between stages counts once. Looked at ten times a second.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from benchmarks.lib.contenders import ROOT
from launch.command import complaint_in

_EVERY_S = 0.1


class Watched(NamedTuple):
    """What a module printed, or why it `failed`; the peak of its memory."""

    said: str
    failed: str
    peak_bytes: int


def watched(words: list[str], timeout_s: float) -> Watched:
    """Runs a module with its words, from the root of this clone."""
    child = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    peak, ended = [0], Event()

    def look() -> None:
        while not ended.wait(_EVERY_S):
            peak[0] = max(peak[0], sum(map(_bytes_of, family(child.pid))))

    watching = Thread(target=look, daemon=True)
    watching.start()
    try:
        said, complaints = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Watched("", f"not done after {timeout_s:g} s", peak[0])
    finally:
        ended.set()
        watching.join()
        if child.poll() is None:
            for pid in reversed(family(child.pid)):
                subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)
            child.wait()
    failed = complaint_in(complaints, child.returncode) if child.returncode else ""
    return Watched(said, failed, peak[0])


def family(pid: int) -> list[int]:
    """A process and all that it, and those that it started, have started."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for thread in Path(f"/proc/{one}/task").glob("*"):
            with suppress(OSError):
                children = (thread / "children").read_text(encoding="ascii")
                waiting += map(int, children.split())
    return found


def _bytes_of(pid: int) -> int:
    """Proportional set size; 0 of a process that has ended."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
