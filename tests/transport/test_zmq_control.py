"""Control over ZeroMQ within one process: who is heard, who is turned away, ends of waits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.links import SOON_S, TINY_S

from pipeline.errors import TimedOutError
from pipeline.protocol.addresses import Carrier
from pipeline.protocol.codec import encode
from pipeline.protocol.credentials import Invitation
from pipeline.protocol.messages import PROTOCOL_VERSION, Bye, Connect, Connected, Failure, Heartbeat
from pipeline.transport.zmq_control import ZmqControlClient, ZmqControlServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.transport.sockets import Socket, Sockets

THIS_PROCESS = f"process {os.getpid()} (user {os.getuid()})"


class Control:
    """The coordinator's end, and as many of stages, and others, as a test wants."""

    def __init__(self, sockets: Sockets, folder: Path) -> None:
        self.sockets, self.endpoint = sockets, f"ipc://{folder}/control"
        self.server = ZmqControlServer(sockets, self.endpoint, "run", most_bytes=1 << 20)

    def client(self, stage: int, attempt: int = 0, role: str = "stage") -> ZmqControlClient:
        return ZmqControlClient(
            self.sockets, Invitation("run", stage, attempt, self.endpoint), role
        )

    def peer(self, name: bytes) -> Socket:
        return self.sockets.connect(self.endpoint, name, None)

    def hear_until_turned_away(self, count: int) -> None:
        while self.server.rejections.count < count:
            assert self.server._listener.poll(5.0)
            assert self.server.receive(0.0) is None


@pytest.fixture
def control(sockets: Sockets, tmp_path: Path) -> Iterator[Control]:
    control = Control(sockets, tmp_path)
    yield control
    control.server.close()


def connected(stage: int) -> Connected:
    return Connected(Carrier("frames", f"reason {stage}"))


def test_control_carries_messages_and_attachments_both_ways(control: Control) -> None:
    clients = [control.client(stage) for stage in range(3)]
    large = os.urandom(200_000)
    for stage, client in enumerate(clients):
        client.send(connected(stage), [bytes([stage]), memoryview(large)])
    heard = {}
    for _ in clients:
        said = control.server.receive(SOON_S)
        assert said is not None
        heard[said.stage] = said
    for stage, said in heard.items():
        assert said.message == connected(stage)
        assert [bytes(frame) for frame in said.attached] == [bytes([stage]), large]
    for stage, client in enumerate(clients):
        control.server.send(stage, Connect(None), [b"file", large])
        answer = client.receive(SOON_S)
        assert (answer.stage, answer.message) == (stage, Connect(None))
        assert [bytes(frame) for frame in answer.attached] == [b"file", large]
        client.close()


def test_heartbeats_have_a_socket_of_their_own(control: Control) -> None:
    stage, heartbeat = control.client(4), control.client(4, role="heartbeat")
    heartbeat.send(Heartbeat(1, 1, "working", 0.5))
    said = control.server.receive(SOON_S)
    assert said is not None
    assert (said.stage, said.message) == (4, Heartbeat(1, 1, "working", 0.5))
    stage.send(Bye())
    assert control.server.receive(SOON_S)
    control.server.send(4, Connect(None))  # to the stage, not to its heartbeat
    assert stage.receive(SOON_S).message == Connect(None)
    assert not heartbeat._socket.poll(0)


def test_a_worker_that_was_replaced_is_not_heard_any_more(control: Control) -> None:
    first, second = control.client(2, 0), control.client(2, 3)
    first.send(Bye())
    assert control.server.receive(SOON_S)
    control.server.expect(2, 3)
    first.send(Failure("too late", None, 1, ""))
    second.send(Bye())
    said = control.server.receive(SOON_S)
    assert said is not None
    assert said.message == Bye()
    control.server.send(2, Connect(None))
    assert second.receive(SOON_S).message == Connect(None)
    assert not first.waiting
    assert control.server.rejections.summary() == []  # it was one of ours


def test_a_worker_that_has_just_died_is_no_error(control: Control) -> None:
    control.server.send(7, Connect(None))  # whoever watches the processes will say so


PROTOCOL = f"pipeline-{PROTOCOL_VERSION}"
STRANGERS = [b"stage-1-0", b"pipeline-", b"\x01\x02", b"Pipeline-3-run-stage-1-0", b"x" * 255]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, "was turned away: it is no stage of this run") for name in STRANGERS),
        (f"{PROTOCOL}-run-root-1-0".encode(), "was turned away: it is no stage of this run"),
        (f"{PROTOCOL}-run-stage-x-0".encode(), "was turned away: it is no stage of this run"),
        (
            f"{PROTOCOL}-another-stage-1-0".encode(),
            f"of run another (protocol {PROTOCOL_VERSION}) was turned away: "
            f"this is run run (protocol {PROTOCOL_VERSION})",
        ),
    ],
)
def test_strangers_are_turned_away(control: Control, name: bytes, told: str) -> None:
    control.peer(name).send(encode(Bye()))
    control.hear_until_turned_away(1)
    assert control.server.rejections.news() == [f"here: {THIS_PROCESS} {told}"]


@pytest.mark.parametrize("frames", [[b"junk"], [b""], [b"\x80"], [b"\xc1", b"attached"]])
def test_junk_from_a_stage_is_dropped_and_told_once(control: Control, frames: list[bytes]) -> None:
    peer = control.peer(f"pipeline-{PROTOCOL_VERSION}-run-stage-0-0".encode())
    for _ in range(3):
        peer.send_multipart(frames)
    control.hear_until_turned_away(3)
    (told,) = control.server.rejections.news()
    assert told.startswith("here: stage 0 was turned away: ")
    assert control.server.rejections.summary() == ["here: 3 messages were turned away in all"]
    peer.send(encode(Bye()))
    said = control.server.receive(SOON_S)
    assert said is not None
    assert (said.stage, said.message) == (0, Bye())


def test_who_talks_without_end_does_not_keep_the_coordinator(control: Control) -> None:
    stranger = control.peer(b"stranger")
    for _ in range(100):
        stranger.send(b"look at me")
    assert control.server._listener.poll(5.0)
    assert control.server.receive(0.0) is None
    assert control.server.rejections.count == 1  # the rest waits until it is called again


def test_a_file_larger_than_any_of_this_run_is_not_taken(control: Control) -> None:
    stranger, stage = control.client(1), control.client(2)
    stranger.send(Connected(Carrier("frames")), [bytes((1 << 20) + 1)])
    stage.send(Connected(Carrier("frames")), [bytes(1 << 20)])
    said = control.server.receive(SOON_S)
    assert said is not None
    assert said.stage == 2
    assert control.server.receive(0.1) is None


def test_waits_on_control_end(control: Control) -> None:
    assert control.server.receive(0.0) is None
    assert control.server.receive(TINY_S) is None
    with pytest.raises(TimedOutError) as caught:
        control.client(3).receive(TINY_S)
    assert str(caught.value) == "stage 3 waited 0.0 s for the coordinator: it said nothing"
