"""The downstream end of a stream: takes batches into the slots of a ring, by a thread.

listener ──▶ visitors, who have to prove themselves ──▶ the one connection ──▶ slots
             32 at most, for 5 s each                   a newer one takes its place
"""

from __future__ import annotations

import secrets
import selectors
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Thread
from time import monotonic
from typing import TYPE_CHECKING

from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import STREAM_SECRET_BYTES, StreamAddress
from pipeline.protocol.messages import TensorSpec
from pipeline.transport.payloads import slot_parts
from pipeline.transport.seal import BrokenSealError, Sealed, Unsealed
from pipeline.transport.stream_format import (
    CLAIM_BYTES,
    HEADER_BYTES,
    BatchHeader,
    connection_key,
    cut,
    is_claim,
    make_greeting,
    make_welcome,
    piece_number,
)
from pipeline.transport.tcp_port import endpoint_at
from pipeline.transport.timeout import POLL_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.protocol.messages import Header
    from pipeline.transport.rejections import Rejections
    from pipeline.transport.seal import Seal
    from pipeline.transport.shared_memory import Ring
    from pipeline.transport.tcp_port import Where

MOST_VISITORS = 32
"""That may be in the middle of proving themselves; others wait in the kernel."""
GREETING_S = 5.0
"""Twice what one lost packet takes."""
_CLOSING_S = 2.0
_RECEIVE_TIMEOUT = struct.pack("ll", 0, int(POLL_S * 1e6))  # struct timeval


@dataclass(slots=True, eq=False)
class _Visitor:
    socket: socket.socket
    address: str
    until: float
    """When its time is over."""
    greeting: bytes = field(default_factory=make_greeting)
    claim: bytes = b""


@dataclass(frozen=True, slots=True)
class _Connection:
    socket: socket.socket
    address: str
    seal: Seal


class _ReplacedError(Exception):
    """The sender has opened another connection, `by`."""

    def __init__(self, by: _Connection) -> None:
        self.by = by


class _Door:
    """Listens, and lets in who proves to know the secret.

    Args:
        welcome: called for who has: the first batch that is missing.
        sealed: whether what comes in by it is.
    """

    def __init__(
        self,
        where: Where,
        secret: bytes,
        welcome: Callable[[], int],
        rejections: Rejections,
        *,
        sealed: bool,
    ) -> None:
        """Raises as `Where.bound`."""
        self._secret, self._sealed = secret, sealed
        self._welcome, self._rejections = welcome, rejections
        self._visitors: set[_Visitor] = set()
        self._listener, self._claim = where.bound()
        self._listener.listen(MOST_VISITORS)
        self.endpoint = endpoint_at(where.host, self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._listen()

    def look(self, timeout_s: float) -> _Connection | None:
        """See to whoever comes by; the connection of who was let in."""
        entered = None
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            elif (proven := self._hear(key.data)) is not None:
                if entered is not None:
                    entered.socket.close()
                entered = proven
        now = monotonic()
        for late in [visitor for visitor in self._visitors if visitor.until < now]:
            self._turn_away(late, "it did not greet in time as the stage before does")
        return entered

    def wake(self) -> None:
        """Let `look` return, in whatever thread; nobody comes in any more."""
        with suppress(OSError):  # so it did before
            self._listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up on whoever is at the door."""
        for visitor in self._visitors:
            visitor.socket.close()
        self._selector.close()
        self._listener.close()
        if self._claim:
            self._claim.close()

    def _listen(self) -> None:
        if self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        try:
            came, address = self._listener.accept()
        except OSError:  # it has left, or there is no descriptor for it
            return
        visitor = _Visitor(came, str(address[0]), monotonic() + GREETING_S)
        came.setblocking(False)
        try:
            came.send(visitor.greeting)
        except OSError:
            came.close()
            return
        self._visitors.add(visitor)
        self._selector.register(came, selectors.EVENT_READ, visitor)
        if len(self._visitors) == MOST_VISITORS:
            self._selector.unregister(self._listener)

    def _hear(self, visitor: _Visitor) -> _Connection | None:
        try:
            said = visitor.socket.recv(CLAIM_BYTES - len(visitor.claim))
        except OSError:
            said = b""
        visitor.claim += said
        if not said:  # as somebody who only looks whether there is a port
            self._forget(visitor)
            visitor.socket.close()
        elif len(visitor.claim) == CLAIM_BYTES:
            if is_claim(self._secret, visitor.greeting, visitor.claim):
                return self._let_in(visitor)
            self._turn_away(visitor, "it does not know the secret of this link")
        return None

    def _let_in(self, visitor: _Visitor) -> _Connection | None:
        made, said = visitor.socket, (self._secret, visitor.greeting, visitor.claim)
        self._forget(visitor)
        try:
            made.send(make_welcome(*said, self._welcome()))
            made.setblocking(True)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)
        except OSError:
            made.close()
            return None
        seal = Sealed(connection_key(*said)) if self._sealed else Unsealed()
        return _Connection(made, visitor.address, seal)

    def _turn_away(self, visitor: _Visitor, why: str) -> None:
        self._rejections.reject(visitor.address, why)
        self._forget(visitor)
        visitor.socket.close()

    def _forget(self, visitor: _Visitor) -> None:
        self._visitors.discard(visitor)
        self._selector.unregister(visitor.socket)
        self._listen()


class StreamReceiver:
    """The receiver's end of a stream, which fills slots of `ring` that were granted.

    Args:
        where: the link listens; the stream gets a port of its own there.
        sealed: whether its bytes are; else they are as safe as the network.
    """

    def __init__(self, where: Where, ring: Ring, rejections: Rejections, *, sealed: bool) -> None:
        """Raises as `Where.bound`."""
        self._ring, self._rejections = ring, rejections
        secret = secrets.token_bytes(STREAM_SECRET_BYTES)
        self._door = _Door(where, secret, self._missing, rejections, sealed=sealed)
        self.address = StreamAddress(self._door.endpoint, secret, sealed)
        self._changed = Condition()
        self._granted: set[int] = set()
        self._arrived: deque[BatchHeader] = deque()
        self._next, self._closed = 0, False
        self._error: Exception | None = None
        self._connection: _Connection | None = None
        self._thread = Thread(target=self._receive_all, name="stream", daemon=True)
        self._thread.start()

    def grant(self, slot: int) -> None:
        """From now on a batch may come into a slot."""
        with self._changed:
            self._granted.add(slot)

    def take(self, header: Header) -> bool:
        """Whether the batch of the next header has come, whole, into its slot.

        Raises:
            ProtocolError: where it is another than was promised.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if not self._arrived:
                return False
            came = self._arrived.popleft()
        promised = header.slot, tuple(spec.nbytes for spec in header.tensors)
        if (came.slot, came.sizes) != promised:
            raise ProtocolError(
                f"header promises tensors of {[*promised[1]]} bytes in slot {header.slot}, the "
                f"stream brought {[*came.sizes]} in slot {came.slot}"
            )
        return True

    def wait(self, timeout_s: float) -> None:
        """Returns when another batch has come, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._arrived or self._error), timeout_s)

    def close(self) -> None:
        """Close port and connection."""
        with self._changed:
            self._closed, connection = True, self._connection
        self._door.wake()
        if connection is not None:
            with suppress(OSError):  # it is broken already
                connection.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_CLOSING_S)

    def _missing(self) -> int:
        # the memory first: a page that can't be had when it is first touched ends the process
        try:
            self._ring.take()
        except OSError as error:
            self._rejections.tell(
                f"nobody is let in by a stream, whose slots find no memory: {error}"
            )
            raise
        return self._next

    def _receive_all(self) -> None:
        """Take in batches until it is closed, over one connection after the other."""
        try:
            while not self._closed:
                if self._connection is None:
                    self._go_on_with(self._door.look(POLL_S))
                    continue
                try:
                    self._receive_from(self._connection)
                except _ReplacedError as error:
                    self._go_on_with(error.by)
                except BrokenSealError as error:
                    self._rejections.reject(self._connection.address, str(error))
                    self._go_on_with(None)
                except OSError:  # it will be opened again, unless the sender has ended
                    self._go_on_with(None)
        except Exception as error:  # for the thread that receives
            with self._changed:
                self._error = error
                self._changed.notify()
        finally:
            self._go_on_with(None)
            self._door.close()

    def _go_on_with(self, connection: _Connection | None) -> None:
        with self._changed:
            before, self._connection = self._connection, connection
            if connection is not None and self._closed:
                self._connection = None
                connection.socket.close()
        if before is not None:
            before.socket.close()

    def _receive_from(self, connection: _Connection) -> None:
        """Take in one batch: its header, then its tensors into the slot that it names."""
        take, sequence = partial(connection.seal.take, partial(self._fill, connection)), self._next
        data = memoryview(bytearray(HEADER_BYTES))
        take(data, piece_number(sequence, 0), b"")
        header, bound_to, piece = BatchHeader.unpack(data), bytes(data), 0
        for part in self._parts(header):
            for target in cut(part):
                piece += 1
                take(target, piece_number(sequence, piece), bound_to)
        with self._changed:
            self._granted.discard(header.slot)
            self._arrived.append(header)
            self._next += 1
            self._changed.notify()
        self._look_at_the_door()

    def _parts(self, header: BatchHeader) -> list[memoryview]:
        """Where the tensors of a batch go.

        Raises:
            ProtocolError: where the sender may not send it, or not there.
        """
        if header.sequence != self._next:
            raise ProtocolError(f"batch {header.sequence} came, batch {self._next} is missing")
        with self._changed:
            if header.slot not in self._granted:
                raise ProtocolError(f"slot {header.slot} was not granted")
        specs = [TensorSpec("uint8", (size,)) for size in header.sizes]
        return slot_parts(self._ring.slot(header.slot), specs)

    def _fill(self, connection: _Connection, target: memoryview) -> None:
        filled = 0
        while filled < target.nbytes:
            try:
                came = connection.socket.recv_into(target[filled:], 0, socket.MSG_WAITALL)
            except BlockingIOError:  # nothing came for a while
                self._look_at_the_door()
                continue
            if not came:
                raise ConnectionResetError("it hung up")
            filled += came

    def _look_at_the_door(self) -> None:
        entered = self._door.look(0.0)
        if entered is not None:
            raise _ReplacedError(entered)
