"""Runs of a sweep at once: each a pipeline-launch in a process of its own, so many at a time.

Their only words are why they failed. The first signal ends all of them, with checkpoints.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import TYPE_CHECKING

from launch.command import FAILED, first_complaint
from launch.engines.interrupts import INTERRUPTED
from launch.launcher import placement
from pipeline.errors import one_line
from pipeline.system.interpreter import python_command, python_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from typing import TypeAlias

    from launch.grid.sweeps import Planned, Sweep

    _Future: TypeAlias = Future[tuple[int, str] | None]


def main(*words: str) -> None:
    """The process of a run: pipeline-launch with these words."""
    from launch.cli import main

    main(list(words))


def train_at_once(
    sweep: Sweep,
    runs: Sequence[Planned],
    folder: Path,
    jobs: int,
    ended: Callable[[Planned, int, str], None],
) -> bool:
    """Train runs in the sweep's folder; whether none was interrupted.

    Args:
        ended: is told of each run that has ended its exit status, and why it failed.

    Raises:
        KeyboardInterrupt: where it was interrupted twice.
    """
    children = _Children(sweep, folder)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(children.train, one): one for one in runs}
        try:
            _tell(as_completed(futures), futures, ended)
        except KeyboardInterrupt:
            children.end()
            _tell(list(futures), futures, ended)
            return False
    return True


def _tell(
    ending: Iterable[_Future], untold: dict[_Future, Planned], ended: Callable[..., None]
) -> None:
    """Tell of each run as it ends, once."""
    for future in ending:
        if found := future.result():
            ended(untold[future], *found)
        del untold[future]


@dataclass(slots=True)
class _Children:
    """The processes at work."""

    sweep: Sweep
    folder: Path
    working: set[subprocess.Popen[str]] = field(default_factory=set)
    ending: Event = field(default_factory=Event)
    lock: Lock = field(default_factory=Lock)

    def train(self, one: Planned) -> tuple[int, str] | None:
        """Exit status of a run's process, and why it failed; None where it was not begun."""
        with self.lock:
            if self.ending.is_set():
                return None
            try:
                child = self._started(one)
            except OSError as error:  # no memory, too many processes
                return FAILED, one_line(error)
            self.working.add(child)
        with child:
            complaints = child.communicate()[1]
        with self.lock:
            self.working.discard(child)
            if self.ending.is_set() and child.returncode:  # perhaps before it could hear the signal
                return INTERRUPTED, ""
        return child.returncode, first_complaint(complaints, child.returncode)

    def end(self) -> None:
        """With a checkpoint each. A terminal has sent Ctrl-C to all of them: both count as one."""
        with self.lock:
            self.ending.set()
            for child in self.working:
                with suppress(ProcessLookupError):
                    child.terminate()

    def _started(self, one: Planned) -> subprocess.Popen[str]:
        return subprocess.Popen(
            python_command(__name__, *self._words(one)),
            env=python_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def _words(self, one: Planned) -> list[str]:
        words = ["--run-dir", str(self.folder / one.run.name), "--view", "quiet"]
        words += ["--resume"] if one.is_begun else []
        words += placement(one.options)
        for override in one.options.overrides:
            words += ["--set", override]
        return [*words, str(self.sweep.config)]
