"""The process around a worker: its heartbeat, and its errors as data.

The heartbeat has a thread and a socket of its own, so that it goes on while the worker computes.
"""

from __future__ import annotations

import os
import time
import traceback
from threading import Event, Thread, get_ident
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, NonFiniteLossError
from pipeline.protocol.messages import Failure, Heartbeat
from pipeline.system.limits import cure_of, with_cure
from pipeline.transport.zmq_control import ZmqControlClient
from pipeline.transport.zmq_endpoints import ZmqEndpoints
from pipeline.worker.heartbeat import Activity
from pipeline.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.protocol.credentials import Invitation
    from pipeline.transport.sockets import Sockets

HEARTBEAT_INTERVAL_S = 0.5


def run_worker(invitation: Invitation, launcher_gone: Callable[[], bool]) -> int:
    """The whole process of a stage: 0 after a stop marker, 1 after an error, which is reported."""
    endpoints, activity = ZmqEndpoints(invitation), Activity()
    control = ZmqControlClient(endpoints.sockets, invitation)
    heart = Heart(endpoints.sockets, invitation, activity, launcher_gone)
    heart.start()
    worker = Worker(invitation, control, endpoints, activity)
    try:
        worker.live()
    except Exception as error:  # the process boundary: errors cross it as data
        control.send(failure_of(error, worker))
        return 1
    finally:
        heart.stop()
        endpoints.sockets.close()
    return 0


class Heart(Thread):
    """Says that the process lives; ends it where nobody is left to care.

    It is made in the thread whose processor time it tells.
    """

    def __init__(
        self,
        sockets: Sockets,
        invitation: Invitation,
        activity: Activity,
        launcher_gone: Callable[[], bool],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._sockets, self._invitation, self._activity = sockets, invitation, activity
        self._launcher_gone, self._done = launcher_gone, Event()
        self._cpu_clock = time.pthread_getcpuclockid(get_ident())

    def run(self) -> None:
        """Thread body."""
        socket = ZmqControlClient(self._sockets, self._invitation, "heartbeat")
        activity = self._activity
        while not self._done.is_set():
            if self._launcher_gone():
                os._exit(1)  # the main thread may hang; the kernel frees the ring
            cpu_s = time.clock_gettime(self._cpu_clock)
            socket.send(Heartbeat(activity.handled, activity.batch_id, activity.phase, cpu_s))
            self._done.wait(HEARTBEAT_INTERVAL_S)
        socket.close()

    def stop(self) -> None:
        """Returns when it has ended."""
        self._done.set()
        self.join()


def failure_of(error: Exception, worker: Worker) -> Failure:
    """What the coordinator is told of an error that ends a worker."""
    runner = worker.runner
    block = runner.stage.at_work if runner else None
    batch_id = runner.at_batch if runner else 0
    spoilt = isinstance(error, NonFiniteLossError)
    misused = isinstance(error, ConfigError)
    explained = spoilt or misused or cure_of(error) is not None
    if isinstance(error, NonFiniteLossError):
        block, batch_id = error.block, error.batch_id
    return Failure(
        summary=_sendable(with_cure(error)),
        block=block,
        batch_id=batch_id,
        traceback="" if explained else _sendable("".join(traceback.format_exception(error))),
        final=spoilt and worker.on_nonfinite == "stop",
        attempt=worker.attempt,
        nonfinite=spoilt and worker.on_nonfinite == "rollback",
        misused=misused,
    )


def _sendable(text: str) -> str:
    """The end of it, as UTF-8 can carry it: names of files need not be."""
    return text[-20_000:].encode(errors="replace").decode()
