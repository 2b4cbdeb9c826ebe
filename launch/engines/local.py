"""Workers on this machine, forked by a process that has imported torch and never touched CUDA."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from socket import MSG_DONTWAIT, socketpair
from time import monotonic
from typing import TYPE_CHECKING

from launch.display.streams import settle_output, tolerate_streams, wait_for_no_reader
from launch.engines.fork_messages import (
    Broken,
    Ended,
    Failed,
    Imported,
    Start,
    Started,
    read_answer,
    start_line,
)
from launch.engines.interrupts import INTERRUPTIONS
from launch.machine.gpus import devices
from pipeline.coordinator.engine import End
from pipeline.errors import SINGLE, ConfigError
from pipeline.planning.hosts import Place, this_machine
from pipeline.signals import signals_held
from pipeline.system.interpreter import (
    current_folder,
    module_path,
    python_command,
    python_environment,
)
from pipeline.system.limits import with_cure
from pipeline.system.sources import running_code
from pipeline.transport.sockets import make_keys, new_socket_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from socket import socket

    from launch.engines.fork_messages import Answer
    from pipeline.coordinator.engine import Invite
    from pipeline.planning.hosts import Host, Wanted
    from pipeline.planning.plan import Plan
    from pipeline.protocol.credentials import Invitation, KeyPair
    from pipeline.run.events import Detail, Note

_LEAVE_S = 5.0  # a worker that has said bye gets so long to exit by itself
_KILLED_S = 5.0
_LOOK_S = 0.01
_WAKE_EVERY_S = 1.0
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that a process gets from others; the rest come of what it did itself."""


class ForkServerClient:
    """The launcher's end of the fork server. No call waits for it: it may be busy, or stopped.

    Args:
        packed: a user's objects for its workers (`Given.packed`). They lie in memory that
            has no name and that only this process and its children can open, in one copy for all.
    """

    def __init__(self, packed: bytes | memoryview = b"") -> None:
        self._packed = packed
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket | None = None
        self._unsent = self._unread = b""
        self._woken_at = 0.0
        self.generation = 0
        """Changes when one takes the place of another."""
        self.folder = new_socket_folder()
        """What it removes, should this process be killed."""

    def run(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socketpair()
        with theirs, signals_held(*INTERRUPTIONS), _in_memory(self._packed) as packed:
            numbers = (theirs.fileno(), packed)
            command = python_command(
                "launch.engines.fork_server", *numbers, os.getpid(), str(self.folder)
            )
            self._process = subprocess.Popen(
                command,
                env=python_environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=[number for number in numbers if number >= 0],
            )
        self._link = ours

    def ask(self, start: Start) -> None:
        """To fork a worker, as soon as it can."""
        self._unsent += start_line(start)
        self._send()

    def _send(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            while self._unsent and self._link is not None:
                self._unsent = self._unsent[self._link.send(self._unsent, MSG_DONTWAIT) :]

    def answers(self) -> list[Answer]:
        """What it has said meanwhile."""
        if self._link is None:
            return []
        self._send()
        with suppress(BlockingIOError, ConnectionError):
            while data := self._link.recv(1 << 16, MSG_DONTWAIT):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        return [read_answer(line) for line in lines]

    def wake(self) -> None:
        """It is awaited; where somebody has stopped it, it goes on."""
        if self._process is not None and monotonic() > self._woken_at + _WAKE_EVERY_S:
            self._woken_at = monotonic()
            self._process.send_signal(signal.SIGCONT)

    def how_it_ended(self) -> str | None:
        """None while it runs."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else f"the process that starts workers {_how(code)}"

    def close(self) -> None:
        """End it; its workers end with it. A process that waits for a device or a file system
        may not end even so: it is named, and left to itself."""
        if self._process is not None:
            self._process.kill()
            try:
                self._process.wait(_KILLED_S)
            except subprocess.TimeoutExpired:
                print(
                    f"process {self._process.pid}, which starts workers, was killed and has not "
                    f"ended within {_KILLED_S:g} s: what it waits for does not answer; it ends, "
                    "with its workers, once that does",
                    file=sys.stderr,
                )
        if self._link is not None:
            self._link.close()
        self._process = self._link = None
        self._unsent = self._unread = b""
        self.generation += 1


@dataclass(slots=True)
class _Worker:
    """A process that was asked for; `pid` is known once it was forked."""

    number: int
    generation: int
    pid: int | None = None
    failure: Failed | Broken | None = None
    end: End | None = None


class ForkedWorkers:
    """Worker processes of this host, by stage.

    Args:
        start: asks for the process of (its number, stage, attempt).
    """

    def __init__(self, server: ForkServerClient, start: Callable[[int, int, int], None]) -> None:
        self._server, self._start = server, start
        self._workers: dict[int, _Worker] = {}
        self._asked_for = 0

    def dead(self) -> dict[int, End]:
        self._look()
        return {stage: worker.end for stage, worker in self._workers.items() if worker.end}

    def replace(self, stage: int, attempt: int) -> None:
        """Start a stage's process, in place of one that is there."""
        self._look()
        before = self._workers.get(stage)
        if before is not None:
            if before.pid is None and before.end is None:
                self._server.close()  # it hangs, or what it imports does
            self._end(before)
        self._workers[stage] = self._asked(stage, attempt)

    def wake(self, stage: int) -> None:
        worker = self._workers.get(stage)
        if worker is not None and worker.end is None and worker.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)

    def leave(self) -> None:
        self._join(_LEAVE_S)

    def stop(self) -> None:
        """End whatever still runs, a stopped (SIGSTOP) process included.

        Killing is clean: workers leave nothing behind that the kernel does not free.
        """
        self._look()
        if any(worker.pid is None and worker.end is None for worker in self._workers.values()):
            self._server.close()  # some are still to be forked; all that were end with it
        for worker in self._workers.values():
            self._end(worker)
        self._join(_KILLED_S)

    def _asked(self, stage: int, attempt: int) -> _Worker:
        self._asked_for += 1
        try:
            self._start(self._asked_for, stage, attempt)
        except OSError as error:  # of the fork server
            why = f"can't be started: {with_cure(error)}"
            return _Worker(self._asked_for, 0, end=End(why, comes_back=True))
        return _Worker(self._asked_for, self._server.generation)

    def _end(self, worker: _Worker) -> None:
        if worker.end is None and worker.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    def _join(self, timeout_s: float) -> None:
        until = monotonic() + timeout_s
        while len(self.dead()) < len(self._workers) and monotonic() < until:
            time.sleep(_LOOK_S)

    def _look(self) -> None:
        """Take in what the fork server says; where it is gone, so are its workers."""
        how = self._server.how_it_ended()  # first: what it said before its end is still read
        for answer in self._server.answers():
            self._take(answer)
        for worker in [worker for worker in self._workers.values() if worker.end is None]:
            if how is not None or worker.generation != self._server.generation:
                self._end(worker)
                worker.end = _end_of(worker, how or "the process that starts workers was replaced")
            elif worker.pid is None:
                self._server.wake()

    def _take(self, answer: Answer) -> None:
        if isinstance(answer, Imported):
            return
        for worker in self._workers.values():
            if isinstance(answer, Broken):
                worker.failure = answer
            elif worker.number != answer.worker:
                continue
            elif isinstance(answer, Started):
                worker.pid = answer.pid
            elif isinstance(answer, Failed):
                worker.failure = answer
            else:
                worker.end = _end_of(worker, _how(answer.code), answer)


class LocalWorkers(ForkedWorkers):
    """Those of a run on this machine alone, as `coordinator.engine.Workers` describes.

    Args:
        places: of the stages.
    """

    def __init__(
        self,
        server: ForkServerClient,
        start: Callable[[int, int, int], None],
        places: Sequence[Place],
    ) -> None:
        super().__init__(server, start)
        self._places = places

    def home(self, stage: int) -> Place:
        return self._places[stage]

    def waiting(self) -> dict[int, str]:
        return {}  # the processes of one machine share what there is

    def news(self) -> list[Note | Detail]:
        return []


class LocalEngine:
    """Starts workers through a fork server of its own.

    Args:
        packed: as for `ForkServerClient`.
    """

    def __init__(self, packed: bytes | memoryview = b"") -> None:
        self._server = ForkServerClient(packed)

    def warm_up(self) -> None:
        """Start the fork server; it imports torch while this process does other things.

        Raises:
            ConfigError: on a system that has none.
        """
        if sys.platform != "linux":
            raise ConfigError(f"workers need Linux, this is {sys.platform}; use ", SINGLE)
        running_code()  # what this process has imported, before other files can take their place
        self._server.run()

    @property
    def socket_folder(self) -> Path:
        return self._server.folder

    @property
    def address(self) -> None:
        return None

    def hosts(self, wanted: Wanted) -> tuple[Host, ...]:
        return (this_machine(devices(wanted.gpus)),)

    def start(self, plan: Plan, invite: Invite) -> LocalWorkers:
        """One process per stage; if one can't be started, none is left."""
        keys = make_keys()
        host = replace(this_machine(()), key=keys.public if keys else None)

        def start_one(number: int, stage: int, attempt: int) -> None:
            invitation = invite(stage, attempt, host.key)
            self.warm_up()  # the fork server may have been killed, too
            here, path = current_folder(), module_path()
            self._server.ask(fork_request(number, invitation, keys, here, path))

        places = [Place(host, stage.device) for stage in plan.stages]
        workers = LocalWorkers(self._server, start_one, places)
        try:
            for stage in plan.stages:
                workers.replace(stage.stage, 0)
        except BaseException:
            workers.stop()
            raise
        return workers

    def close(self) -> None:
        self._server.close()


def fork_request(
    number: int,
    invitation: Invitation,
    keys: KeyPair | None,
    here: str | None,
    path: Sequence[str],
) -> Start:
    """What a fork server is asked for.

    Args:
        here: the folder that the process works in, where a user's modules may lie.
        path: where other modules are looked for.
    """
    target = f"{_work.__module__}:{_work.__qualname__}"
    its_keys = keys if invitation.coordinator else None
    return Start(number, target, invitation, here, tuple(path), its_keys)


def _work(invitation: Invitation, keys: KeyPair | None, launcher_gone: Callable[[], bool]) -> int:
    from pipeline.worker.process import run_worker  # torch: only the fork server may pay for it

    tolerate_streams()  # what a user's own modules print
    wait_for_no_reader()
    status = run_worker(invitation, keys, launcher_gone)
    settle_output()
    return status


@contextmanager
def _in_memory(data: bytes | memoryview) -> Iterator[int]:
    """The descriptor of a file in memory that holds `data`; -1 where there are none."""
    if not data:
        yield -1
        return
    with os.fdopen(os.memfd_create("pipeline"), "wb") as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def _end_of(worker: _Worker, how: str, ended: Ended | None = None) -> End:
    if worker.failure is not None:
        why = f"can't be started: {worker.failure.why}"
        return End(why, comes_back=True, traceback=worker.failure.traceback)
    if ended is None:
        return End(f"is gone: {how}", silent=True)
    itself = ended.code > 0 or (ended.code < 0 and -ended.code not in _FROM_OUTSIDE)
    return End(how, silent=ended.code < 0, comes_back=itself)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    known = -code in set(signal.Signals)
    return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
