"""Links over ZeroMQ within one process: order, credits, refusals, ends of waits."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq
from support.links import (
    SOON_S,
    TINY_S,
    Link,
    address,
    batch,
    contents,
    payloads,
    send_batches,
    sent,
)

from pipeline.errors import CalledOffError, ProtocolError, TimedOutError
from pipeline.protocol.addresses import Carrier
from pipeline.protocol.codec import decode, encode
from pipeline.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    CloseLink,
    Credit,
    Header,
    OpenLink,
    TensorSpec,
)
from pipeline.schedule.items import EndEpoch, EvaluationBatch, Snapshot, Stop
from pipeline.transport import zmq_link
from pipeline.transport.payloads import ALIGNMENT, ArrayPayload
from pipeline.transport.rejections import Rejections
from pipeline.transport.sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.schedule.items import Item
    from pipeline.transport.interfaces import Delivery
    from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender


STREAM = {"ring": False, "bind": "tcp://127.0.0.1:*"}


@pytest.fixture(
    params=[{"ring": True}, {"ring": False}, STREAM], ids=["ring", "frames", "plain stream"]
)
def link(
    request: pytest.FixtureRequest,
    sockets: Sockets,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Link]:
    link = Link(sockets, tmp_path, **request.param)
    yield link
    monkeypatch.setattr(zmq_link, "LINGER_MS", 0)  # what a test left unsent is not waited for
    link.close()


# --- batches and credits ------------------------------------------------------------------


def test_items_arrive_in_order_with_their_tensors(link: Link) -> None:
    sender = link.connected()
    items: list[tuple[Item, list[ArrayPayload]]] = [
        (batch(1), payloads(1, n=7)),
        (Snapshot(1, 1, False), []),
        (EvaluationBatch(1, 0), payloads(2, n=1)),
        (EndEpoch(1), []),
        (Stop(), []),
    ]
    for item, tensors in items:
        sender.send(item, tensors)
    for item, tensors in items:
        delivery = link.receiver.receive(SOON_S)
        assert delivery.item == item
        assert [tensor.spec for tensor in delivery.tensors] == [one.spec for one in tensors]
        assert contents(delivery) == [bytes(one.view()) for one in tensors]
        for tensor in delivery.tensors:
            assert address(tensor.data) % ALIGNMENT == 0
    expected = "shared memory" if link.address.ring else "(the next stage has no shared memory)"
    assert sender.carrier.in_words().endswith(expected)


@pytest.mark.parametrize(
    "link", [{"slots": n, "ring": ring} for n in (1, 2, 3) for ring in (True, False)], indirect=True
)
def test_credits_bound_what_is_in_flight(link: Link) -> None:
    sender, slots = link.connected(), link.receiver._slots
    send_batches(sender, *range(1, slots + 1))
    with pytest.raises(TimedOutError):  # one more is not sent before a release
        sender.send(batch(slots + 1), payloads(slots + 1))
    first = link.receiver.receive(SOON_S)
    with pytest.raises(TimedOutError):  # received is not released
        sender.send(batch(slots + 1), payloads(slots + 1))
    assert link.receiver.queued == slots - 1
    kept = contents(first)
    first.release()
    assert sender._socket.poll(5000)
    sender.send(batch(slots + 1), payloads(slots + 1))
    later = [link.receiver.receive(SOON_S) for _ in range(slots)]
    assert [delivery.item for delivery in later] == [batch(n) for n in range(2, slots + 2)]
    assert kept == sent(1)


def test_markers_need_no_credit(link: Link) -> None:
    sender = link.connected()
    send_batches(sender, 1, 2)
    for step in range(20):
        sender.send(Snapshot(step, 1, False))
    sender.send(Stop())
    received = [link.receiver.receive(SOON_S) for _ in range(23)]
    assert received[-1].item == Stop()
    assert sender._socket.poll(5000)
    assert decode(sender._socket.recv()) == CloseLink()
    received[5].release()  # a marker's release grants nothing
    assert not sender._socket.poll(0)


@pytest.mark.parametrize("link", [{}], indirect=True)
def test_a_slot_is_used_again_only_after_its_release(link: Link) -> None:
    sender = link.connected()
    held: list[Delivery] = []
    for number in (1, 2):
        send_batches(sender, number)
        held.append(link.receiver.receive(SOON_S))
    held[1].release()
    assert sender._socket.poll(5000)
    sender.send(batch(3), payloads(3))
    third = link.receiver.receive(SOON_S)
    assert contents(held[0]) == sent(1)
    assert contents(third) == sent(3)
    assert [tensor.data.obj for tensor in third.tensors] == [
        tensor.data.obj for tensor in held[1].tensors
    ]


@pytest.mark.parametrize("link", [{"ring": False}], indirect=True)
def test_frames_larger_than_a_slot_arrive(link: Link) -> None:
    """Frames are bound by credits only: large ones go without a copy."""
    sender = link.connected()
    large = np.random.default_rng(0).integers(0, 256, (300_000,), np.uint8)
    sender.send(batch(1), [ArrayPayload(large)])
    assert contents(link.receiver.receive(SOON_S)) == [large.tobytes()]


# --- ends of waits ------------------------------------------------------------------------


def test_sender_whose_peer_takes_nothing(link: Link) -> None:
    sender = link.sender(timeout_s=TINY_S)
    with pytest.raises(TimedOutError) as caught:
        sender.send(batch(1), payloads(1))
    said = str(caught.value)
    assert said.startswith("stage 0 waited 0.")
    assert said.endswith(" s for stage 1 to take a batch: it took none")


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        (lambda link, sender: sender.send(batch(1), payloads(1)), "0 is told to stop sending to"),
        (lambda link, sender: sender.finish(), "0 is told to stop sending to"),
        (lambda link, sender: link.receive(3600.0, sender._cancelled), "1 is told to stop waiting"),
    ],
)
def test_every_wait_can_be_called_off(
    link: Link, waits: Callable[[ZmqReceiver, ZmqSender], None], said: str
) -> None:
    answers = iter([False, True])
    sender = link.sender(timeout_s=3600.0, cancelled=lambda: next(answers))
    with pytest.raises(CalledOffError, match=f"stage {said}"):
        waits(link.receiver, sender)
    assert next(answers, None) is None


def test_sender_that_is_told_to_stop_sends_nothing_though_it_may(link: Link) -> None:
    sender = link.sender(timeout_s=3600.0, cancelled=lambda: True)
    for item, tensors in ((Stop(), []), (batch(1), payloads(1))):
        with pytest.raises(CalledOffError, match="stage 0 is told to stop sending to stage 1"):
            sender.send(item, tensors)


def test_receiver_to_which_nobody_sends(link: Link) -> None:
    with pytest.raises(TimedOutError) as caught:
        link.receiver.receive(TINY_S)
    assert str(caught.value) == "stage 1 waited 0.0 s for stage 0 to send: nothing came"
    sender = link.sender()
    link.hears(sender)  # the opening of the link is no item
    with pytest.raises(TimedOutError):
        link.receiver.receive(TINY_S)


def test_release_after_the_sender_is_gone_does_not_block(link: Link) -> None:
    sender = link.connected()
    send_batches(sender, 1, 2)
    sender.send(Stop())
    deliveries = [link.receiver.receive(SOON_S) for _ in range(3)]
    disconnections = _disconnections(link.receiver)
    sender.close()
    assert disconnections.poll(5000)
    for delivery in deliveries:
        delivery.release()
    disconnections.close()


def _disconnections(receiver: ZmqReceiver) -> zmq.Socket[bytes]:
    socket = receiver._listener._socket
    socket.monitor("inproc://disconnections", zmq.EVENT_DISCONNECTED)  # in place of its own
    monitor = socket.context.socket(zmq.PAIR)
    monitor.connect("inproc://disconnections")
    return monitor


@pytest.mark.parametrize("link", [{"ring": True}, {"ring": False}], indirect=True)
def test_what_was_sent_before_closing_still_arrives(link: Link) -> None:
    sender = link.connected()
    sender.send(batch(1), payloads(1))
    sender.send(Stop())
    sender.close()
    first, last = (link.receiver.receive(SOON_S) for _ in range(2))
    assert contents(first) == sent(1)
    assert last.item == Stop()


def test_a_sender_that_has_finished_may_go_at_once(link: Link) -> None:
    """However long the receiver takes: nothing rests on how long a socket lingers."""
    sender = link.connected(timeout_s=SOON_S)
    send_batches(sender, 1, 2)
    sender.send(Stop())
    with ThreadPoolExecutor() as pool:
        finished = pool.submit(sender.finish)
        deliveries = [link.receiver.receive(SOON_S) for _ in range(3)]
        finished.result(SOON_S)
    sender._socket.close(linger=0)
    assert [delivery.item for delivery in deliveries] == [batch(1), batch(2), Stop()]


def test_a_sender_whose_last_items_are_not_taken(link: Link) -> None:
    sender = link.connected(timeout_s=TINY_S)
    sender.send(batch(1), payloads(1))
    sender.send(Snapshot(1, 1, True))
    assert [link.receiver.receive(SOON_S).item for _ in range(2)] == [
        batch(1),
        Snapshot(1, 1, True),
    ]
    with pytest.raises(TimedOutError) as caught:  # the stop marker has not been sent
        sender.finish()
    assert str(caught.value).endswith(" s for stage 1 to take the last items: it took none")


# --- strangers ----------------------------------------------------------------------------


THIS_PROCESS = f"process {os.getpid()} (user {os.getuid()})"
THIS_RUN = f"this is run run (protocol {PROTOCOL_VERSION})"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            OpenLink("run", PROTOCOL_VERSION),
            "was turned away: it sent OpenLink, but is not stage 0",
        ),
        (Header(Stop()), "was turned away: it sent Header, but is not stage 0"),
        (
            OpenLink("another", PROTOCOL_VERSION),
            f"of run another (protocol {PROTOCOL_VERSION}) was turned away: {THIS_RUN}",
        ),
        (OpenLink("run", 99), f"of run run (protocol 99) was turned away: {THIS_RUN}"),
        (b"junk", "was turned away: not a msgpack header: ExtraData(106, b'unk')"),
    ],
    ids=["open", "stop", "another run", "another protocol", "junk"],
)
def test_who_does_not_know_the_word_is_turned_away(link: Link, message: Any, told: str) -> None:
    sender, stranger = link.sender(), link.raw("stranger")
    link.hears(sender)
    for _ in range(3):
        stranger.send(message if isinstance(message, bytes) else encode(message))
    while link.sockets.rejections.count < 3:
        assert link.receiver.queued == 0
    peer = THIS_PROCESS if link.address.stream is None else "127.0.0.1"
    assert link.sockets.rejections.news() == [f"here: {peer} {told}"]
    sender.send(batch(1), payloads(1))
    assert link.receiver.receive(SOON_S).item == batch(1)
    assert not stranger.poll(0)  # no credit, nor anything else


def test_who_takes_the_name_of_the_sender_is_not_heard(link: Link) -> None:
    sender = link.connected()
    link.raw().send(encode(Header(Stop())))
    sender.send(batch(1), payloads(1))
    assert link.receiver.receive(SOON_S).item == batch(1)
    assert link.receiver.queued == 0


def test_every_link_has_a_word_of_its_own(sockets: Sockets, tmp_path: Path) -> None:
    words = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        words.add(Link(sockets, tmp_path / name).address.word)
    assert len(words) == 2
    assert min(map(len, words)) == 32


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            OpenLink("another", PROTOCOL_VERSION),
            f"stage 1: link opened by run another (protocol {PROTOCOL_VERSION}), {THIS_RUN}",
        ),
        (
            OpenLink("run", 99),
            "stage 1: link opened by run run (protocol 99), this is run run (pro",
        ),
        (Bye(), "stage 1: stage 0 sent Bye"),
        *(
            (
                Header(batch(1), (TensorSpec("uint8", (10,)),), slot=slot),
                f"slot {slot} of a ring of 2",
            )
            for slot in (2, -1, 2**40)
        ),
        (
            Header(batch(1), (TensorSpec("uint8", (5000,)),), slot=0),
            "5120 bytes don't fit a slot of 4096",
        ),
    ],
)
def test_messages_that_are_wrong_are_refused(link: Link, message: Any, said: str) -> None:
    link.raw().send(encode(message))
    with pytest.raises(ProtocolError, match=re.escape(said)):
        link.receiver.receive(SOON_S)


def test_only_credits_go_upstream(link: Link) -> None:
    sender = link.connected(timeout_s=SOON_S)
    link.receiver._listener.send(link.address.word.encode(), [encode(Header(Stop()))])

    with pytest.raises(ProtocolError, match="stage 0: stage 1 sent Header upstream"):
        send_batches(sender, 1, 2, 3)  # two credits came first


@pytest.mark.parametrize("frames", [[b"junk"], [b""], [b"\x80"], [b"\xc1", b"tensor"]])
def test_what_is_no_header_is_refused(link: Link, frames: list[bytes]) -> None:
    link.raw().send_multipart(frames)
    with pytest.raises(ProtocolError):
        link.receiver.receive(SOON_S)


@pytest.mark.parametrize("frames", [[], [b"x" * 9], [b"x" * 10, b""], [b"x" * 11]])
def test_frames_must_be_what_the_header_promises(link: Link, frames: list[bytes]) -> None:
    header = Header(batch(1), (TensorSpec("uint8", (10,)),), slot=0, way="frames")
    link.raw().send_multipart([encode(header), *frames])
    with pytest.raises(ProtocolError) as caught:
        link.receiver.receive(SOON_S)
    sizes = [len(frame) for frame in frames]
    assert str(caught.value) == (
        f"header promises tensors of [10] bytes, frames of {sizes} bytes came"
    )


def test_a_ring_that_the_system_refuses_is_done_without_and_it_says_why(
    sockets: Sockets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    link = Link(sockets, tmp_path)
    assert link.address.ring is None
    reason = "the next stage has no shared memory: this system has no memfd"
    assert link.sender().carrier == Carrier("frames", reason)
    link.receiver.close()


def test_closing_the_sockets_delivers(tmp_path: Path) -> None:
    receiving, sending = Sockets(Rejections("there")), Sockets(Rejections("here"))
    link = Link(receiving, tmp_path)
    link.sockets = sending
    sender = link.connected()
    sender.send(batch(1), payloads(1))
    sending.close()
    assert contents(link.receiver.receive(SOON_S)) == sent(1)
    link.receiver.close()
    receiving.close()


def test_a_slot_that_is_granted_twice_is_refused(link: Link) -> None:
    sender = link.connected(timeout_s=SOON_S)
    sender.send(batch(1), payloads(1))  # in slot 0
    while not sender._credits:  # that for slot 1 is on its way
        assert sender._socket.poll(5000)
        sender._hear()
    link.receiver._listener.send(link.address.word.encode(), [encode(Credit(1))])
    assert sender._socket.poll(5000)
    with pytest.raises(ProtocolError, match="stage 0: stage 1 granted slot 1 twice"):
        sender.send(batch(2), payloads(2))


def test_credits_are_small_messages() -> None:
    assert len(encode(Credit(1))) < 32
