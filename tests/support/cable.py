"""A cable with a rate, a delay and a loss between an imitated host and its switch, in user space:
for kernels without `sch_netem`.

    host: eth0 (tap) ⇄ this process ⇄ portK (tap): the switch

Each way has a queue of at most 50 ms, as a switch has; what does not fit is dropped.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000  # of <sched.h>
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000  # of <linux/if_tun.h>
_FRAME_BYTES = 1 << 16
_AT_ONCE = 64
_QUEUE_S = 0.05
_LOOK_S = 1.0


@dataclass(frozen=True)
class Cable:
    """What it does to each way: `bits_per_s`, 0: as fast as can be; `delay_s`; `loss`: the share of
    frames that get lost, drawn by `seed`."""

    bits_per_s: float = 0.0
    delay_s: float = 0.0
    loss: float = 0.0
    seed: int = 1

    def laid(self, host: int, switch: int, port: str) -> subprocess.Popen[bytes]:
        """The process that it is, between the network namespaces of two processes."""
        given = (host, switch, port, self.bits_per_s, self.delay_s, self.loss, self.seed)
        prctl = ctypes.CDLL(None).prctl
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: prctl(1, 9),  # it ends with who has laid it
        )
        assert process.stdout
        assert process.stdout.readline(), "a cable"
        return process


class _Way:
    """One direction."""

    def __init__(self, source: int, target: int, cable: Cable) -> None:
        self.source, self._target, self._cable = source, target, cable
        self._free_at, self._draws = 0.0, random.Random(cable.seed)
        self.due: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(self.source, _FRAME_BYTES)
            except BlockingIOError:
                return
            now = time.monotonic()
            begins = max(now, self._free_at)
            if self._draws.random() < self._cable.loss or begins - now > _QUEUE_S:
                continue
            rate = self._cable.bits_per_s
            self._free_at = begins + (8 * len(frame) / rate if rate else 0.0)
            self.due.append((self._free_at + self._cable.delay_s, frame))

    def give(self) -> None:
        while self.due and self.due[0][0] <= time.monotonic():
            frame = self.due.popleft()[1]
            try:
                os.write(self._target, frame)
            except OSError:  # the device there is down, or its queue is full
                continue


def _tap(pid: int, name: str) -> int:
    """A device in the network namespace of a process, which this one enters."""
    with open(f"/proc/{pid}/ns/net", "rb") as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
    fcntl.ioctl(made, _TUNSETIFF, flags)
    return made


def _main(host: str, switch: str, port: str, *cable: str) -> None:
    rate, delay, loss, seed = cable
    laid = Cable(float(rate), float(delay), float(loss), int(seed))
    inside, outside = _tap(int(host), "eth0"), _tap(int(switch), port)
    ways = {inside: _Way(inside, outside, laid), outside: _Way(outside, inside, laid)}
    print("laid", flush=True)
    while True:
        waits = [way.due[0][0] - time.monotonic() for way in ways.values() if way.due]
        # `select`, not `epoll`: its time-out has microseconds
        ready, _, _ = select.select([*ways], [], [], max(0.0, min([*waits, _LOOK_S])))
        for number in ready:
            ways[number].take()
        for way in ways.values():
            way.give()


if __name__ == "__main__":
    _main(*sys.argv[1:])
