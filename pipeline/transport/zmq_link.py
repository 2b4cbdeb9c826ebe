"""Links over ZeroMQ.

The receiver listens, admits the one key that the coordinator names, and makes a secret identity for
its one sender, which learns it, with the address, from the coordinator: messages under another
identity are rejected. The sender opens the link, the receiver grants one credit per slot, and says
when all has arrived to the stop marker: a socket that is closed before may lose what it still
holds. Every wait has a time-out. A socket is used by one thread at a time.

Over `tcp` the receiver also offers a stream (`stream_receiver.py`): by it the bytes of tensors come
where its memory is out of reach, and their headers here. Where it is not needed its port is closed
when the link is opened.
"""

from __future__ import annotations

import secrets
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from pipeline.errors import CalledOffError, ProtocolError, TimedOutError
from pipeline.protocol.addresses import Carrier, LinkAddress, reason_of
from pipeline.protocol.codec import MAX_HEADER_BYTES, decode, encode
from pipeline.protocol.messages import (
    PROTOCOL_VERSION,
    CloseLink,
    Credit,
    Header,
    OpenLink,
    name_of_run,
)
from pipeline.schedule.items import Stop
from pipeline.transport.cuda_ipc import DeviceRingWriter
from pipeline.transport.first_answer import FirstAnswer
from pipeline.transport.interfaces import Arrived, Delivery
from pipeline.transport.payloads import FrameWriter, framed_parts, slot_parts
from pipeline.transport.seal import why_no_seal
from pipeline.transport.shared_memory import RingWriter, make_ring
from pipeline.transport.sockets import LINGER_MS, Sockets, ms, send, waits
from pipeline.transport.stream_receiver import StreamReceiver
from pipeline.transport.stream_sender import StreamWriter
from pipeline.transport.timeout import Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.schedule.items import Item
    from pipeline.transport.cuda_ipc import DeviceMemory, DeviceRing, Driver
    from pipeline.transport.payloads import Payload, Writer
    from pipeline.transport.sockets import Envelope

_MESSAGES_AT_ONCE = 1000  # read before the caller may go on: strangers may talk without end


class ZmqSender:
    """Upstream end of a link: connects to where the next stage listens.

    `driver`: of CUDA, where what is sent lies on one of its devices. `tell`: hears of what the
    person who watches should know.
    """

    def __init__(
        self,
        sockets: Sockets,
        address: LinkAddress,
        run: str,
        *,
        names: tuple[str, str],
        timeout_s: float,
        cancelled: Callable[[], bool] = lambda: False,
        driver: Driver | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._me, self._peer = names
        self._answer = FirstAnswer(address.endpoint, names, tell)
        self._timeout_s, self._cancelled = timeout_s, cancelled
        self._landing: list[bytes | memoryview] = []
        self._credits: deque[int] = deque()
        self._slot: int | None = None
        self._all_arrived = False
        stream, tell = f"the stream from {names[0]} to {names[1]}", sockets.rejections.tell
        self._writer, self.carrier = open_writer(
            address, driver, lambda what: tell(f"{stream} {what}")
        )
        self._socket = sockets.connect(address.endpoint, address.word.encode(), address.key)
        send(self._socket, [encode(OpenLink(run, PROTOCOL_VERSION, self._writer.way))])

    def send(self, item: Item, payloads: Sequence[Payload] = ()) -> None:
        """Send in order; a batch first waits for room. The header of one that is still being copied
        follows with `flush`, or before the next item.

        Raises:
            TimedOutError, CalledOffError: as `wait_for_room`; CalledOffError at once, too.
        """
        self._check_wanted()
        self.flush()
        specs = tuple(payload.spec for payload in payloads)
        if not payloads:
            send(self._socket, [encode(Header(item))])
            return
        self.wait_for_room()
        slot, self._slot = self._slot, None
        assert slot is not None, "there is room"
        frames = self._writer.write(slot, payloads)
        self._landing = [encode(Header(item, specs, slot, self._writer.way)), *frames]
        if not self._writer.lands_later:
            self.flush()

    def flush(self) -> None:
        """Tell of the batch that was sent last, once it has landed in its slot."""
        if self._landing:
            self._writer.land()
            frames, self._landing = self._landing, []
            send(self._socket, frames)

    def finish(self) -> None:
        """After the stop marker: returns when it has arrived, and so all before it.

        Raises:
            TimedOutError, CalledOffError: as `wait_for_room`.
        """
        self._hear_until(lambda: self._all_arrived, "the last items")

    def close(self) -> None:
        """Close the socket; what has not arrived yet has `LINGER_MS` left."""
        self._landing = []
        self._writer.close()
        self._socket.close(linger=LINGER_MS)

    def wait_for_room(self) -> None:
        """Returns when a batch may be sent (invariant 4).

        Raises:
            TimedOutError: where the peer takes none in time.
            CalledOffError: where the wait was cancelled.
        """
        if self._slot is None:
            self._hear_until(lambda: bool(self._credits), "a batch")
            self._slot = self._credits.popleft()

    def _hear_until(self, heard: Callable[[], bool], wanted: str) -> None:
        began, timeout = monotonic(), Timeout(self._timeout_s)
        while not heard() or waits(self._socket):
            poll_s = timeout.next_poll_s()
            if heard() or self._socket.poll(ms(poll_s)):
                self._hear()
                continue
            self._check_wanted()
            self._answer.look()
            if not poll_s:
                raise TimedOutError(
                    f"{self._me} waited {monotonic() - began:.1f} s for {self._peer} to take "
                    f"{wanted}: it took none"
                )

    def _check_wanted(self) -> None:
        self._writer.check()
        if self._cancelled():
            raise CalledOffError(f"{self._me} is told to stop sending to {self._peer}")

    def _hear(self) -> None:
        message = decode(self._socket.recv())
        self._answer.heard()
        if isinstance(message, CloseLink):
            self._all_arrived = True
        elif not isinstance(message, Credit):
            raise ProtocolError(f"{self._me}: {self._peer} sent {type(message).__name__} upstream")
        elif message.slot in self._credits:
            raise ProtocolError(f"{self._me}: {self._peer} granted slot {message.slot} twice")
        else:
            self._credits.append(message.slot)
            self._writer.free(message.slot)


class ZmqReceiver:
    """Downstream end of a link: listens, makes the ring, grants credits."""

    def __init__(
        self,
        sockets: Sockets,
        bind: str,
        run: str,
        *,
        names: tuple[str, str],
        slots: int,
        slot_bytes: int,
        device_ring: DeviceRing | None = None,
        no_device_ring: str = "",
    ) -> None:
        self._me, self._peer = names
        self._run, self._slots, self._device_ring = run, slots, device_ring
        self._ring, no_ring = make_ring(slots, slot_bytes)
        self._arrived: deque[Delivery] = deque()
        self._coming: deque[tuple[Header, list[memoryview]]] = deque()
        """Headers, and frames, from the first on whose tensors are still on their way."""
        self._is_open = False
        self._rejections, self._word = sockets.rejections, secrets.token_hex(16)
        self._listener = sockets.listen(bind, max(slot_bytes, MAX_HEADER_BYTES))
        self._stream, no_stream = self._offered_stream(sealed=sockets.key is not None)
        self.address = LinkAddress(
            self._listener.endpoint,
            self._ring.handle() if self._ring else None,
            self._word,
            sockets.key,
            device_ring.handle() if device_ring else None,
            no_ring,
            no_device_ring,
            self._stream.address if self._stream else None,
            no_stream,
        )

    @property
    def queued(self) -> int:
        """Items that have arrived and wait to be received."""
        self._drain()
        return len(self._arrived)

    def admit(self, key: str | None) -> None:
        self._listener.admit({key})

    def receive(self, timeout_s: float, called_off: Callable[[], bool] = lambda: False) -> Delivery:
        """The next item.

        Raises:
            TimedOutError: where none came in time.
            CalledOffError: where `called_off` says so.
            ProtocolError: where the peer is of another run or says what it may not.
        """
        self._drain_until(lambda: bool(self._arrived), timeout_s, called_off)
        return self._arrived.popleft()

    def let_in(self, timeout_s: float, called_off: Callable[[], bool] = lambda: False) -> None:
        """Returns when the sender is in, and has its credits. Raises as `receive`."""
        self._drain_until(lambda: self._is_open, timeout_s, called_off)

    def _drain_until(
        self, came: Callable[[], bool], timeout_s: float, called_off: Callable[[], bool]
    ) -> None:
        timeout = Timeout(timeout_s)
        if not self._is_open:
            self._listener.open()
        self._drain()
        while not came():
            if called_off():
                raise CalledOffError(f"{self._me} is told to stop waiting for {self._peer}")
            poll_s = timeout.next_poll_s()
            if not poll_s:
                raise TimedOutError(
                    f"{self._me} waited {timeout_s:.1f} s for {self._peer} to send: nothing came"
                )
            if self._coming and self._stream:
                self._stream.wait(poll_s)
            else:
                self._listener.poll(poll_s)
            self._drain()

    def close(self) -> None:
        """Close the sockets and the ring's descriptor."""
        self._listener.close()
        self._close_stream()
        self._arrived.clear()
        if self._ring:
            self._ring.close()

    def _drain(self) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            if not self._listener.poll(0.0):
                break
            envelope = self._listener.take()
            if envelope.name == self._word.encode():
                self._hear(envelope.frames)
            else:
                self._reject(envelope)
        while self._coming and self._is_there(self._coming[0][0]):
            self._hand_out(*self._coming.popleft())

    def _is_there(self, header: Header) -> bool:
        if header.slot is None or header.way != "stream":
            return True
        if self._stream is None:
            raise ProtocolError(f"{self._me}: {self._peer} sends by a stream that is not open")
        return self._stream.take(header)

    def _hand_out(self, header: Header, frames: list[memoryview]) -> None:
        self._arrived.append(self._delivery(header, frames))
        if isinstance(header.item, Stop):
            self._say(CloseLink())

    def _hear(self, frames: list[memoryview]) -> None:
        """What comes from the right sender must be right: to drop it would leave a hole."""
        message = decode(frames[0] if frames else b"")
        if isinstance(message, OpenLink):
            self._open(message)
        elif isinstance(message, Header):
            self._coming.append((message, frames[1:]))
        else:
            raise ProtocolError(f"{self._me}: {self._peer} sent {type(message).__name__}")

    def _reject(self, envelope: Envelope) -> None:
        peer, why = envelope.peer, ""
        try:
            message = decode(envelope.frames[0] if envelope.frames else b"")
            why = f"it sent {type(message).__name__}, but is not {self._peer}"
            if isinstance(message, OpenLink) and self._is_foreign(message):
                peer = f"{peer} of {name_of_run(message.run, message.protocol)}"
                why = f"this is {name_of_run(self._run)}"
        except ProtocolError as error:
            why = str(error)
        self._rejections.reject(peer, why)

    def _open(self, message: OpenLink) -> None:
        if self._is_foreign(message):
            raise ProtocolError(
                f"{self._me}: link opened by {name_of_run(message.run, message.protocol)}, "
                f"this is {name_of_run(self._run)}"
            )
        self._is_open = True
        self._listener.shut()  # its one sender is in
        if message.way != "stream":
            self._close_stream()
        for slot in range(self._slots):
            self._grant(slot)

    def _is_foreign(self, message: OpenLink) -> bool:
        return (message.run, message.protocol) != (self._run, PROTOCOL_VERSION)

    def _say(self, message: Credit | CloseLink) -> None:
        # a sender that knows of its stop marker may be gone: then nobody needs the credit
        self._listener.send(self._word.encode(), [encode(message)])

    def _grant(self, slot: int) -> None:
        if self._stream:
            self._stream.grant(slot)
        self._say(Credit(slot))

    def _offered_stream(self, *, sealed: bool) -> tuple[StreamReceiver | None, str]:
        """Into the slots of the ring; or none, and why."""
        where = self._listener.where
        if where is None:
            return None, "links over ipc need none"
        if sealed and (why := why_no_seal()):
            return None, why
        if self._ring is None:
            return None, "there are no slots for it"
        try:
            rejections = self._rejections
            return StreamReceiver(where, self._ring, rejections, sealed=sealed), ""
        except OSError as error:
            return None, reason_of(error)

    def _close_stream(self) -> None:
        if self._stream:
            self._stream.close()
            self._stream = None

    def _delivery(self, header: Header, frames: list[memoryview]) -> Delivery:
        if header.slot is None:
            return Delivery(header.item, (), release=lambda: None)
        slot = header.slot
        parts = self._parts(header, slot, frames)
        tensors = tuple(map(Arrived, header.tensors, parts))
        return Delivery(header.item, tensors, lambda: self._grant(slot))

    def _parts(
        self, header: Header, slot: int, frames: list[memoryview]
    ) -> Sequence[memoryview | DeviceMemory]:
        if header.way == "device" and self._device_ring:
            return self._device_ring.parts(slot, header.tensors)
        if header.way in ("shared", "stream") and self._ring:
            return slot_parts(self._ring.slot(slot), header.tensors)
        return framed_parts(frames, header.tensors)


# --- how a sender reaches the slots of the next stage ------------------------------------


def open_writer(
    address: LinkAddress, driver: Driver | None, tell: Callable[[str], None] = lambda what: None
) -> tuple[Writer, Carrier]:
    """The best writer for an address, and its carrier, with the reason where a better one is out
    of reach.

    Args:
        driver: of CUDA, where what is sent lies on one of its devices.
        tell: hears later what people should know of a stream.
    """
    reasons: list[str] = []
    if driver is not None:
        try:
            if address.device_ring is None:
                raise OSError(_because("the next stage shares none", address.no_device_ring))
            return DeviceRingWriter(address.device_ring, driver), Carrier("device")
        except OSError as error:
            reasons = [f"not memory of the CUDA device: {error}"]
    if address.ring is None:
        no_ring = _because("the next stage has no shared memory", address.no_ring)
    else:
        try:
            return RingWriter(address.ring), Carrier("shared", "; ".join(reasons))
        except OSError as error:
            no_ring = reason_of(error)
    reasons = [no_ring, *reasons]
    if address.stream is not None:
        kind = "stream" if address.stream.sealed else "plain-stream"
        try:
            return StreamWriter(address.stream, tell), Carrier(kind, "; ".join(reasons))
        except OSError as error:
            reasons.insert(0, f"not a stream: {reason_of(error)}")
    elif address.endpoint.startswith("tcp:"):
        reasons.insert(0, _because("the next stage offers no stream", address.no_stream))
    return FrameWriter(), Carrier("frames", "; ".join(reasons))


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
