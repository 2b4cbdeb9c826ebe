"""Commands of ours in processes of their own, so many at once, in order; they show nothing.

The first signal ends all of them, those that train with checkpoints; so does the end of this
process, however it comes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from launch.command import FAILED, complaint_in
from launch.engines.interrupts import INTERRUPTED
from pipeline.errors import one_line
from pipeline.system.children import end_with_parent
from pipeline.system.interpreter import python_command, python_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

Key = TypeVar("Key", bound="Hashable")
"""What tells the tasks of a command apart."""
_ASKED_TO_END = (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
"""Exit statuses: a signal may come before a process can take it in order."""


@dataclass(frozen=True, slots=True)
class Ended(Generic[Key]):
    """A task whose process has ended: its exit status, what it printed, why it failed, and how long
    it took."""

    task: Key
    status: int
    said: str
    why: str
    wall_s: float

    @property
    def was_interrupted(self) -> bool:
        """Whether it was asked to end; what was killed for want of memory, or crashed, was not."""
        return self.status in _ASKED_TO_END


def main(parent: int, command: str, module: str, *words: str) -> None:
    """The process of a task: a command with these words; it ends with its parent."""
    end_with_parent(parent)
    sys.argv = [command, *words]  # of which its provenance tells
    import_module(module).main(list(words))


def carry_out(
    next_one: Callable[[bool], tuple[Key, Sequence[str]] | None],
    ended: Callable[[Ended[Key]], None],
    jobs: int,
) -> bool:
    """Carry out tasks until there is none left; whether none was interrupted.

    Args:
        next_one: gives the next task that can be begun, and the words of its command: the command's
            name, its module, and what follows; None: none can, for now. It is told whether others
            are at work.
        ended: is told of each that has ended; again, if that was interrupted.

    Raises:
        KeyboardInterrupt: where it was interrupted twice.
    """
    children: dict[Key, subprocess.Popen[str]] = {}
    done: SimpleQueue[Ended[Key]] = SimpleQueue()
    untold: Ended[Key] | None = None
    is_ending = False
    try:
        while True:
            while len(children) < jobs and (found := next_one(bool(children))):
                _begin(*found, children, done)
            if not children and done.empty():
                return True
            untold = done.get()
            _tell(untold, children, ended)
            untold = None
    except KeyboardInterrupt:
        is_ending = True
        for child in children.values():
            with suppress(ProcessLookupError):
                child.terminate()
        if untold is not None:  # the interruption has come while it was told
            _tell(untold, children, ended)
        while children:
            one = done.get()
            if one.status:  # a signal in the midst of an import comes out as any error
                one = replace(one, status=INTERRUPTED)
            _tell(one, children, ended)
        return False
    finally:
        if children:  # interrupted twice, or told of something that nobody could take
            for child in children.values():
                child.kill() if is_ending else child.terminate()
            while children:
                children.pop(done.get().task, None)


def _begin(
    task: Key,
    words: Sequence[str],
    children: dict[Key, subprocess.Popen[str]],
    done: SimpleQueue[Ended[Key]],
) -> None:
    began = time.monotonic()
    try:
        child = subprocess.Popen(
            python_command(__name__, os.getpid(), *words),
            env=python_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:  # no memory, too many processes
        done.put(Ended(task, FAILED, "", one_line(error), 0.0))
        return
    children[task] = child
    Thread(target=_wait, args=(task, child, began, done), daemon=True).start()


def _wait(
    task: Key, child: subprocess.Popen[str], began: float, done: SimpleQueue[Ended[Key]]
) -> None:
    said, complaints = child.communicate()
    why = complaint_in(complaints, child.returncode) if child.returncode else ""
    done.put(Ended(task, child.returncode, said, why, time.monotonic() - began))


def _tell(
    one: Ended[Key],
    children: dict[Key, subprocess.Popen[str]],
    ended: Callable[[Ended[Key]], None],
) -> None:
    try:
        ended(one)
    finally:
        children.pop(one.task, None)
