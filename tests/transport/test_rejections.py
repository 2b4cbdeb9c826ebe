"""Strangers on the ports of a run: they read nothing, write nothing, and stop nothing."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from contextlib import closing, suppress
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

import msgpack
import psutil
import pytest
import zmq
from support.kept_sockets import KeptSockets
from support.links import SOON_S
from support.processes import (
    HELD,
    STRANGER,
    TINY,
    TINY_EPOCH,
    digests,
    final_digests,
    launch,
    until,
)

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

    from pipeline.protocol.addresses import LinkAddress
    from pipeline.protocol.credentials import KeyPair

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


def new_keys() -> KeyPair:
    keys = make_keys()
    assert keys is not None, "pyzmq's own wheel has CURVE"
    return keys


class House:
    """The coordinator's control socket of a run that has keys, listening on loopback; two stages
    are expected, each from a host of its own."""

    def __init__(self) -> None:
        self.opened = list[KeptSockets]()
        self.keys = new_keys()
        self.hosts = (new_keys(), new_keys())
        self.server = self.control(self.keys)
        for stage, host in enumerate(self.hosts):
            self.server.admit(stage, 0, host.public)
            self.server.expect(stage, 0)

    def with_keys(self, keys: KeyPair | None) -> KeptSockets:
        self.opened.append(KeptSockets(Rejections("control"), keys))
        return self.opened[-1]

    def control(self, keys: KeyPair) -> ZmqControlServer:
        sockets = self.with_keys(keys)
        return ZmqControlServer(sockets, "tcp://127.0.0.1:*", "run", most_bytes=1000)

    def client(
        self, stage: int, keys: KeyPair | None, attempt: int = 0, endpoint: str = ""
    ) -> ZmqControlClient:
        endpoint, key = endpoint or self.server.endpoint, self.keys.public if keys else None
        invitation = Invitation("run", stage, attempt, endpoint, coordinator=key)
        return ZmqControlClient(self.with_keys(keys), invitation)

    def hears(self, client: ZmqControlClient) -> bool:
        """Whether it takes the client for a stage."""
        client.send(Bye())
        return self.server.receive(NEVER_S) is not None

    def link(self) -> ZmqReceiver:
        """Into stage 1, open; nobody is admitted yet."""
        sockets, names = self.with_keys(self.hosts[1]), ("stage 1", "stage 0")
        receiver = ZmqReceiver(
            sockets, "tcp://127.0.0.1:*", "run", names=names, slots=1, slot_bytes=64
        )
        receiver._listener.open()
        return receiver

    def sender(self, keys: KeyPair | None, address: LinkAddress) -> ZmqSender:
        """It has said its first words, perhaps to nobody."""
        sender = ZmqSender(self.with_keys(keys), address, "run", names=("a", "b"), timeout_s=SOON_S)
        sender.send(Stop())
        return sender


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    for sockets in house.opened:
        sockets.close(0)


def test_processes_of_a_run_understand_each_other(house: House) -> None:
    for stage, keys in enumerate(house.hosts):
        client = house.client(stage, keys)
        client.send(Bye())
        said = house.server.receive(SOON_S)
        assert said is not None
        assert said.stage == stage
        house.server.send(stage, Connect(None))
        assert client.receive(SOON_S).message == Connect(None)
        client.close()
    assert house.server.rejections.summary() == []


def test_who_came_since_the_last_look_is_in_the_summary(house: House) -> None:
    """Listeners look for strangers now and then; at the end of a run there is no next time."""
    sockets = house.with_keys(None)
    listener = sockets.listen("tcp://127.0.0.1:*", most_bytes=1000)
    host, port = listener.endpoint.removeprefix("tcp://").rsplit(":", 1)
    listener.open()
    listener.shut()
    listener.poll(0.0)
    for _ in range(3):
        socket.create_connection((host, int(port))).close()
    assert sockets.rejections.summary() == [
        "control: 127.0.0.1 was turned away: all processes of this run that connect here have",
        "control: 3 messages were turned away in all",
    ]
    listener.close()
    assert sockets.rejections.summary() == ["control: 3 messages were turned away in all"]


def test_keys_of_another_run_do_not_open(house: House) -> None:
    stranger = new_keys()
    assert not house.hears(house.client(0, stranger))
    until(lambda: house.server.rejections.count, "the refusal of a key")
    told = house.server.rejections.news()  # perhaps also that a greeting has failed, which follows
    assert told[0] == (
        f"control: key {stranger.public} was turned away: nobody who is expected there holds it"
    )


def test_a_host_speaks_for_none_but_its_own_stages(house: House) -> None:
    assert not house.hears(house.client(0, house.hosts[1]))
    assert house.server.absent == {0, 1}
    assert house.server.rejections.news() == [
        f"control: key {house.hosts[1].public} was turned away: it speaks for stage 0, whose host "
        "holds another"
    ]
    assert house.hears(house.client(1, house.hosts[1]))


def test_a_stage_that_moves_brings_the_key_of_its_new_host(house: House) -> None:
    """Its process of before is heard no more, whatever it says of itself."""
    before, after = house.client(0, house.hosts[0]), new_keys()
    assert house.hears(before)
    house.server.expect(0, 1)
    assert house.server.key_before(1) is None
    assert not house.hears(house.client(0, house.hosts[0], attempt=1))
    house.server.admit(0, 1, after.public)
    assert house.server.key_before(1) == after.public
    assert not house.hears(before)
    assert not house.hears(house.client(0, after))
    assert house.hears(house.client(0, after, attempt=1))


def test_of_stages_on_one_host_each_speaks_for_itself(house: House) -> None:
    house.server.admit(1, 1, house.hosts[0].public)
    house.server.expect(1, 1)
    for stage in (0, 1):
        assert house.hears(house.client(stage, house.hosts[0], attempt=stage))
    assert house.server.rejections.count == 0


def test_what_is_replayed_is_not_heard_again(house: House) -> None:
    """All that a stage has sent, byte by byte, over a connection that somebody makes later."""
    with closing(Eavesdropper(house.server.endpoint)) as between:
        assert house.hears(house.client(0, house.hosts[0], endpoint=between.endpoint))
        assert len(between.heard) > len(GREETING)
        between.replay()
        assert house.server.receive(NEVER_S) is None


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
    assert not house.hears(house.client(0, None))


def test_an_impostor_at_the_address_learns_nothing(house: House) -> None:
    """The client asks for the coordinator's key; the listener holds that of a host of the run."""
    server = house.control(house.hosts[1])
    server.admit(0, 0, house.hosts[0].public)
    server.expect(0, 0)
    client = house.client(0, house.hosts[0], endpoint=server.endpoint)
    client.send(Bye())
    assert server.receive(NEVER_S) is None
    with pytest.raises(TimedOutError):
        client.receive(NEVER_S)


def test_a_link_lets_in_the_stage_before_and_no_other_of_the_run(house: House) -> None:
    receiver = house.link()
    assert receiver.address.key == house.hosts[1].public
    house.sender(house.hosts[0], receiver.address)
    until(lambda: receiver._rejections.count, "the refusal: nobody is admitted yet", SOON_S)
    receiver.admit(house.hosts[0].public)
    for others in (None, new_keys(), house.hosts[1], house.keys):
        house.sender(others, receiver.address)
    assert not receiver._listener.poll(NEVER_S)
    house.sender(house.hosts[0], receiver.address)
    assert receiver.receive(SOON_S).item == Stop()
    receiver.close()


def test_the_key_of_the_stage_before_is_not_enough_without_the_word(house: House) -> None:
    receiver = house.link()
    receiver.admit(house.hosts[0].public)
    house.sender(house.hosts[0], replace(receiver.address, word="f" * 32))
    until(lambda: receiver.queued or receiver._rejections.count, "the refusal", SOON_S)
    house.sender(house.hosts[0], receiver.address)
    assert receiver.receive(SOON_S).item == Stop()
    receiver.close()


def test_a_link_that_is_replayed_takes_nothing_twice(house: House) -> None:
    receiver = house.link()
    receiver.admit(house.hosts[0].public)
    with closing(Eavesdropper(receiver.address.endpoint)) as between:
        house.sender(house.hosts[0], replace(receiver.address, endpoint=between.endpoint))
        assert receiver.receive(SOON_S).item == Stop()
        receiver._listener._port.open()  # as if it let others in again
        between.replay()
        assert not receiver._listener.poll(NEVER_S)
    receiver.close()


def test_secrets_are_not_printed() -> None:
    pairs = [new_keys() for _ in range(4)]
    assert len({pair.secret for pair in pairs} | {pair.public for pair in pairs}) == 8
    assert all(pair.secret not in repr(pair) for pair in pairs)


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


class Eavesdropper:
    """Stands between one peer and a listener, hands on what they say, and keeps what the peer
    says."""

    def __init__(self, endpoint: str) -> None:
        self._host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._port, self.heard = int(port), b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = [self._listening]
        Thread(target=self._serve, daemon=True).start()

    def replay(self) -> None:
        """To the listener, from the beginning."""
        again = socket.create_connection((self._host, self._port))
        self._open.append(again)
        again.sendall(self.heard)

    def close(self) -> None:
        for opened in self._open:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _serve(self) -> None:
        with suppress(OSError):
            peer, _ = self._listening.accept()
            there = socket.create_connection((self._host, self._port))
            self._open += [peer, there]
            Thread(target=self._pass_on, args=(there, peer), daemon=True).start()
            self._pass_on(peer, there, kept=True)

    def _pass_on(self, one: socket.socket, other: socket.socket, *, kept: bool = False) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                self.heard += data if kept else b""
                other.sendall(data)


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
        for keys in (None, new_keys()):
            for name, frames in letters():
                self._post(port, name, frames, keys)

    def _post(self, port: int, name: bytes, frames: list[bytes], keys: KeyPair | None) -> None:
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, name)
        if keys:
            dealer.curve_serverkey = keys.public.encode()
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


LONGER = ("schedule.epochs=20", "runtime.keep_checkpoints=1", "runtime.stall_timeout_s=100")
LAST = 20 * TINY_EPOCH


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Weights of the run that no stranger visits."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    assert launch(folder / "tiny.yaml", folder / "run", single=True, overrides=LONGER) == 0
    return final_digests(folder / "run")


BETWEEN_HOSTS = """\
from launch.engines import local
from support import processes

local._work = processes.work_among_wiretappers
"""


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("transport", "program", "n_ports"),
    [("tcp", "", 4), ("tcp-plain", "", 4), ("tcp", BETWEEN_HOSTS, 7)],
    ids=["tcp", "tcp-plain", "between-hosts"],
)
def test_training_goes_on_with_unchanged_results(
    launcher: Start,
    tmp_path: Path,
    undisturbed: dict[int, str],
    transport: str,
    program: str,
    n_ports: int,
) -> None:
    """They come while it trains, and it has some steps left when they have been everywhere: at the
    ports of control, of a link to each of 3 stages, and between hosts of a stream to each. There,
    somebody also changes a bit of each stream, and replays what it has heard of it."""
    given = [option for value in LONGER for option in ("--set", value)]
    given += ["--run-dir", "run", "--set", f"runtime.transport={transport}"]
    run = launcher("tiny.yaml", *given, program=program + HELD.format(step=LAST - TINY_EPOCH))
    run.wait_for("run/metrics.jsonl", "\n")
    with closing(Strangers(run)) as strangers:
        ports = strangers.ports()
        assert len(ports) == n_ports
        for port in ports:
            strangers.visit(port)
        strangers.ports()
        (tmp_path / "released").touch()
        assert run.exit_status() == 0, run.stderr
    assert max(digests(tmp_path / "run")) == LAST
    assert final_digests(tmp_path / "run") == undisturbed
    assert strangers.largest_bytes < 2 << 30
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "restart" not in log
    assert log.count(" was turned away: ") >= 4  # by each process
    if program:
        for link in ("0 → 1", "1 → 2"):
            assert f"link {link}: tensors travel as a sealed stream" in log
        assert log.count("the seal of its bytes is broken") == 2
        assert log.count("broke and was opened again") == 2
        assert log.count(f"{STRANGER} was turned away: it does not know the secret") == 2


def test_the_folder_of_sockets_is_closed_to_others() -> None:
    with socket_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == os.getuid()
