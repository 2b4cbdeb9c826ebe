"""Links over ZeroMQ within one process: order, credits, refusals, ends of waits."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq
from support.links import SOON_S, TINY_S, batch, contents, payloads, send_batches, sent

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
from pipeline.schedule.items import EndEpoch, EvaluationBatch, Snapshot, Stop, TrainBatch
from pipeline.transport.payloads import ALIGNMENT, ArrayPayload
from pipeline.transport.rejections import Rejections
from pipeline.transport.sockets import Sockets
from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.schedule.items import Item
    from pipeline.transport.interfaces import Delivery


class Link:
    """Both ends of a link in one process; sockets may be polled by turns from one thread."""

    def __init__(
        self, sockets: Sockets, folder: Path, *, slots: int = 2, ring: bool = True
    ) -> None:
        self.sockets, self.folder = sockets, folder
        self.receiver = ZmqReceiver(
            sockets,
            f"ipc://{folder}/link",
            "run",
            names=("stage 1", "stage 0"),
            slots=slots,
            slot_bytes=4096,
        )
        address = self.receiver.address
        self.address = address if ring else replace(address, ring=None)

    def sender(self, run: str = "run", timeout_s: float = TINY_S, **more: Any) -> ZmqSender:
        names = ("stage 0", "stage 1")
        return ZmqSender(self.sockets, self.address, run, names=names, timeout_s=timeout_s, **more)

    def raw(self, name: str | None = None) -> zmq.Socket[bytes]:
        """A peer that says whatever a test wants, by default under the sender's name."""
        word = self.address.word if name is None else name
        return self.sockets.connect(self.address.endpoint, word.encode(), self.address.key)

    def hears(self, sender: ZmqSender) -> None:
        """Let the receiver read what has been sent, and the sender what that granted."""
        assert self.receiver._listener.poll(5.0)
        assert self.receiver.queued >= 0
        assert sender._socket.poll(5000)

    def connected(self, **more: Any) -> ZmqSender:
        """A sender that has been granted its credits."""
        sender = self.sender(**more)
        self.hears(sender)
        return sender


@pytest.fixture(params=[True, False], ids=["ring", "frames"])
def link(request: pytest.FixtureRequest, sockets: Sockets, tmp_path: Path) -> Iterator[Link]:
    link = Link(sockets, tmp_path, ring=request.param)
    yield link
    link.receiver.close()


# --- batches and credits ------------------------------------------------------------------


def test_items_arrive_in_order_with_their_tensors(link: Link) -> None:
    sender = link.connected()
    items: list[Item] = [batch(1), Snapshot(1, 1, False), batch(2), EndEpoch(1), Stop()]
    for item in items:
        sender.send(item, payloads(item.batch_id) if isinstance(item, TrainBatch) else ())
    for item in items:
        delivery = link.receiver.receive(SOON_S)
        assert delivery.item == item
        if isinstance(item, TrainBatch):
            specs = [payload.spec for payload in payloads(item.batch_id)]
            assert [tensor.spec for tensor in delivery.tensors] == specs
            assert contents(delivery) == sent(item.batch_id)
        else:
            assert delivery.tensors == ()
    expected = "shared memory" if link.address.ring else "frames (the next stage has no shared mem"
    assert sender.carrier.in_words().startswith(expected)


def test_all_that_arrives_is_aligned(link: Link) -> None:
    sender = link.connected()
    for number, n in ((1, 1), (2, 7)):
        sender.send(batch(number), payloads(number, n))
    for _ in range(2):
        for tensor in link.receiver.receive(SOON_S).tensors:
            assert np.frombuffer(tensor.data, np.uint8).ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("ring", [True, False], ids=["ring", "frames"])
def test_credits_bound_what_is_in_flight(
    sockets: Sockets, tmp_path: Path, slots: int, ring: bool
) -> None:
    link = Link(sockets, tmp_path, slots=slots, ring=ring)
    sender = link.connected()
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
    link.receiver.close()


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


def test_a_slot_is_used_again_only_after_its_release(sockets: Sockets, tmp_path: Path) -> None:
    link = Link(sockets, tmp_path)
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
    link.receiver.close()


def test_both_carriers_bring_the_same_bytes(sockets: Sockets, tmp_path: Path) -> None:
    found = []
    for ring in (True, False):
        (tmp_path / str(ring)).mkdir()
        link = Link(sockets, tmp_path / str(ring), ring=ring)
        sender = link.connected()
        sender.send(batch(1), payloads(7, n=6))
        sender.send(EvaluationBatch(1, 0), payloads(8, n=1))
        deliveries = [link.receiver.receive(SOON_S) for _ in range(2)]
        found.append([(d.item, [t.spec for t in d.tensors], contents(d)) for d in deliveries])
        link.receiver.close()
    assert found[0] == found[1]


def test_frames_larger_than_a_slot_arrive(sockets: Sockets, tmp_path: Path) -> None:
    """Frames are bound by credits only: large ones go without a copy."""
    link = Link(sockets, tmp_path, ring=False)
    sender = link.connected()
    large = np.random.default_rng(0).integers(0, 256, (300_000,), np.uint8)
    sender.send(batch(1), [ArrayPayload(large)])
    assert contents(link.receiver.receive(SOON_S)) == [large.tobytes()]
    link.receiver.close()


# --- ends of waits ------------------------------------------------------------------------


def test_sender_whose_peer_takes_nothing(link: Link) -> None:
    sender = link.sender(timeout_s=TINY_S)
    with pytest.raises(TimedOutError) as caught:
        sender.send(batch(1), payloads(1))
    said = str(caught.value)
    assert said.startswith("stage 0 waited 0.")
    assert said.endswith(" s for stage 1 to take a batch: it took none")


def test_sender_that_is_not_wanted_any_more(link: Link) -> None:
    answers = iter([False, True])
    sender = link.sender(timeout_s=3600.0, cancelled=lambda: next(answers))
    with pytest.raises(CalledOffError, match="stage 0 is told to stop sending to stage 1"):
        sender.send(batch(1), payloads(1))
    assert next(answers, None) is None


def test_receiver_that_is_told_to_stop_waiting(link: Link) -> None:
    answers = iter([False, True])
    with pytest.raises(CalledOffError, match="stage 1 is told to stop waiting for stage 0"):
        link.receiver.receive(3600.0, lambda: next(answers))
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


def test_a_sender_that_finishes_can_be_called_off(link: Link) -> None:
    answers = iter([False, True])
    sender = link.sender(timeout_s=3600.0, cancelled=lambda: next(answers))
    sender.send(Stop())
    with pytest.raises(CalledOffError, match="stage 0 is told to stop sending to stage 1"):
        sender.finish()


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
    assert link.sockets.rejections.news() == [f"here: {THIS_PROCESS} {told}"]
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


def test_link_of_another_run_is_refused(link: Link) -> None:
    link.sender(run="another")
    with pytest.raises(ProtocolError) as caught:
        link.receiver.receive(SOON_S)
    assert str(caught.value) == (
        f"stage 1: link opened by run another (protocol {PROTOCOL_VERSION}), "
        f"this is run run (protocol {PROTOCOL_VERSION})"
    )


def test_link_of_another_protocol_is_refused(link: Link) -> None:
    link.raw().send(encode(OpenLink("run", 99)))
    with pytest.raises(ProtocolError, match=r"run run \(protocol 99\), this is run run \(proto"):
        link.receiver.receive(SOON_S)


def test_other_messages_are_refused_on_a_link(link: Link) -> None:
    link.raw().send(encode(Bye()))
    with pytest.raises(ProtocolError, match="stage 1: stage 0 sent Bye"):
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


@pytest.mark.parametrize("slot", [2, -1, 2**40])
def test_slots_that_do_not_exist_are_refused(link: Link, slot: int) -> None:
    link.raw().send(encode(Header(batch(1), (TensorSpec("uint8", (10,)),), slot=slot)))
    with pytest.raises(ProtocolError, match=f"slot {slot} of a ring of 2"):
        link.receiver.receive(SOON_S)


def test_tensors_larger_than_their_slot_are_refused(link: Link) -> None:
    link.raw().send(encode(Header(batch(1), (TensorSpec("uint8", (5000,)),), slot=0)))
    with pytest.raises(ProtocolError, match="5120 bytes don't fit a slot of 4096"):
        link.receiver.receive(SOON_S)


def test_ring_out_of_reach_falls_back_to_frames(sockets: Sockets, tmp_path: Path) -> None:
    link = Link(sockets, tmp_path)
    assert link.address.ring is not None
    link.address = replace(link.address, ring=replace(link.address.ring, host="elsewhere"))
    sender = link.connected()
    assert sender.carrier.in_words() == "frames (the next stage is on another machine)"
    sender.send(batch(1), payloads(1))
    assert contents(link.receiver.receive(SOON_S)) == sent(1)
    link.receiver.close()


def test_a_ring_that_the_system_refuses_is_done_without_and_it_says_why(
    sockets: Sockets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    link = Link(sockets, tmp_path)
    assert link.address.ring is None
    reason = "the next stage has no shared memory: this system has no memfd"
    assert link.sender().carrier == Carrier("frames", reason)
    link.receiver.close()


def test_closing_the_sockets_delivers_and_leaves_nothing(tmp_path: Path) -> None:
    gc.collect()
    shared = {name for name in os.listdir("/dev/shm") if "ring" in name}
    receiving, sending = Sockets(Rejections("there")), Sockets(Rejections("here"))
    link = Link(receiving, tmp_path)
    link.sockets = sending
    sender = link.connected()
    sender.send(batch(1), payloads(1))
    sending.close()
    assert contents(link.receiver.receive(SOON_S)) == sent(1)
    link.receiver.close()
    receiving.close()
    assert {name for name in os.listdir("/dev/shm") if "ring" in name} == shared


def test_a_slot_that_is_granted_twice_is_refused(link: Link) -> None:
    sender = link.connected(timeout_s=SOON_S)
    sender.send(batch(1), payloads(1))  # in slot 0
    link.receiver._listener.send(link.address.word.encode(), [encode(Credit(1))])
    assert sender._socket.poll(5000)
    with pytest.raises(ProtocolError, match="stage 0: stage 1 granted slot 1 twice"):
        sender.send(batch(2), payloads(2))


def test_credits_are_small_messages() -> None:
    assert len(encode(Credit(1))) < 32
