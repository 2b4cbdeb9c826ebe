"""Workers on this machine, from a forkserver that has imported torch and never touched CUDA.

Ten workers are ready in the time that one import of torch takes, and share its memory.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import forkserver, util
from time import monotonic
from typing import TYPE_CHECKING

from launch.interrupts import INTERRUPTIONS
from launch.orphans import prepare_fork_server
from launch.output import settle_output, tolerate_streams, wait_for_no_reader
from pipeline.errors import ConfigError
from pipeline.signals import signals_ignored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from pipeline.invitation import Invitation

_LEAVE_S = 5.0  # a worker that has said bye gets so long to exit by itself
_KILLED_S = 5.0
_FORKSERVER_GONE = 255  # what multiprocessing says of all workers when it can't ask any more
_LONGEST_FOLDER = 60  # the forkserver listens in it, and a socket path has at most 107 bytes


class LocalWorkers:
    """Worker processes of this machine, by stage.

    Args:
        start: gives the started process of (stage, attempt).
    """

    def __init__(self, start: Callable[[int, int], ForkServerProcess]) -> None:
        self._start = start
        self._processes: list[ForkServerProcess] = []

    def dead(self) -> dict[int, str]:
        """Stages whose process has ended, each with how."""
        codes = {stage: process.exitcode for stage, process in enumerate(self._processes)}
        return {stage: _how(code) for stage, code in codes.items() if code is not None}

    def add(self) -> None:
        """One more, of the next stage."""
        self._processes.append(self._start(len(self._processes), 0))

    def replace(self, stage: int, attempt: int) -> None:
        """End the stage's process, if it still runs, and start another for this attempt."""
        _end(self._processes[stage])
        self._processes[stage].join(_KILLED_S)
        # where none can be started now, the old one stays dead: the stage is lost once more
        with suppress(OSError, EOFError):
            self._processes[stage] = self._start(stage, attempt)

    def leave(self) -> None:
        """Wait for workers that have said bye."""
        self._join(_LEAVE_S)

    def stop(self) -> None:
        """End whatever still runs, a stopped (SIGSTOP) process included.

        Killing is clean: workers leave nothing behind that the kernel does not free.
        """
        for process in self._processes:
            _end(process)
        self._join(_KILLED_S)

    def _join(self, timeout_s: float) -> None:
        until = monotonic() + timeout_s
        for process in self._processes:
            process.join(max(0.0, until - monotonic()))


class LocalEngine:
    """Starts workers through multiprocessing's forkserver."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["launch.preload", "launch.local"])

    def warm_up(self) -> None:
        """Start the forkserver; it imports torch while this process does other things.

        Raises:
            ConfigError: on a system that has none.
        """
        if sys.platform != "linux":
            raise ConfigError(f"workers need Linux, this is {sys.platform}; use --single")
        with signals_ignored(*INTERRUPTIONS), _short_folder():
            prepare_fork_server(util.get_temp_dir())
            forkserver.ensure_running()

    def start(self, invitations: Sequence[Invitation], folder: Path) -> LocalWorkers:
        """One process per stage; if one can't be started, none is left."""

        def start_one(stage: int, attempt: int) -> ForkServerProcess:
            self.warm_up()  # the forkserver may have been killed, too
            folders = (str(folder), util.get_temp_dir())
            invitation = replace(invitations[stage], attempt=attempt)
            process = self._context.Process(
                target=_work, args=(invitation, folders), name=f"stage-{stage}"
            )
            process.start()
            return process

        workers = LocalWorkers(start_one)
        try:
            for _ in invitations:
                workers.add()
        except BaseException:
            workers.stop()
            raise
        return workers


@contextmanager
def _short_folder() -> Iterator[None]:
    """Have multiprocessing make its folder where socket paths stay short."""
    before = tempfile.tempdir
    if len(tempfile.gettempdir()) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
    try:
        util.get_temp_dir()
        yield
    finally:
        tempfile.tempdir = before


def _end(process: ForkServerProcess) -> None:
    """Kill it, even where nobody can be asked any more whether it lives."""
    if process.exitcode is None:
        process.kill()
    elif process.exitcode == _FORKSERVER_GONE and process.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _work(invitation: Invitation, folders: tuple[str, ...]) -> None:
    from pipeline.workerprocess import run_worker  # torch: only the forkserver may pay for it

    tolerate_streams()  # what a user's own modules print
    wait_for_no_reader()

    def launcher_gone() -> bool:
        launcher = multiprocessing.parent_process()
        if launcher is None or launcher.is_alive():
            return False
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return True

    status = run_worker(invitation, launcher_gone)
    settle_output()
    raise SystemExit(status)


def _how(code: int) -> str:
    if code == _FORKSERVER_GONE:
        return "ended, or the forkserver that started it did"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
