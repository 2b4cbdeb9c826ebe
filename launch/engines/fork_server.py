"""The process that starts workers. It imports torch once, never touches CUDA, and forks a worker
whenever it is asked: ten are ready in the time that one import takes, and share its memory.

    launcher ─▶ fork server ─▶ workers

Nobody outlives the one before it: the kernel ends a worker whose fork server is gone, a stopped
one too; a fork server whose launcher is gone, which the kernel wakes for that if it is stopped,
ends its workers, and removes the folder of their sockets. What a worker's own children leave
behind falls to the fork server, which ends it, too.
"""

from __future__ import annotations

import ctypes
import gc
import os
import selectors
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from mmap import PROT_READ, mmap
from socket import socket
from typing import TYPE_CHECKING, Any, NoReturn

from launch.engines.fork_messages import (
    Broken,
    Ended,
    Failed,
    Imported,
    Started,
    answer_line,
    read_answer,
    read_start,
)
from pipeline.system.children import children_of, end_with_parent
from pipeline.system.limits import cure_of, with_cure

if TYPE_CHECKING:
    from launch.engines.fork_messages import Answer, Start

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of <sys/prctl.h>
_LOOK_S = 1.0
"""How often it looks whether the launcher lives, whose socket a process of the user's may hold."""
_ATOMIC = 4096
"""PIPE_BUF: writes of so many bytes by several processes do not mix."""


def main(descriptor: int, packed: int, launcher: int, folder: str) -> None:
    """The whole process.

    Args:
        descriptor: of its end of the socket to the launcher.
        packed: of the memory with a user's objects for the workers; -1: there are none.
        launcher: process id.
        folder: of the workers' sockets; the launcher may be killed before it has told anything.
    """
    # when the launcher dies; ignored but by a stopped one
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    link = socket(fileno=descriptor)
    link.set_inheritable(False)
    server = ForkServer(link, launcher, folder)
    try:
        try:
            _import_what_workers_need(packed)
        except (Exception, SystemExit) as error:  # the process boundary; MemoryError, ImportError …
            with suppress(OSError):
                link.sendall(answer_line(Broken(_named(error), _traceback(error))))
        else:
            server.serve()
    finally:
        server.end_all()


def _import_what_workers_need(packed: int) -> None:
    """Whatever the garbage collector tracks by then is set aside: a collection in a worker would
    write to every object that it visits, and so copy the memory that the workers share."""
    import pipeline.worker.process  # noqa: F401 - for the sake of having been imported
    from pipeline.system.given import inherit
    from pipeline.system.sources import running_code

    if packed >= 0:
        inherit(memoryview(mmap(packed, 0, prot=PROT_READ)))
        os.close(packed)
    running_code()  # what was imported, not what may take its place while the run goes on
    gc.collect()
    gc.freeze()


class ForkServer:
    """Forks on request, and tells of each child that it has started and how it has ended."""

    def __init__(self, link: socket, launcher: int, folder: str) -> None:
        self._link, self._launcher, self._folder = link, launcher, folder
        self._workers: dict[int, int] = {}
        """Numbers by process id."""
        self._unread = b""
        self._words, self._word = os.pipe()
        self._alarm, self._bell = os.pipe()
        self._selector = selectors.DefaultSelector()
        for source in (link.fileno(), self._words, self._alarm):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the launcher has closed its end, or is gone."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        os.set_blocking(self._bell, False)
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        # it must have a handler to wake up the selector
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._say(Imported())
        while os.getppid() == self._launcher:
            ready = {key.fd for key, _ in self._selector.select(_LOOK_S)}
            if self._alarm in ready:
                os.read(self._alarm, _ATOMIC)
            if self._words in ready:
                self._pass_on()
            self._reap()
            if self._link.fileno() in ready and not self._heed():
                return

    def end_all(self) -> None:
        """Kill all children, those that workers have left behind included; clean up."""
        signal.set_wakeup_fd(-1)
        for _ in range(100):  # a child may have children of its own, which then fall to this one
            children = children_of(os.getpid()) or list(self._workers)
            if not children:
                break
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            for child in children:
                with suppress(ChildProcessError):
                    os.waitpid(child, 0)
                self._workers.pop(child, None)
        if os.getppid() != self._launcher:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _heed(self) -> bool:
        """Requests that have come; false where there will be no other."""
        try:
            data = self._link.recv(1 << 16)
        except ConnectionError:
            return False
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._fork(read_start(line))
        return bool(data)

    def _fork(self, start: Start) -> None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._say(Failed(start.worker, with_cure(error), ""))
            self._say(Ended(start.worker, 1))
            return
        if not pid:
            self._become(start, server)
        self._workers[pid] = start.worker
        self._say(Started(start.worker, pid))

    def _become(self, start: Start, server: int) -> NoReturn:
        """In the child: be that worker, for as long as the process `server` lives."""
        code = 1
        try:
            end_with_parent(server)
            self._close()
            code = _work(start, self._launcher, server, self._folder)
        except BaseException as error:  # the process boundary: told as data
            why, trace = _named(error)[:500], _traceback(error)
            while len(line := answer_line(Failed(start.worker, why, trace))) > _ATOMIC:
                trace = trace[len(trace) // 4 + 1 :]
            os.write(self._word, line)
        finally:
            try:
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
            finally:  # whatever a user's own stream raises: there may be no second fork server,
                os._exit(code)  # which would end its siblings and remove their folder

    def _close(self) -> None:
        """In the child: what belongs to the fork server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self._link.close()
        for descriptor in (self._words, self._alarm, self._bell):
            os.close(descriptor)

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # there is none
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid in self._workers:
                    self._pass_on()  # its last words come before its end
                    worker = self._workers.pop(pid)
                    self._say(Ended(worker, os.waitstatus_to_exitcode(status)))

    def _pass_on(self) -> None:
        while any(key.fd == self._words for key, _ in self._selector.select(0)):
            for line in os.read(self._words, 1 << 16).splitlines():
                self._say(read_answer(line))

    def _say(self, answer: Answer) -> None:
        with suppress(ConnectionError):  # the launcher is gone, which is found out anyway
            self._link.sendall(answer_line(answer))


def _work(start: Start, launcher: int, server: int, folder: str) -> int:
    if start.here is not None:
        with suppress(OSError):  # it was deleted meanwhile
            os.chdir(start.here)
    sys.path[:] = start.path
    os.environ.update(start.environment)
    module, _, name = start.target.partition(":")

    def forsaken() -> bool:
        if os.getppid() == server:
            return False
        with suppress(ProcessLookupError):
            os.kill(launcher, 0)
            return True  # the launcher will start others
        shutil.rmtree(folder, ignore_errors=True)
        return True

    work: Any = getattr(import_module(module), name)
    return int(work(start.invitation, start.keys, forsaken))


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def _named(error: BaseException) -> str:
    return with_cure(error) if isinstance(error, Exception) else repr(error)


def _traceback(error: BaseException) -> str:
    """For who looks for a bug; empty where it is none."""
    bug = cure_of(error) is None
    return "".join(traceback.format_exception(error))[-20_000:] if bug else ""
