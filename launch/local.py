"""Workers on this machine, from a forkserver that has imported torch and never touched CUDA.

Ten workers are ready in the time that one import of torch takes, and share its memory.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from contextlib import contextmanager
from multiprocessing import forkserver
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

_LEAVE_S = 5.0  # a worker that has said bye gets so long to exit by itself
_TERMINATE_S = 2.0


class LocalWorkers:
    """Worker processes of this machine."""

    def __init__(self, processes: list[ForkServerProcess]) -> None:
        self._processes = processes

    def dead(self) -> dict[int, str]:
        """Stages whose process has ended, each with how."""
        codes = {stage: process.exitcode for stage, process in enumerate(self._processes)}
        return {stage: _how(code) for stage, code in codes.items() if code is not None}

    def pids(self) -> list[int | None]:
        """Process ids, by stage."""
        return [process.pid for process in self._processes]

    def leave(self) -> None:
        """Wait for workers that have said bye."""
        self._join(_LEAVE_S)

    def stop(self) -> None:
        """End whatever still runs, a stopped (SIGSTOP) process included."""
        for process in self._alive():
            process.terminate()
        self._join(_TERMINATE_S)
        for process in self._alive():
            process.kill()
        self._join(_TERMINATE_S)

    def _alive(self) -> list[ForkServerProcess]:
        return [process for process in self._processes if process.exitcode is None]

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
        """Start the forkserver; it imports torch while this process does other things."""
        with _interrupts_ignored():
            forkserver.ensure_running()

    def start(self, stages: int, run: str, folder: Path, control_endpoint: str) -> LocalWorkers:
        """One process per stage."""
        self.warm_up()
        processes = [
            self._context.Process(
                target=_work,
                args=(stage, run, str(folder), control_endpoint),
                name=f"stage-{stage}",
            )
            for stage in range(stages)
        ]
        for process in processes:
            process.start()
        return LocalWorkers(processes)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C reaches the whole terminal: only the launcher may act on it. A process started in
    here ignores it from its first instruction on, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(stage: int, run: str, folder: str, control_endpoint: str) -> None:
    from pipeline.worker import run_worker  # torch: only the forkserver may pay for it

    def launcher_gone() -> bool:
        launcher = multiprocessing.parent_process()
        if launcher is None or launcher.is_alive():
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True

    raise SystemExit(run_worker(stage, run, control_endpoint, launcher_gone))


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
