"""The upstream end of a stream: sends batches into the slots of the next stage, by a thread.

A batch is kept until its slot is granted again, so where the connection breaks it is opened again
and goes on with the first batch that is missing there.
"""

from __future__ import annotations

import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Condition, Thread
from typing import TYPE_CHECKING

from pipeline.errors import ProtocolError
from pipeline.transport.payloads import Writer
from pipeline.transport.seal import Sealed, Unsealed, why_no_seal
from pipeline.transport.stream_format import (
    GREETING_BYTES,
    WELCOME_BYTES,
    BatchHeader,
    connection_key,
    cut,
    make_claim,
    piece_number,
    read_welcome,
)
from pipeline.transport.tcp_port import connected
from pipeline.transport.timeout import POLL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.protocol.addresses import StreamAddress
    from pipeline.transport.payloads import Payload
    from pipeline.transport.seal import Seal

_OPENING_S = 5.0
"""For each step of opening a connection: a lost packet is sent again within one second or two."""
_UNANSWERED_S = 10.0
"""Bytes that the other machine has not acknowledged for so long end a connection: a new one is
there sooner than the old one, once a cable is back, since its pauses have grown meanwhile."""
_PAUSES_S = 0.1, 1.0
"""Before the connection is opened again, growing from the first to the second."""
_CLOSING_S = 2.0


@dataclass(frozen=True, slots=True)
class _Connection:
    socket: socket.socket
    seal: Seal
    missing: int
    """The first batch to send."""


@dataclass(frozen=True, slots=True)
class _Batch:
    header: BatchHeader
    tensors: tuple[memoryview, ...]


class StreamWriter(Writer):
    """The sender's end of a stream.

    Args:
        tell: hears, for people, that the stream broke and goes on.
    """

    way = "stream"

    def __init__(self, address: StreamAddress, tell: Callable[[str], None]) -> None:
        """Raises OSError where the stream can't be opened."""
        if address.sealed and (why := why_no_seal()):
            raise OSError(why)
        self._address, self._tell = address, tell
        self._changed = Condition()
        self._kept: deque[_Batch] = deque()
        """Whose slots have not been granted again."""
        self._written, self._closed = 0, False
        self._error: ProtocolError | None = None
        self._connection: _Connection | None = _opened(address)
        self._thread = Thread(target=self._send_all, name="stream", daemon=True)
        self._thread.start()

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Begin to send the payloads into a slot; no frames follow the header."""
        tensors = tuple(payload.view() for payload in payloads)
        header = BatchHeader(self._written, index, tuple(view.nbytes for view in tensors))
        with self._changed:
            self._written += 1
            self._kept.append(_Batch(header, tensors))
            self._changed.notify()
        return []

    def free(self, index: int) -> None:
        """Forget the batch that was in a slot: it has arrived, and been used."""
        with self._changed:
            self._kept = deque(batch for batch in self._kept if batch.header.slot != index)

    def check(self) -> None:
        """Raises ProtocolError where the other end has said what it may not."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the connection; what has not arrived is lost."""
        with self._changed:
            self._closed = True
            self._kept.clear()
            connection = self._connection
            self._changed.notify()
        if connection is not None:
            with suppress(OSError):  # it is broken already
                connection.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_CLOSING_S)

    def _send_all(self) -> None:
        """Send what is given, and again over a new connection where one breaks."""
        why = ""
        while (connection := self._open_again()) is not None:
            if why:  # else the process at its other end was lost, which others tell of
                self._tell(f"broke and was opened again: {why}")
            try:
                self._send_over(connection)
            except OSError as error:
                why = error.strerror or str(error)
            except ProtocolError as error:
                self._error = error
                self._closed = True
            finally:
                connection.socket.close()
                self._connection = None

    def _open_again(self) -> _Connection | None:
        """The open connection, or a new one; None where it is closed for good."""
        pause_s, longest_s = _PAUSES_S
        while not self._closed:
            if self._connection is not None:
                return self._connection
            try:
                opened = _opened(self._address)
            except OSError:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, pause_s)
                pause_s = min(2 * pause_s, longest_s)
                continue
            with self._changed:
                self._connection = opened
        if self._connection is not None:  # it was closed meanwhile
            self._connection.socket.close()
        return None

    def _send_over(self, connection: _Connection) -> None:
        if connection.missing > self._written:
            raise ProtocolError(
                f"the next stage waits for batch {connection.missing} of this link, of which "
                f"{self._written} were sent"
            )
        sequence = connection.missing
        while (batch := self._next(connection, sequence)) is not None:
            _send(connection, batch)
            sequence += 1

    def _next(self, connection: _Connection, sequence: int) -> _Batch | None:
        """The batch of that number, once there is one; None where the stream is closed."""

        def is_there() -> bool:
            return self._closed or bool(self._kept and self._kept[-1].header.sequence >= sequence)

        with self._changed:
            while not self._changed.wait_for(is_there, POLL_S):
                _check_open(connection.socket)
            if self._closed:
                return None
            return next(b for b in self._kept if b.header.sequence == sequence)


def _opened(address: StreamAddress) -> _Connection:
    """Raises OSError where nobody answers in time, or not as the next stage."""
    made = connected(address.endpoint, _OPENING_S)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = _received(made, GREETING_BYTES)
        claim = make_claim(address.secret, greeting)
        made.sendall(claim)
        missing = read_welcome(address.secret, greeting, claim, _received(made, WELCOME_BYTES))
        key = connection_key(address.secret, greeting, claim)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_UNANSWERED_S * 1e3))
        made.settimeout(None)  # the system ends it
    except (OSError, ProtocolError) as error:
        made.close()
        raise OSError(f"{address.endpoint}: {error}") from None
    return _Connection(made, Sealed(key) if address.sealed else Unsealed(), missing)


def _received(connection: socket.socket, nbytes: int) -> bytes:
    got = b""
    while len(got) < nbytes:
        more = connection.recv(nbytes - len(got))
        if not more:
            raise ConnectionResetError("it hung up")
        got += more
    return got


def _send(connection: _Connection, batch: _Batch) -> None:
    header, sequence = batch.header.pack(), batch.header.sequence
    put, piece = partial(connection.seal.put, connection.socket.sendall), 0
    put(memoryview(header), piece_number(sequence, 0), b"")
    for tensor in batch.tensors:
        for data in cut(tensor):
            piece += 1
            put(data, piece_number(sequence, piece), header)


def _check_open(connection: socket.socket) -> None:
    """Raises OSError where the other end has closed it, or says what nobody asked for."""
    try:
        said = connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return
    raise ConnectionResetError("it speaks" if said else "it hung up")
