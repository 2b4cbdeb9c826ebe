"""Links and control over ZeroMQ within one process: order, credits, refusals, ends of waits."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

from pipeline.carriers import ALIGNMENT, ArrayPayload
from pipeline.codec import encode
from pipeline.errors import CalledOffError, ProtocolError, TimedOutError
from pipeline.inband import EndEpoch, EvaluationBatch, Snapshot, Stop, TrainBatch
from pipeline.links import LinkStatistics, MemoryControl, memory_link
from pipeline.messages import (
    PROTOCOL_VERSION,
    Bye,
    Connect,
    Connected,
    Credit,
    Failure,
    Header,
    Heartbeat,
    LinkAddress,
    OpenLink,
    TensorSpec,
)
from pipeline.transport import (
    ZmqControlClient,
    ZmqControlServer,
    ZmqReceiver,
    ZmqSender,
    close_context,
    make_context,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.inband import Item
    from pipeline.links import Delivery, Receiver, Sender

SOON_S = 5.0  # a time-out that is not expected to be used up
TINY_S = 0.01


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Closes every socket at the end, however the test went."""
    opened = []

    class Context(zmq.Context):  # type: ignore[type-arg]
        def socket(self, *given: Any) -> Any:
            opened.append(super().socket(*given))
            return opened[-1]

    context = Context()
    yield context
    context.destroy(linger=0)


class Link:
    """Both ends of a link in one process; sockets may be polled by turns from one thread."""

    def __init__(
        self, context: zmq.Context[Any], folder: Path, *, slots: int = 2, ring: bool = True
    ) -> None:
        self.context, self.folder = context, folder
        self.receiver = ZmqReceiver(
            context,
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
        return ZmqSender(self.context, self.address, run, names=names, timeout_s=timeout_s, **more)

    def raw(self) -> zmq.Socket[bytes]:
        """A peer that says whatever a test wants."""
        socket = self.context.socket(zmq.DEALER)
        socket.connect(self.address.endpoint)
        return socket

    def hears(self, sender: ZmqSender) -> None:
        """Let the receiver read what has been sent, and the sender what that granted."""
        assert self.receiver._socket.poll(5000)
        assert self.receiver.queued >= 0
        assert sender._socket.poll(5000)


@pytest.fixture(params=[True, False], ids=["ring", "frames"])
def link(
    request: pytest.FixtureRequest, context: zmq.Context[Any], tmp_path: Path
) -> Iterator[Link]:
    link = Link(context, tmp_path, ring=request.param)
    yield link
    link.receiver.close()


def payloads(value: int, n: int = 5) -> list[ArrayPayload]:
    images = np.full((n, 3, 2, 2), value % 256, np.uint8)
    return [ArrayPayload(images), ArrayPayload(np.arange(n) + value)]


def contents(delivery: Delivery) -> list[bytes]:
    return [bytes(tensor.data) for tensor in delivery.tensors]


def batch(number: int) -> TrainBatch:
    return TrainBatch(number, 1, 0.5)


# --- batches and credits ------------------------------------------------------------------


def test_items_arrive_in_order_with_their_tensors(link: Link) -> None:
    sender = link.sender()
    link.hears(sender)
    items: list[Item] = [batch(1), Snapshot(1, 1, False), batch(2), EndEpoch(1), Stop()]
    for item in items:
        sender.send(item, payloads(item.batch_id) if isinstance(item, TrainBatch) else ())
    for item in items:
        delivery = link.receiver.receive(SOON_S)
        assert delivery.item == item
        if isinstance(item, TrainBatch):
            sent = payloads(item.batch_id)
            assert [tensor.spec for tensor in delivery.tensors] == [p.spec for p in sent]
            assert contents(delivery) == [bytes(payload.view()) for payload in sent]
        else:
            assert delivery.tensors == ()
    expected = "shared memory" if link.address.ring else "frames (the next stage has no shared mem"
    assert sender.carrier.startswith(expected)


def test_all_that_arrives_is_aligned(link: Link) -> None:
    sender = link.sender()
    link.hears(sender)
    for number, n in ((1, 1), (2, 7)):
        sender.send(batch(number), payloads(number, n))
    for _ in range(2):
        for tensor in link.receiver.receive(SOON_S).tensors:
            assert np.frombuffer(tensor.data, np.uint8).ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("ring", [True, False], ids=["ring", "frames"])
def test_credits_bound_what_is_in_flight(
    context: zmq.Context[Any], tmp_path: Path, slots: int, ring: bool
) -> None:
    link = Link(context, tmp_path, slots=slots, ring=ring)
    sender = link.sender()
    link.hears(sender)
    for number in range(1, slots + 1):
        sender.send(batch(number), payloads(number))
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
    assert kept == [bytes(payload.view()) for payload in payloads(1)]
    link.receiver.close()


def test_markers_need_no_credit(link: Link) -> None:
    sender = link.sender()
    link.hears(sender)
    for number in (1, 2):
        sender.send(batch(number), payloads(number))
    for step in range(20):
        sender.send(Snapshot(step, 1, False))
    sender.send(Stop())
    received = [link.receiver.receive(SOON_S) for _ in range(23)]
    assert received[-1].item == Stop()
    received[5].release()  # a marker's release grants nothing
    assert not sender._socket.poll(0)


def test_a_slot_is_used_again_only_after_its_release(context: Any, tmp_path: Path) -> None:
    link = Link(context, tmp_path)
    sender = link.sender()
    link.hears(sender)
    held: list[Delivery] = []
    for number in (1, 2):
        sender.send(batch(number), payloads(number))
        held.append(link.receiver.receive(SOON_S))
    held[1].release()
    assert sender._socket.poll(5000)
    sender.send(batch(3), payloads(3))
    third = link.receiver.receive(SOON_S)
    assert contents(held[0]) == [bytes(payload.view()) for payload in payloads(1)]
    assert contents(third) == [bytes(payload.view()) for payload in payloads(3)]
    assert [tensor.data.obj for tensor in third.tensors] == [
        tensor.data.obj for tensor in held[1].tensors
    ]
    link.receiver.close()


def test_both_carriers_bring_the_same_bytes(context: Any, tmp_path: Path) -> None:
    found = []
    for ring in (True, False):
        (tmp_path / str(ring)).mkdir()
        link = Link(context, tmp_path / str(ring), ring=ring)
        sender = link.sender()
        link.hears(sender)
        sender.send(batch(1), payloads(7, n=6))
        sender.send(EvaluationBatch(1, 0), payloads(8, n=1))
        deliveries = [link.receiver.receive(SOON_S) for _ in range(2)]
        found.append([(d.item, [t.spec for t in d.tensors], contents(d)) for d in deliveries])
        link.receiver.close()
    assert found[0] == found[1]


def test_frames_larger_than_a_slot_arrive(context: Any, tmp_path: Path) -> None:
    """Frames are bound by credits only: large ones go without a copy."""
    link = Link(context, tmp_path, ring=False)
    sender = link.sender()
    link.hears(sender)
    large = np.random.default_rng(0).integers(0, 256, (300_000,), np.uint8)
    sender.send(batch(1), [ArrayPayload(large)])
    assert contents(link.receiver.receive(SOON_S)) == [large.tobytes()]
    link.receiver.close()


def test_statistics_count_batches_bytes_and_waiting(link: Link) -> None:
    sender = link.sender()
    link.hears(sender)
    sender.send(batch(1), payloads(1))
    sender.send(Stop())
    nbytes = sum(payload.spec.nbytes for payload in payloads(1))
    for _ in range(2):
        link.receiver.receive(SOON_S)
    for statistics in (sender.statistics(), link.receiver.statistics()):
        assert (statistics.batches, statistics.nbytes) == (1, nbytes)
        assert 0 <= statistics.waited_s < SOON_S


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
    sender = link.sender()
    link.hears(sender)
    for number in (1, 2):
        sender.send(batch(number), payloads(number))
    sender.send(Stop())
    deliveries = [link.receiver.receive(SOON_S) for _ in range(3)]
    disconnections = _disconnections(link.receiver)
    sender.close()
    assert disconnections.poll(5000)
    for delivery in deliveries:
        delivery.release()
    link.receiver._socket.disable_monitor()
    disconnections.close()


def _disconnections(receiver: ZmqReceiver) -> zmq.Socket[bytes]:
    return receiver._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)


def test_what_was_sent_before_closing_still_arrives(link: Link) -> None:
    sender = link.sender()
    link.hears(sender)
    sender.send(batch(1), payloads(1))
    sender.send(Stop())
    sender.close()
    first, last = (link.receiver.receive(SOON_S) for _ in range(2))
    assert contents(first) == [bytes(payload.view()) for payload in payloads(1)]
    assert last.item == Stop()


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
    sender = link.sender(timeout_s=SOON_S)
    link.hears(sender)
    link.receiver._socket.send(encode(Header(Stop())))

    def send_three_batches() -> None:  # two credits came first
        for number in (1, 2, 3):
            sender.send(batch(number), payloads(number))

    with pytest.raises(ProtocolError, match="stage 0: stage 1 sent Header upstream"):
        send_three_batches()


@pytest.mark.parametrize("frames", [[b"junk"], [b""], [b"\x80"], [b"\xc1", b"tensor"]])
def test_what_is_no_header_is_refused(link: Link, frames: list[bytes]) -> None:
    link.raw().send_multipart(frames)
    with pytest.raises(ProtocolError):
        link.receiver.receive(SOON_S)


@pytest.mark.parametrize("frames", [[], [b"x" * 9], [b"x" * 10, b""], [b"x" * 11]])
def test_frames_must_be_what_the_header_promises(link: Link, frames: list[bytes]) -> None:
    header = Header(batch(1), (TensorSpec("uint8", (10,)),), slot=0, framed=True)
    link.raw().send_multipart([encode(header), *frames])
    with pytest.raises(ProtocolError) as caught:
        link.receiver.receive(SOON_S)
    sizes = [len(frame) for frame in frames]
    assert str(caught.value) == (
        f"stage 1: header promises tensors of [10] bytes, frames of {sizes} came"
    )


@pytest.mark.parametrize("slot", [2, -1, 2**40])
def test_slots_that_do_not_exist_are_refused(link: Link, slot: int) -> None:
    link.raw().send(encode(Header(batch(1), (TensorSpec("uint8", (10,)),), slot=slot)))
    with pytest.raises(ProtocolError, match=f"slot {slot} of a ring of 2"):
        link.receiver.receive(SOON_S)


def test_tensors_larger_than_their_slot_are_refused(link: Link) -> None:
    link.raw().send(encode(Header(batch(1), (TensorSpec("uint8", (5000,)),), slot=0)))
    with pytest.raises(ProtocolError, match="5056 bytes don't fit a slot of 4096"):
        link.receiver.receive(SOON_S)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": "elsewhere"}, "frames (the next stage is on another machine)"),
        ({"inode": 1}, "frames (the next stage is in another process namespace)"),
    ],
)
def test_ring_out_of_reach_falls_back_to_frames(
    context: Any, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    link = Link(context, tmp_path)
    assert link.address.ring is not None
    link.address = LinkAddress(link.address.endpoint, replace(link.address.ring, **changes))
    sender = link.sender()
    assert sender.carrier == reason
    link.hears(sender)
    sender.send(batch(1), payloads(1))
    received = link.receiver.receive(SOON_S)
    assert contents(received) == [bytes(payload.view()) for payload in payloads(1)]
    link.receiver.close()


def test_system_without_memfd_falls_back_to_frames(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    link = Link(context, tmp_path)
    assert link.address.ring is None
    assert link.sender().carrier == "frames (the next stage has no shared memory)"
    link.receiver.close()


# --- control ------------------------------------------------------------------------------


@contextmanager
def control(context: zmq.Context[Any], folder: Path) -> Iterator[ZmqControlServer]:
    server = ZmqControlServer(context, f"ipc://{folder}/control")
    yield server
    server.close()


def test_control_carries_messages_and_attachments_both_ways(context: Any, tmp_path: Path) -> None:
    with control(context, tmp_path) as server:
        clients = [ZmqControlClient(context, f"ipc://{tmp_path}/control", n, 0) for n in range(3)]
        large = os.urandom(200_000)
        for stage, client in enumerate(clients):
            client.send(Connected(f"carrier {stage}"), [bytes([stage]), memoryview(large)])
        heard = {}
        for _ in clients:
            said = server.receive(SOON_S)
            assert said is not None
            heard[said.stage] = said
        for stage, said in heard.items():
            assert said.message == Connected(f"carrier {stage}")
            assert [bytes(frame) for frame in said.attached] == [bytes([stage]), large]
        for stage, client in enumerate(clients):
            server.send(stage, Connect(None), [b"file", large])
            answer = client.receive(SOON_S)
            assert (answer.stage, answer.message) == (stage, Connect(None))
            assert [bytes(frame) for frame in answer.attached] == [b"file", large]
            client.close()


def test_heartbeats_have_a_socket_of_their_own(context: Any, tmp_path: Path) -> None:
    with control(context, tmp_path) as server:
        endpoint = f"ipc://{tmp_path}/control"
        stage = ZmqControlClient(context, endpoint, 4, 0)
        heart = ZmqControlClient(context, endpoint, 4, 0, role="heartbeat")
        heart.send(Heartbeat(1, 1, "working", 0.5))
        said = server.receive(SOON_S)
        assert said is not None
        assert (said.stage, said.message) == (4, Heartbeat(1, 1, "working", 0.5))
        stage.send(Bye())
        assert server.receive(SOON_S)
        server.send(4, Connect(None))  # to the stage, not to its heart
        assert stage.receive(SOON_S).message == Connect(None)
        assert not heart._socket.poll(0)


def test_a_worker_that_was_replaced_is_not_heard_any_more(context: Any, tmp_path: Path) -> None:
    with control(context, tmp_path) as server:
        first, second = (
            ZmqControlClient(context, f"ipc://{tmp_path}/control", 2, attempt) for attempt in (0, 3)
        )
        first.send(Bye())
        assert server.receive(SOON_S)
        server.expect(2, 3)
        first.send(Failure("too late", None, 1, ""))
        while not server.rejected:
            assert server.receive(TINY_S) is None
        second.send(Bye())
        assert server.receive(SOON_S)
        server.send(2, Connect(None))
        assert second.receive(SOON_S).message == Connect(None)
        assert not first.waiting


def test_a_worker_that_has_just_died_is_no_error(context: Any, tmp_path: Path) -> None:
    with control(context, tmp_path) as server:
        server.send(7, Connect(None))  # whoever watches the processes will say so


def test_strangers_are_only_counted(context: Any, tmp_path: Path) -> None:
    names = [
        b"stage-",
        b"stage-x",
        b"Stage-1",
        b"stage-1",
        b"stage-12345-0",
        b"\x01\x02",
        b"root-0",
    ]
    with control(context, tmp_path) as server:
        strangers = []
        for name in names:
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, name)
            socket.connect(f"ipc://{tmp_path}/control")
            socket.send(encode(Bye()))
            strangers.append(socket)
        nameless = context.socket(zmq.DEALER)
        nameless.connect(f"ipc://{tmp_path}/control")
        nameless.send(b"anything")
        while server.rejected < len(names) + 1:
            assert server._socket.poll(5000)
            assert server.receive(0.0) is None
        client = ZmqControlClient(context, f"ipc://{tmp_path}/control", 1, 0)
        client.send(Bye())
        said = server.receive(SOON_S)
        assert said is not None
        assert (said.stage, server.rejected) == (1, len(names) + 1)


def test_junk_from_a_stage_is_a_protocol_error(context: Any, tmp_path: Path) -> None:
    with control(context, tmp_path) as server:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, b"stage-0-0")
        socket.connect(f"ipc://{tmp_path}/control")
        socket.send(b"junk")
        with pytest.raises(ProtocolError):
            server.receive(SOON_S)


def test_waits_on_control_end(context: Any, tmp_path: Path) -> None:
    with control(context, tmp_path) as server:
        assert server.receive(0.0) is None
        assert server.receive(TINY_S) is None
        client = ZmqControlClient(context, f"ipc://{tmp_path}/control", 3, 0)
        with pytest.raises(TimedOutError) as caught:
            client.receive(TINY_S)
        said = "stage 3 waited 0.0 s for the coordinator: it said nothing"
        assert str(caught.value) == said


def test_closing_the_context_delivers_and_leaves_nothing(tmp_path: Path) -> None:
    gc.collect()
    shared = {name for name in os.listdir("/dev/shm") if "ring" in name}
    receiving, sending = make_context(), make_context()
    link = Link(receiving, tmp_path)
    link.context = sending
    sender = link.sender()
    link.hears(sender)
    sender.send(batch(1), payloads(1))
    close_context(sending)
    assert contents(link.receiver.receive(SOON_S)) == [bytes(p.view()) for p in payloads(1)]
    link.receiver.close()
    close_context(receiving)
    assert {name for name in os.listdir("/dev/shm") if "ring" in name} == shared


# --- the fakes behave alike ---------------------------------------------------------------


def test_memory_link_is_bounded_and_ordered_too() -> None:
    ends: tuple[Sender, Receiver] = memory_link(slots=2, timeout_s=TINY_S)
    sender, receiver = ends
    for number in (1, 2):
        sender.send(batch(number), payloads(number))
    sender.send(EndEpoch(1))
    with pytest.raises(TimedOutError, match="a credit"):
        sender.send(batch(3), payloads(3))
    assert receiver.queued == 3
    first = receiver.receive(SOON_S)
    first.release()
    sender.send(batch(3), payloads(3))
    later = [receiver.receive(SOON_S) for _ in range(3)]
    assert [d.item for d in (first, *later)] == [batch(1), batch(2), EndEpoch(1), batch(3)]
    assert contents(later[-1]) == [bytes(payload.view()) for payload in payloads(3)]
    later[1].release()  # a marker's grants nothing
    with pytest.raises(TimedOutError):
        sender.send(batch(4), payloads(4))
    with pytest.raises(TimedOutError, match="a batch"):
        receiver.receive(TINY_S)
    nbytes = sum(payload.spec.nbytes for payload in payloads(1))
    expected = LinkStatistics(3, 3 * nbytes, 0.0)
    assert sender.statistics() == receiver.statistics() == expected


def test_memory_link_copies_and_aligns() -> None:
    sender, receiver = memory_link(slots=1)
    values = np.arange(9, dtype=np.uint8)
    sender.send(batch(1), [ArrayPayload(values)])
    values[:] = 0
    (tensor,) = receiver.receive(SOON_S).tensors
    assert bytes(tensor.data) == bytes(range(9))
    assert np.frombuffer(tensor.data, np.uint8).ctypes.data % ALIGNMENT == 0


def test_memory_control_carries_both_ways() -> None:
    server = MemoryControl()
    server.send(1, Connect(None), [b"file"])  # before the client is there
    client = server.client(1)
    said = client.receive(SOON_S)
    assert (said.stage, said.message, bytes(said.attached[0])) == (1, Connect(None), b"file")
    with pytest.raises(TimedOutError, match=r"stage 1 waited 0\.01 s for the coordinator"):
        client.receive(TINY_S)
    assert server.receive(0.0) is None
    assert server.receive(TINY_S) is None
    client.send(Bye())
    answer = server.receive(SOON_S)
    assert answer is not None
    assert (answer.stage, answer.message) == (1, Bye())


def test_credits_are_small_messages() -> None:
    assert len(encode(Credit(1))) < 32
