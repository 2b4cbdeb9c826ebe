"""Strangers on the ports of a run: they read nothing, write nothing, and stop nothing."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack
import psutil
import pytest
import zmq
from support.kept_sockets import KeptSockets
from support.links import SOON_S
from support.processes import final_digests, launch, until

from pipeline.errors import TimedOutError
from pipeline.protocol.codec import encode
from pipeline.protocol.credentials import Invitation
from pipeline.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    Connect,
    Header,
    Hello,
    OpenLink,
    TensorSpec,
)
from pipeline.schedule.items import Stop, TrainBatch
from pipeline.transport.rejections import MOST_PEERS, Rejections
from pipeline.transport.sockets import make_keys, socket_folder
from pipeline.transport.zmq_control import ZmqControlClient, ZmqControlServer
from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.processes import Launcher

    from pipeline.protocol.credentials import Keys

    Start = Callable[..., Launcher]

NEVER_S = 0.3  # for what must not happen: a message within this process takes less than 1 ms


# --- what is counted and told --------------------------------------------------------------


def test_each_peer_is_told_of_once_and_all_are_counted() -> None:
    rejections = Rejections("the port")
    for _ in range(3):
        rejections.reject("a", "it is loud")
    rejections.reject("b", "it is late")
    assert rejections.news() == [
        "the port: a was turned away: it is loud",
        "the port: b was turned away: it is late",
    ]
    rejections.reject("a", "it is back")
    assert rejections.news() == []
    assert rejections.summary() == ["the port: 5 messages were turned away in all"]
    assert Rejections("another").summary() == []


def test_strangers_can_not_fill_the_log() -> None:
    rejections = Rejections("the port")
    for peer in range(1000):
        rejections.reject(str(peer), "it is one of many")
    news = rejections.news()
    assert len(news) == MOST_PEERS
    assert news[-1].endswith("it is one of many; further peers are only counted")
    assert rejections.count == 1000


# --- keys ----------------------------------------------------------------------------------


class House:
    """The coordinator's sockets of a run that has keys, listening on loopback."""

    def __init__(self, keys: tuple[Keys, ...]) -> None:
        self.keys, self.opened = keys, list[KeptSockets]()
        self.sockets = self.with_keys(keys[0])
        self.server = ZmqControlServer(self.sockets, "tcp://127.0.0.1:*", "run", most_bytes=1000)
        for stage in range(len(keys) - 1):
            self.server.expect(stage, 0)

    def with_keys(self, keys: Keys | None) -> KeptSockets:
        self.opened.append(KeptSockets(Rejections("control"), keys))
        return self.opened[-1]

    def client(self, stage: int, keys: Keys | None, endpoint: str = "") -> ZmqControlClient:
        endpoint = endpoint or self.server.endpoint
        return ZmqControlClient(
            self.with_keys(keys), Invitation("run", stage, 0, endpoint, keys=keys)
        )


@pytest.fixture
def house() -> Iterator[House]:
    house = House(make_keys(2))
    yield house
    for sockets in house.opened:
        sockets.close(0)


def test_processes_of_a_run_understand_each_other(house: House) -> None:
    for stage in (0, 1):
        client = house.client(stage, house.keys[stage + 1])
        client.send(Bye())
        said = house.server.receive(SOON_S)
        assert said is not None
        assert said.stage == stage
        house.server.send(stage, Connect(None))
        assert client.receive(SOON_S).message == Connect(None)
        client.close()
    assert house.server.rejections.summary() == []


def test_keys_of_another_run_do_not_open(house: House) -> None:
    stranger = make_keys(1)[1]
    lost = replace(stranger, coordinator=house.keys[0].coordinator)
    client = house.client(0, lost)
    client.send(Bye())
    assert house.server.receive(NEVER_S) is None
    until(lambda: house.server.rejections.count, "the refusal of a key")
    told = house.server.rejections.news()  # perhaps also that a greeting has failed, which follows
    assert told[0] == (
        f"control: key {stranger.public} was turned away: no process of this run holds it"
    )


def test_who_leaves_before_the_greeting_is_over_was_not_turned_away(house: House) -> None:
    """Our own processes do, where they are killed then; one that greets otherwise is a stranger."""
    host, port = house.server.endpoint.removeprefix("tcp://").rsplit(":", 1)
    greeting = b"\xff" + bytes(7) + b"\1\x7f\3\1%s\0" + bytes(31)
    for sent in (b"", greeting[:10], greeting % b"CURVE".ljust(19, b"\0")):
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(sent)
    assert house.server.receive(NEVER_S) is None
    assert house.server.rejections.count == 0
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(greeting % b"NULL".ljust(19, b"\0"))
        assert house.server.receive(NEVER_S) is None
        until(lambda: house.server.receive(0.0) or house.server.rejections.count, "the refusal")


def test_without_keys_nobody_is_heard(house: House) -> None:
    client = house.client(0, None)
    client.send(Bye())
    assert house.server.receive(NEVER_S) is None


def test_an_impostor_at_the_address_learns_nothing(house: House) -> None:
    """The client asks for the coordinator's key; the listener holds another of the same run."""
    impostor = house.with_keys(house.keys[2])
    server = ZmqControlServer(impostor, "tcp://127.0.0.1:*", "run", most_bytes=1000)
    client = house.client(0, house.keys[1], server.endpoint)
    client.send(Bye())
    assert server.receive(NEVER_S) is None
    with pytest.raises(TimedOutError):
        client.receive(NEVER_S)


def test_links_have_keys_too(house: House) -> None:
    receiver = ZmqReceiver(
        house.with_keys(house.keys[2]),
        "tcp://127.0.0.1:*",
        "run",
        names=("stage 1", "stage 0"),
        slots=1,
        slot_bytes=64,
    )
    assert receiver.address.key == house.keys[2].public
    receiver._listener.open()
    for keys, heard in ((None, False), (make_keys(0)[0], False), (house.keys[1], True)):
        sender = ZmqSender(
            house.with_keys(keys), receiver.address, "run", names=("a", "b"), timeout_s=SOON_S
        )
        sender.send(Stop())
        assert receiver._listener.poll(SOON_S if heard else NEVER_S) is heard
        sender._socket.close(linger=0)
    assert receiver.receive(SOON_S).item == Stop()
    receiver.close()


def test_secrets_are_not_printed() -> None:
    keys = make_keys(3)
    assert len({pair.secret for pair in keys} | {pair.public for pair in keys}) == 8
    assert all(pair.secret not in repr(pair) for pair in keys)


# --- strangers on the ports of a run --------------------------------------------------------

OTHER_RUN = "0123456789abcdef"
ENDLESS = msgpack.packb({"type": "Header", "tensors": [[2**62] * 1000] * 100})
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
ABSURD_FRAME = b"\x02" + struct.pack(">Q", 2**62)


def raw_visits(draws: random.Random) -> list[bytes]:
    """What somebody may send who does not speak ZeroMQ, or speaks it badly."""
    return [
        draws.randbytes(10),
        draws.randbytes(100_000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01" + draws.randbytes(300),
        GREETING[:20],
        GREETING + draws.randbytes(1000),
        GREETING + READY + ABSURD_FRAME + bytes(1000),
        GREETING + READY + b"\x03" + struct.pack(">Q", 1 << 40) + bytes(1000),
    ]


def letters() -> list[tuple[bytes, list[bytes]]]:
    """(name, frames) of somebody who speaks it well: absurd sizes, recordings of another run."""
    other = f"pipeline-{PROTOCOL_VERSION}-{OTHER_RUN}-stage-0-0".encode()
    absurd = encode(Header(TrainBatch(1, 1, 0.1), (TensorSpec("uint8", (1 << 30,)),), slot=0))
    return [
        (b"stranger", [b"junk"]),
        (b"stranger", [encode(Header(Stop()))]),
        (b"stranger", [ENDLESS]),
        (b"stranger", [absurd, bytes(100)]),
        (b"stranger", [b""] * 1000),
        (b"stranger", [bytes(5_000_000)]),
        (other, [encode(Hello(OTHER_RUN, PROTOCOL_VERSION, 1))]),
        (other, [encode(OpenLink(OTHER_RUN, PROTOCOL_VERSION))]),
        (f"pipeline-1-{OTHER_RUN}-stage-1-0".encode(), [encode(Hello(OTHER_RUN, 1, 1))]),
        (b"f" * 32, [encode(OpenLink(OTHER_RUN, PROTOCOL_VERSION))]),
    ]


class Strangers:
    """Visit every port of a run, again and again, until they have been everywhere."""

    def __init__(self, run: Launcher) -> None:
        self.run, self.draws = run, random.Random(0)
        self.context = zmq.Context()
        self.held: list[socket.socket] = []
        self.largest_bytes = 0

    def ports(self) -> list[int]:
        for process in self.run.family():
            with suppress(psutil.Error):
                self.largest_bytes = max(self.largest_bytes, process.memory_info().rss)
        return self.run.ports()

    def visit(self, port: int) -> None:
        for data in raw_visits(self.draws):
            with suppress(OSError):
                visitor = socket.create_connection(("127.0.0.1", port), timeout=1)
                self.held.append(visitor)  # they stay, and say no more
                visitor.sendall(data)
        for keys in (None, make_keys(0)[0]):
            for name, frames in letters():
                self._post(port, name, frames, keys)

    def _post(self, port: int, name: bytes, frames: list[bytes], keys: Keys | None) -> None:
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, name)
        if keys:
            dealer.curve_serverkey = keys.coordinator.encode()
            dealer.curve_publickey = keys.public.encode()
            dealer.curve_secretkey = keys.secret.encode()
        dealer.connect(f"tcp://127.0.0.1:{port}")
        with suppress(zmq.Again):  # it may have been refused already
            dealer.send_multipart(frames, zmq.DONTWAIT)
        time.sleep(0.005)
        assert not dealer.poll(0), "nothing is told to strangers"
        dealer.close(linger=100)

    def close(self) -> None:
        for visitor in self.held:
            visitor.close()
        self.context.destroy(linger=0)


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("transport", ["tcp", "tcp-plain"])
def test_training_goes_on_with_unchanged_results(
    launcher: Start, tmp_path: Path, transport: str
) -> None:
    longer = ("schedule.epochs=180", "runtime.keep_checkpoints=1")
    assert launch(tmp_path / "tiny.yaml", tmp_path / "single", single=True, overrides=longer) == 0
    given = [option for value in longer for option in ("--set", value)]
    run = launcher(
        "tiny.yaml", *given, "--run-dir", "run", "--set", f"runtime.transport={transport}"
    )
    run.wait_for("run/metrics.jsonl", "\n")
    with closing(Strangers(run)) as strangers:
        ports = strangers.ports()
        assert len(ports) == 4  # control and a link to each of 3 stages
        for port in ports:
            strangers.visit(port)
        strangers.ports()
        still_training = run.process.poll() is None
        assert run.exit_status() == 0, run.stderr
    assert still_training, "they came too late to disturb anything"
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "single")
    assert strangers.largest_bytes < 2 << 30
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "restart" not in log
    assert log.count(" was turned away: ") >= len(ports)


def test_the_folder_of_sockets_is_closed_to_others() -> None:
    with socket_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == os.getuid()
