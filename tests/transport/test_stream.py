"""Streams: sealed bytes into granted slots, whatever happens on the way, and whoever else calls."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kept_sockets import KeptSockets
from support.links import SOON_S, Link, batch, contents, payloads, send_batches, sent
from support.processes import until
from support.wire import Wire

from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import Carrier, StreamAddress
from pipeline.protocol.messages import MAX_TENSORS, Header, TensorSpec
from pipeline.schedule.items import Stop
from pipeline.transport.payloads import ArrayPayload
from pipeline.transport.rejections import Rejections
from pipeline.transport.seal import PIECE_BYTES, BrokenSealError, Sealed
from pipeline.transport.shared_memory import Ring
from pipeline.transport.sockets import make_keys
from pipeline.transport.stream_format import (
    CLAIM_BYTES,
    GREETING_BYTES,
    WELCOME_BYTES,
    BatchHeader,
    connection_key,
    is_claim,
    make_claim,
    make_greeting,
    make_welcome,
    piece_number,
    read_welcome,
)
from pipeline.transport.stream_receiver import MOST_VISITORS
from pipeline.transport.zmq_link import open_writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.transport.interfaces import Delivery
    from pipeline.transport.zmq_link import ZmqSender

TCP = "tcp://127.0.0.1:*"
LOOKS_S = 0.01
AGAIN = "the stream from stage 0 to stage 1 broke and was opened again"
SECRET = bytes(range(32))


@pytest.fixture(scope="module", autouse=True)
def soon() -> Iterator[None]:
    """So often the receiver looks whether somebody else calls, as most tests here do."""
    with pytest.MonkeyPatch.context() as patch:
        often = struct.pack("ll", 0, int(LOOKS_S * 1e6))
        patch.setattr("pipeline.transport.stream_receiver._RECEIVE_TIMEOUT", often)
        yield


class Stream(Link):
    """A link whose tensors go by a stream: over a wire, where `cuts` or `flip_at` say so."""

    def __init__(self, *, sealed: bool = True, wired: bool = False, **more: Any) -> None:
        wire = {name: more.pop(name) for name in ("cuts", "flip_at") if name in more}
        keys = make_keys() if sealed else None
        super().__init__(KeptSockets(Rejections("here"), keys), None, ring=False, bind=TCP, **more)
        assert self.address.stream is not None
        self.stream: StreamAddress = self.address.stream
        self.wire = None
        if wired or wire:
            self.wire = Wire(self.stream.endpoint, **wire)
            through = replace(self.stream, endpoint=self.wire.endpoint)
            self.address = replace(self.address, stream=through)

    def brought(self, count: int) -> list[Delivery]:
        """Of batches 1 to `count`, each sent when it may be and released when it has come."""
        sender, came = self.connected(timeout_s=SOON_S), []
        assert sender.carrier.kind == ("stream" if self.stream.sealed else "plain-stream")
        for number in range(1, count + 1):
            send_batches(sender, number)
            came.append(self.receiver.receive(SOON_S))
            assert contents(came[-1]) == sent(number)
            came[-1].release()
            assert sender._socket.poll(5000)
        return came

    def close(self) -> None:
        super().close()
        if self.wire is not None:
            self.wire.close()
        self.sockets.close(0)


@contextmanager
def stream(**how: Any) -> Iterator[Stream]:
    with pytest.MonkeyPatch.context() as patch, closing(Stream(**how)) as opened:
        if "cuts" in how or "flip_at" in how:  # so often the sender looks whether it was cut
            patch.setattr("pipeline.transport.stream_sender.POLL_S", LOOKS_S)
        yield opened


# --- what is sent arrives -------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [True, False])
def test_tensors_of_all_sizes_arrive(sealed: bool) -> None:
    sizes = (0, 1, 255, 256, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 1)
    draws = np.random.default_rng(0)
    tensors = [ArrayPayload(draws.integers(0, 256, (size,), np.uint8)) for size in sizes]
    with stream(sealed=sealed, slot_bytes=6 << 20) as link:
        sender = link.connected(timeout_s=SOON_S)
        sender.send(batch(1), tensors)
        sender.send(Stop())
        assert contents(link.receiver.receive(SOON_S)) == [bytes(one.view()) for one in tensors]
        assert link.receiver.receive(SOON_S).item == Stop()


def test_the_stop_marker_is_taken_only_after_all_batches() -> None:
    """Its header comes by another way, and may come first."""
    with stream(cuts=[CLAIM_BYTES + 100]) as link:
        sender = link.connected(timeout_s=SOON_S)
        send_batches(sender, 1, 2)
        sender.send(Stop())
        assert [link.receiver.receive(SOON_S).item for _ in range(3)] == [
            batch(1),
            batch(2),
            Stop(),
        ]
        sender.finish()


@settings(max_examples=12)
@given(
    cuts=st.lists(st.integers(0, 1500), min_size=1, max_size=2),
    sealed=st.booleans(),
    slots=st.integers(1, 2),
)
def test_a_stream_that_is_cut_anywhere_goes_on_where_it_was(
    cuts: list[int], sealed: bool, slots: int
) -> None:
    cuts[0] += CLAIM_BYTES + 1  # one that is cut before is not opened, and tensors go as frames
    with stream(cuts=cuts, sealed=sealed, slots=slots) as link:
        link.brought(6)
        assert link.sockets.rejections.count == 0
        told = link.sockets.rejections.news()
        assert {text.partition(": ")[0] for text in told} == {AGAIN}


def test_a_stream_that_hangs_up_between_batches_is_opened_again() -> None:
    with stream(wired=True) as link:
        link.brought(2)
        assert link.wire is not None
        link.wire.cut()
        sender = link._senders[0]
        send_batches(sender, 3, 4)
        assert [contents(link.receiver.receive(SOON_S)) for _ in range(2)] == [sent(3), sent(4)]


def test_a_connection_that_is_left_open_makes_room_for_a_new_one() -> None:
    """As after a power cut: nobody has said that the old one is over."""
    with stream() as link:
        link.brought(1)
        (sender,) = link._senders
        writer = sender._writer
        left = writer._connection.socket.dup()
        with closing(left):
            writer._connection.socket.shutdown(socket.SHUT_WR)
            send_batches(sender, 2)
            assert contents(link.receiver.receive(SOON_S)) == sent(2)


def test_frames_take_the_place_of_a_stream_that_can_not_be_opened() -> None:
    with stream(cuts=[0]) as link:
        sender = link.connected(timeout_s=SOON_S)
        assert sender.carrier.kind == "frames"
        expected = f"not a stream: {link.wire.endpoint}: "
        assert sender.carrier.reason.startswith(expected)
        assert sender.carrier.reason.endswith("; the next stage has no shared memory")
        send_batches(sender, 1)
        assert contents(link.receiver.receive(SOON_S)) == sent(1)
        assert link.receiver._stream is None


def test_frames_take_the_place_of_a_stream_whose_slots_find_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(ring: Ring) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ring, "take", refuse)
    with stream() as link:
        assert link.connected(timeout_s=SOON_S).carrier.kind == "frames"
        (told,) = link.sockets.rejections.news()
        assert told.endswith("whose slots find no memory: [Errno 28] No space left on device")


@pytest.mark.parametrize("where", ["zmq_link", "stream_sender"])
def test_without_cryptography_it_says_so_and_takes_frames(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Of the receiver, or of the sender."""

    def missing() -> None:
        raise ImportError

    monkeypatch.setattr("pipeline.transport.seal._aes_gcm", missing)
    if where == "stream_sender":
        monkeypatch.setattr("pipeline.transport.zmq_link.why_no_seal", lambda: "")
    keys = make_keys()
    link = Link(KeptSockets(Rejections("here"), keys), None, ring=False, bind=TCP)
    why = "the package cryptography is not installed (pip install 'local-loss-pipeline[stream]')"
    reason = {"zmq_link": "the next stage offers no stream: ", "stream_sender": "not a stream: "}
    carrier = link.connected().carrier
    assert carrier.kind == "frames"
    assert carrier.reason.startswith(f"{reason[where]}{why}")
    link.close()
    link.sockets.close(0)


def test_the_port_is_closed_where_memory_is_shared() -> None:
    with closing(Stream()) as link:
        link.address = replace(link.receiver.address)
        sender = link.connected(timeout_s=SOON_S)
        assert sender.carrier == Carrier("shared")
        with pytest.raises(ConnectionRefusedError):
            call(link)
        send_batches(sender, 1)
        assert contents(link.receiver.receive(SOON_S)) == sent(1)


# --- what a wire sees, and can do -----------------------------------------------------------


def test_nothing_can_be_read_and_every_connection_has_a_key_of_its_own() -> None:
    with stream(cuts=[CLAIM_BYTES + 250], slots=1) as link:
        link.brought(1)
        first, second = map(bytes, link.wire.sent)
        plain = sent(1)[0]
        assert plain[:16] not in first + second
        start = CLAIM_BYTES  # the same batch, sealed for each
        assert first[start : start + 100] != second[start : start + 100]
    with stream(sealed=False, wired=True) as link:
        link.brought(1)
        assert plain in bytes(link.wire.sent[0])


@settings(max_examples=10)
@given(st.integers(CLAIM_BYTES, CLAIM_BYTES + 250))
def test_a_changed_bit_breaks_the_seal_and_the_batch_is_sent_again(at: int) -> None:
    with stream(flip_at=at) as link:
        link.brought(3)
        assert link.sockets.rejections.count == 1
        told = link.sockets.rejections.news()
        assert told[0] == "here: 127.0.0.1 was turned away: the seal of its bytes is broken"
        assert told[1].startswith(f"{AGAIN}: ")


def test_a_recording_is_worth_nothing() -> None:
    with stream(wired=True) as link:
        link.brought(2)
        recorded = bytes(link.wire.sent[0])
        with closing(call(link)) as replay:
            assert len(received(replay, GREETING_BYTES)) == GREETING_BYTES
            replay.sendall(recorded)
            assert ended(replay)
        (sender,) = link._senders
        send_batches(sender, 3)
        assert contents(link.receiver.receive(SOON_S)) == sent(3)
        assert link.sockets.rejections.news() == [
            "here: 127.0.0.1 was turned away: it does not know the secret of this link"
        ]


# --- strangers at the port ------------------------------------------------------------------


def call(link: Stream) -> socket.socket:
    host, _, port = link.stream.endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), SOON_S)


def received(connection: socket.socket, nbytes: int) -> bytes:
    return connection.recv(nbytes, socket.MSG_WAITALL)


def ended(connection: socket.socket) -> bool:
    """Whether the other end hangs up."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(
    "said",
    [bytes(CLAIM_BYTES), b"GET / HTTP/1.1\r\n" * 10, bytes(range(256)) * 400],
    ids=["zeros", "http", "endless"],
)
def test_who_does_not_know_the_secret_is_turned_away(said: bytes) -> None:
    with stream() as link:
        link.brought(1)
        for _ in range(3):
            with closing(call(link)) as stranger:
                received(stranger, GREETING_BYTES)
                stranger.sendall(said)
                assert ended(stranger)
        (sender,) = link._senders
        send_batches(sender, 2)
        assert contents(link.receiver.receive(SOON_S)) == sent(2)
        assert link.sockets.rejections.count == 3
        assert len(link.sockets.rejections.news()) == 1


@pytest.mark.parametrize(
    "said", [b"", b"x", bytes(CLAIM_BYTES - 1)], ids=["nothing", "a byte", "all but one"]
)
def test_who_says_too_little_is_turned_away_in_time(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transport.stream_receiver.GREETING_S", 0.05)
    with stream() as link:
        with closing(call(link)) as stranger:
            stranger.sendall(said)
            assert ended(stranger)
        assert link.sockets.rejections.news() == [
            "here: 127.0.0.1 was turned away: it did not greet in time as the stage before does"
        ]


def test_who_only_looks_whether_there_is_a_port_is_not_told_of() -> None:
    with stream() as link:
        for _ in range(3):
            call(link).close()
        link.brought(1)
        assert link.sockets.rejections.count == 0


def test_held_connections_take_few_descriptors_and_keep_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.transport.stream_receiver.GREETING_S", 0.2)
    with stream() as link:
        held = [call(link) for _ in range(MOST_VISITORS + 10)]
        link.brought(2)  # once the first are turned out
        assert len(link.receiver._stream._door._visitors) <= MOST_VISITORS
        for one in held:
            one.close()


def test_who_takes_the_place_of_the_receiver_is_sent_nothing() -> None:
    """It has the port, and not the secret."""
    with stream() as link, closing(socket.create_server(("127.0.0.1", 0))) as impostor:
        endpoint = f"tcp://127.0.0.1:{impostor.getsockname()[1]}"
        moved = replace(link.address, stream=replace(link.stream, endpoint=endpoint))
        for greeting in (make_greeting(), bytes(GREETING_BYTES)):
            impostor_says(impostor, greeting)
            _, carrier = open_writer(moved, None)
            assert carrier.kind == "frames"
            assert "does not" in carrier.reason


def impostor_says(listener: socket.socket, greeting: bytes) -> None:
    from threading import Thread

    def answer() -> None:
        with closing(listener.accept()[0]) as guest:
            guest.sendall(greeting)
            if received(guest, CLAIM_BYTES):
                guest.sendall(bytes(WELCOME_BYTES))
                assert guest.recv(1) == b""

    Thread(target=answer, daemon=True).start()


# --- the right sender, wrong bytes -----------------------------------------------------------


class Raw:
    """A sender that knows the secret and says whatever a test wants."""

    def __init__(self, link: Stream) -> None:
        self.socket = call(link)
        greeting = received(self.socket, GREETING_BYTES)
        claim = make_claim(link.stream.secret, greeting)
        self.socket.sendall(claim)
        welcome = received(self.socket, WELCOME_BYTES)
        self.missing = read_welcome(link.stream.secret, greeting, claim, welcome)
        self.seal = Sealed(connection_key(link.stream.secret, greeting, claim))

    def say(self, data: bytes, number: bytes, bound: bytes = b"") -> None:
        self.seal.put(self.socket.sendall, memoryview(data), number, bound)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (BatchHeader(1, 0, (10,)), "batch 1 came, batch 0 is missing"),
        (BatchHeader(0, 2, (10,)), "slot 2 was not granted"),
        (BatchHeader(0, 0, (5000,)), "tensors of 5120 bytes don't fit a slot of 4096"),
        (BatchHeader(0, 0, (1 << 60,)), "at most 68719476736 travel"),
    ],
)
def test_a_batch_that_may_not_come_is_an_error_of_the_stage(header: BatchHeader, said: str) -> None:
    with stream() as link:
        link.connected(timeout_s=SOON_S)
        raw = Raw(link)
        raw.say(header.pack(), piece_number(0, 0))
        link._senders[0].send(batch(1), payloads(1))
        with pytest.raises(ProtocolError, match=said):
            link.receiver.receive(SOON_S)
        raw.socket.close()


def test_a_batch_must_be_what_its_header_promises() -> None:
    with stream() as link:
        link.connected(timeout_s=SOON_S)
        raw = Raw(link)
        header = BatchHeader(0, 0, (3,)).pack()
        raw.say(header, piece_number(0, 0))
        raw.say(b"abc", piece_number(0, 1), header)
        until(lambda: link.receiver._stream._arrived, "a batch")
        promised = Header(batch(1), (TensorSpec("uint8", (4,)),), slot=0, way="stream")
        with pytest.raises(
            ProtocolError, match=r"tensors of \[4\] bytes in slot 0, the stream bro"
        ):
            link.receiver._stream.take(promised)
        raw.socket.close()


@pytest.mark.parametrize("change", ["number", "bound", "order"])
def test_a_piece_is_taken_only_where_it_belongs(change: str) -> None:
    with stream() as link:
        link.connected(timeout_s=SOON_S)
        raw = Raw(link)
        header = BatchHeader(0, 0, (3, 3)).pack()
        raw.say(header, piece_number(0, 0))
        number = {"number": piece_number(1, 1), "order": piece_number(0, 2)}
        bound = b"" if change == "bound" else header
        raw.say(b"abc", number.get(change, piece_number(0, 1)), bound)
        assert ended(raw.socket)
        assert link.sockets.rejections.count == 1
        raw.socket.close()


def test_only_a_stream_that_is_open_is_waited_for() -> None:
    with closing(Stream()) as link:
        link.address = replace(link.receiver.address)
        sender: ZmqSender = link.connected(timeout_s=SOON_S)
        sender._writer.__class__.way, before = "stream", sender._writer.way
        try:
            send_batches(sender, 1)
            with pytest.raises(ProtocolError, match="stage 0 sends by a stream that is not open"):
                link.receiver.receive(SOON_S)
        finally:
            sender._writer.__class__.way = before


# --- the format ------------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 2**36), max_size=MAX_TENSORS).map(tuple)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), sizes)
def test_headers_come_back(sequence: int, slot: int, sizes: tuple[int, ...]) -> None:
    header = BatchHeader(sequence, slot, sizes)
    assert BatchHeader.unpack(header.pack()) == header


def test_headers_of_too_many_tensors_are_refused() -> None:
    packed = bytearray(BatchHeader(0, 0, ()).pack())
    packed[12:16] = (MAX_TENSORS + 1).to_bytes(4, "big")
    with pytest.raises(ProtocolError, match="a batch of 17 tensors"):
        BatchHeader.unpack(packed)


@given(st.integers(0, 2**64 - 1))
def test_both_ends_prove_that_they_know_the_secret(missing: int) -> None:
    greeting = make_greeting()
    claim = make_claim(SECRET, greeting)
    assert is_claim(SECRET, greeting, claim)
    assert not is_claim(bytes(32), greeting, claim)
    assert not is_claim(SECRET, make_greeting(), claim)
    assert not is_claim(SECRET, greeting, claim[:-1] + bytes([claim[-1] ^ 1]))
    welcome = make_welcome(SECRET, greeting, claim, missing)
    assert read_welcome(SECRET, greeting, claim, welcome) == missing
    other = make_claim(SECRET, greeting)
    assert connection_key(SECRET, greeting, claim) != connection_key(SECRET, greeting, other)
    for wrong in ((bytes(32), greeting, claim), (SECRET, greeting, other)):
        with pytest.raises(ProtocolError, match="does not know the secret"):
            read_welcome(*wrong, welcome)


def test_a_claim_is_made_for_no_other_greeting() -> None:
    with pytest.raises(ProtocolError, match="does not greet as the stream of a link does"):
        make_claim(SECRET, bytes(GREETING_BYTES))


def test_a_seal_holds_number_and_what_it_is_bound_to() -> None:
    kept: list[bytes] = []
    seal, target = Sealed(SECRET), memoryview(bytearray(5))
    seal.put(lambda data: kept.append(bytes(data)), memoryview(b"seven"), b"n" * 12, b"header")

    def fill(view: memoryview) -> None:
        view[:] = kept[0]

    seal.take(fill, target, b"n" * 12, b"header")
    assert bytes(target) == b"seven"
    for number, bound in ((b"m" * 12, b"header"), (b"n" * 12, b"footer")):
        with pytest.raises(BrokenSealError):
            seal.take(fill, target, number, bound)


def test_secrets_of_streams_are_not_printed() -> None:
    with stream() as link:
        assert repr(link.stream.secret) not in repr(link.address)
    with pytest.raises(ProtocolError, match="secret of a stream of 3 bytes: it has 32"):
        StreamAddress("tcp://127.0.0.1:1", b"abc", True)
