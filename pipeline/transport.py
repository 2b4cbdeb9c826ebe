"""Links and control over ZeroMQ. The only file that imports zmq.

A link is a pair of DEALER sockets: the receiver binds, the sender connects and opens it, the
receiver grants one credit per slot. Control is a ROUTER at the coordinator and a DEALER per
stage. No call waits for ever. A socket is used by one thread at a time.
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import zmq

from pipeline.carriers import Ring, RingWriter, aligned_copy, slot_parts
from pipeline.codec import decode, encode
from pipeline.errors import CalledOffError, ProtocolError, TimedOutError
from pipeline.links import Arrived, Delivery, LinkStatistics, Said, never
from pipeline.messages import (
    PROTOCOL_VERSION,
    Credit,
    Header,
    LinkAddress,
    OpenLink,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.carriers import Payload
    from pipeline.inband import Item
    from pipeline.messages import Message

Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]

LINGER_MS = 2000
_LOOK_S = 0.2  # how often a waiting end looks whether it is still wanted


class ZmqSender:
    """Upstream end of a link: connects to where the next stage listens."""

    def __init__(
        self,
        context: Context,
        address: LinkAddress,
        run: str,
        *,
        names: tuple[str, str],
        timeout_s: float,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        self._me, self._peer = names
        self._timeout_s, self._cancelled = timeout_s, cancelled
        self._credits: deque[int] = deque()
        self._batches, self._nbytes, self._waited_s = 0, 0, 0.0
        self._writer, self.carrier = _open_ring(address)
        self._socket = _dealer(context)
        self._socket.connect(address.endpoint)
        self._socket.send(encode(OpenLink(run, PROTOCOL_VERSION)))

    def send(self, item: Item, payloads: Sequence[Payload] = ()) -> None:
        """Send in order; a batch first waits for a credit (invariant 4).

        Raises:
            TimedOutError: where none came in time.
            CalledOffError: where the wait was cancelled.
        """
        self._check_wanted()
        specs = tuple(payload.spec for payload in payloads)
        if not payloads:
            self._socket.send(encode(Header(item)))
            return
        slot = self._wait_for_credit()
        frames: list[bytes | memoryview] = []
        if self._writer:
            self._writer.write(slot, payloads)
        else:
            frames = [payload.view() for payload in payloads]
        header = encode(Header(item, specs, slot, framed=not self._writer))
        self._socket.send_multipart([header, *frames], copy=not frames)
        self._batches += 1
        self._nbytes += sum(spec.nbytes for spec in specs)

    def statistics(self) -> LinkStatistics:
        """Counted since the link was opened."""
        return LinkStatistics(self._batches, self._nbytes, self._waited_s)

    def close(self) -> None:
        """Let go; what has been sent still arrives."""
        self._socket.close(linger=LINGER_MS)

    def _wait_for_credit(self) -> int:
        began = monotonic()
        while not self._credits or self._socket.poll(0):
            if self._credits or self._socket.poll(_ms(_LOOK_S)):
                self._take_credit()
                continue
            self._check_wanted()
            if monotonic() - began > self._timeout_s:
                raise TimedOutError(
                    f"{self._me} waited {monotonic() - began:.1f} s for {self._peer} to take a "
                    "batch: it took none"
                )
        self._waited_s += monotonic() - began
        return self._credits.popleft()

    def _check_wanted(self) -> None:
        if self._cancelled():
            raise CalledOffError(f"{self._me} is told to stop sending to {self._peer}")

    def _take_credit(self) -> None:
        message = decode(self._socket.recv())
        if not isinstance(message, Credit):
            raise ProtocolError(f"{self._me}: {self._peer} sent {type(message).__name__} upstream")
        self._credits.append(message.slot)


class ZmqReceiver:
    """Downstream end of a link: listens, makes the ring, grants credits."""

    def __init__(
        self,
        context: Context,
        bind: str,
        run: str,
        *,
        names: tuple[str, str],
        slots: int,
        slot_bytes: int,
    ) -> None:
        self._me, self._peer = names
        self._run, self._slots = run, slots
        self._ring = _make_ring(slots, slot_bytes)
        self._arrived: deque[Delivery] = deque()
        self._batches, self._nbytes, self._waited_s = 0, 0, 0.0
        self._socket = _dealer(context)
        self._socket.bind(bind)
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = LinkAddress(endpoint, self._ring.handle() if self._ring else None)

    @property
    def queued(self) -> int:
        """Items that have arrived and wait to be received."""
        self._drain()
        return len(self._arrived)

    def receive(self, timeout_s: float, called_off: Callable[[], bool] = never) -> Delivery:
        """The next item.

        Raises:
            TimedOutError: where none came in time.
            CalledOffError: where `called_off` says so.
            ProtocolError: where the peer is of another run or says what it may not.
        """
        began = monotonic()
        self._drain()
        while not self._arrived:
            if called_off():
                raise CalledOffError(f"{self._me} is told to stop waiting for {self._peer}")
            left = timeout_s - (monotonic() - began)
            if left <= 0:
                raise TimedOutError(
                    f"{self._me} waited {timeout_s:.1f} s for {self._peer} to send: nothing came"
                )
            self._socket.poll(_ms(min(left, _LOOK_S)))
            self._drain()
        self._waited_s += monotonic() - began
        return self._arrived.popleft()

    def statistics(self) -> LinkStatistics:
        """Counted since the link was opened."""
        return LinkStatistics(self._batches, self._nbytes, self._waited_s)

    def close(self) -> None:
        """Let go of the socket and of the ring's descriptor."""
        self._socket.close(linger=0)
        self._arrived.clear()
        if self._ring:
            self._ring.close()

    def _drain(self) -> None:
        while self._socket.poll(0):
            head, *frames = self._socket.recv_multipart(copy=False)
            message = decode(head.buffer)
            if isinstance(message, OpenLink):
                self._open(message)
            elif isinstance(message, Header):
                self._arrived.append(self._delivery(message, [f.buffer for f in frames]))
            else:
                raise ProtocolError(f"{self._me}: {self._peer} sent {type(message).__name__}")

    def _open(self, message: OpenLink) -> None:
        if (message.run, message.protocol) != (self._run, PROTOCOL_VERSION):
            raise ProtocolError(
                f"{self._me}: link opened by run {message.run} (protocol {message.protocol}), "
                f"this is run {self._run} (protocol {PROTOCOL_VERSION})"
            )
        for slot in range(self._slots):
            self._grant(slot)

    def _grant(self, slot: int) -> None:
        # a sender that has sent its last item may be gone: then nobody needs the credit
        with suppress(zmq.Again):
            self._socket.send(encode(Credit(slot)), zmq.DONTWAIT)

    def _delivery(self, header: Header, frames: list[memoryview]) -> Delivery:
        if header.slot is None:
            return Delivery(header.item, (), _no_credit)
        slot = header.slot
        parts = self._parts(header, slot, frames)
        tensors = tuple(map(Arrived, header.tensors, parts))
        self._batches += 1
        self._nbytes += sum(spec.nbytes for spec in header.tensors)
        return Delivery(header.item, tensors, lambda: self._grant(slot))

    def _parts(self, header: Header, slot: int, frames: list[memoryview]) -> list[memoryview]:
        if self._ring and not header.framed:
            return slot_parts(self._ring.slot(slot), header.tensors)
        sizes = [spec.nbytes for spec in header.tensors]
        if sizes != [frame.nbytes for frame in frames]:
            raise ProtocolError(
                f"{self._me}: header promises tensors of {sizes} bytes, "
                f"frames of {[frame.nbytes for frame in frames]} came"
            )
        return [aligned_copy(frame) for frame in frames]


class ZmqControlClient:
    """A stage's end of control."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        stage: int,
        attempt: int,
        role: str = "stage",
    ) -> None:
        self._stage = stage
        self._socket = _dealer(context)
        self._socket.setsockopt(zmq.IDENTITY, _identity(role, stage, attempt))
        self._socket.connect(endpoint)

    def send(self, message: Message, attached: Sequence[bytes | memoryview] = ()) -> None:
        """To the coordinator."""
        self._socket.send_multipart([encode(message), *attached], copy=not attached)

    @property
    def waiting(self) -> bool:
        """Whether the coordinator has said something that was not received yet."""
        return bool(self._socket.poll(0))

    def receive(self, timeout_s: float) -> Said:
        """From the coordinator.

        Raises:
            TimedOutError: where nothing came in time.
        """
        if not self._socket.poll(_ms(timeout_s)):
            raise TimedOutError(
                f"stage {self._stage} waited {timeout_s:.1f} s for the coordinator: it said nothing"
            )
        head, *attached = self._socket.recv_multipart(copy=False)
        return Said(self._stage, decode(head.buffer), tuple(f.buffer for f in attached))

    def close(self) -> None:
        """Let go; what has been said is still delivered."""
        self._socket.close(linger=LINGER_MS)


class ZmqControlServer:
    """The coordinator's end of control."""

    def __init__(self, context: Context, bind: str) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(bind)
        self._attempts: dict[int, int] = {}
        self.rejected = 0

    def expect(self, stage: int, attempt: int) -> None:
        """From now on the process started for `attempt` speaks for the stage, and no other."""
        self._attempts[stage] = attempt

    def send(
        self, stage: int, message: Message, attached: Sequence[bytes | memoryview] = ()
    ) -> None:
        """To one stage, which must have said hello."""
        identity = _identity("stage", stage, self._attempts.get(stage, 0))
        frames = [identity, encode(message), *attached]
        try:
            self._socket.send_multipart(frames, copy=not attached)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # the worker has just died: whoever watches the processes will say so

    def receive(self, timeout_s: float) -> Said | None:
        """What any stage said, None after `timeout_s` of silence. Strangers, and workers that
        have been replaced, are only counted."""
        while self._socket.poll(_ms(timeout_s)):
            identity, *frames = self._socket.recv_multipart(copy=False)
            known = re.fullmatch(rb"(?:stage|heartbeat)-(\d{1,4})-(\d{1,6})", identity.bytes)
            if known and frames and int(known[2]) == self._attempts.get(int(known[1]), 0):
                attached = tuple(frame.buffer for frame in frames[1:])
                return Said(int(known[1]), decode(frames[0].buffer), attached)
            self.rejected += 1
        return None

    def close(self) -> None:
        """Let go."""
        self._socket.close(linger=LINGER_MS)


def make_context() -> Context:
    """The ZeroMQ context of this process."""
    return zmq.Context()


def close_context(context: Context) -> None:
    """Close every socket, giving what was sent a moment to leave."""
    context.destroy(linger=LINGER_MS)


def _identity(role: str, stage: int, attempt: int) -> bytes:
    return f"{role}-{stage}-{attempt}".encode()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _dealer(context: Context) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.set_hwm(0)  # credits bound what is in flight; high-water marks are approximate
    return socket


def _make_ring(slots: int, slot_bytes: int) -> Ring | None:
    try:
        return Ring(slots, slot_bytes)
    except (OSError, AttributeError):  # no memfd on this system: tensors travel as frames
        return None


def _open_ring(address: LinkAddress) -> tuple[RingWriter | None, str]:
    if address.ring is None:
        return None, "frames (the next stage has no shared memory)"
    try:
        return RingWriter(address.ring), "shared memory"
    except OSError as error:
        return None, f"frames ({error})"


def _no_credit() -> None:
    """Markers use up no credit."""
