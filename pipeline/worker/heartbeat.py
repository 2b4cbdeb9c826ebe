"""What a worker is doing, and the thread that reports it in heartbeats.

The heartbeat has a thread and a socket of its own, so that it goes on while the worker computes.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread, get_ident
from typing import TYPE_CHECKING

from pipeline.protocol.messages import Heartbeat
from pipeline.transport.zmq_control import ZmqControlClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.protocol.credentials import Invitation
    from pipeline.transport.sockets import Sockets

HEARTBEAT_INTERVAL_S = 0.5


@dataclass(slots=True)
class Activity:
    """What the worker is doing; written by its main thread, read by the heartbeat's.

    `doing`, of `ACTIVITIES`: starting; waiting (for input); working; blocked (the next stage has
    no room, or what was sent last has not arrived).
    """

    handled: int = 0
    batch_id: int = 0
    doing: str = "starting"

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Do this for a while, then what was done before."""
        before, self.doing = self.doing, doing
        try:
            yield
        finally:
            self.doing = before


class HeartbeatThread(Thread):
    """Says that the process lives; ends it where the launcher is gone.

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
        """Tell the coordinator that this process lives, until done or the launcher is gone."""
        socket = ZmqControlClient(self._sockets, self._invitation, "heartbeat")
        activity = self._activity
        while not self._done.is_set():
            if self._launcher_gone():
                os._exit(1)  # the main thread may hang; the kernel frees the ring
            cpu_s = time.clock_gettime(self._cpu_clock)
            socket.send(Heartbeat(activity.handled, activity.batch_id, activity.doing, cpu_s))
            self._done.wait(HEARTBEAT_INTERVAL_S)
        socket.close()

    def stop(self) -> None:
        """Returns when it has ended."""
        self._done.set()
        self.join()
