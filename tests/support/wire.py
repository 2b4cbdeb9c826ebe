"""A wire between two ends of a TCP connection: it keeps what goes over it, can cut it, and change
a bit."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Thread


class Wire:
    """Listens at `endpoint`, and passes on to `target` and back what comes.

    Args:
        cuts: of the first connections: after so many bytes from the one who connects, nothing goes
            on, and both ends are hung up on.
        flip_at: the byte of the first connection that arrives otherwise than it was sent.
    """

    def __init__(self, target: str, cuts: list[int] | None = None, flip_at: int = -1) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target, self._cuts, self._flip_at = (host, int(port)), cuts or [], flip_at
        self._listener = socket.create_server((host, 0))
        self.endpoint = f"tcp://{host}:{self._listener.getsockname()[1]}"
        self.sent: list[bytearray] = []
        """By connection, what the one who connects has said."""
        self._open: list[socket.socket] = []
        self._threads = [Thread(target=self._accept_all, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Cut all, and end."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in [self._listener, *self._open]:
            one.close()

    def cut(self) -> None:
        """Hang up on those who are connected."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept_all(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            number = len(self.sent)
            self.sent.append(bytearray())
            for way in ((near, far, number), (far, near, None)):
                self._threads.append(Thread(target=self._pass_on, args=way, daemon=True))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, target: socket.socket, number: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data if number is None else self._let_through(number, data))
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _let_through(self, number: int, data: bytes) -> bytes:
        passed, changed = self.sent[number], bytearray(data)
        at = self._flip_at - len(passed)
        if number == 0 and 0 <= at < len(data):
            changed[at] ^= 1
        left = self._cuts[number] - len(passed) if number < len(self._cuts) else len(data)
        passed += data[: max(0, left)]
        if left <= len(data) and number < len(self._cuts):
            self._open[2 * number].shutdown(socket.SHUT_RD)  # after what still goes on
        return bytes(changed[: max(0, left)])
