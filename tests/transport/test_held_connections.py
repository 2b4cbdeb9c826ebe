"""Strangers who only hold connections: they take no descriptor that the run needs, and no time."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from support.links import SOON_S
from support.processes import DEADLINE_S, TINY, final_digests, launch, until

from pipeline.errors import ConfigError
from pipeline.protocol.credentials import Invitation
from pipeline.protocol.messages import Bye, Heartbeat
from pipeline.schedule.items import Stop
from pipeline.system.descriptors import MOST_RESERVED, Reserve
from pipeline.transport.tcp_port import TcpPort, Where
from pipeline.transport.zmq_control import ZmqControlClient, ZmqControlServer
from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.processes import Launcher

    from pipeline.transport.sockets import Sockets

    Start = Callable[..., Launcher]

NEVER_S = 0.3  # for what must not happen
SILENT, HALF, TRICKLING = b"", b"\xff" + bytes(8) + b"\x7f\x03", b"\xff"
"""What those say who greet no further."""


# --- a port ---------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[TcpPort]:
    with closing(TcpPort(Where("127.0.0.1"))) as port:
        yield port


@pytest.fixture
def accepting(port: TcpPort) -> Iterator[socket.socket]:
    port.open()
    with socket.socket(fileno=port.hand_over()) as listening:
        listening.setblocking(False)
        yield listening


def visit(port: TcpPort) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port.number), timeout=SOON_S)


def test_who_comes_before_a_port_is_opened_is_let_in_then(port: TcpPort) -> None:
    with visit(port) as early:
        assert port.cut_off() == []
        port.open()
        with socket.socket(fileno=port.hand_over()) as listening:
            peer, address = listening.accept()
            with peer:
                assert address == early.getsockname()


def test_a_port_that_is_shut_cuts_off_who_comes_and_nobody_who_is_in(
    port: TcpPort, accepting: socket.socket
) -> None:
    with visit(port) as guest, accepting.accept()[0] as host:
        port.shut()
        with visit(port) as late, visit(port) as later:
            assert port.cut_off() == ["127.0.0.1"] * 2
            assert late.recv(1) == later.recv(1) == b""
        with pytest.raises(BlockingIOError):
            accepting.accept()
        guest.sendall(b"x")
        assert host.recv(1) == b"x"


def test_a_port_can_be_opened_again_and_again(port: TcpPort, accepting: socket.socket) -> None:
    for _ in range(3):
        port.shut()
        with visit(port):
            assert port.cut_off() == ["127.0.0.1"]
        port.open()
        with visit(port) as guest:
            assert port.cut_off() == []
            peer, address = accepting.accept()
            peer.close()
            assert address == guest.getsockname()


def test_a_port_cuts_off_no_more_at_once_than_may_wait(
    port: TcpPort, accepting: socket.socket
) -> None:
    assert accepting
    port._waiting = 3
    port.shut()
    for expected in (3, 1, 0):
        visitors = [visit(port) for _ in range(4)] if expected == 3 else []
        assert len(port.cut_off()) == expected
        for visitor in visitors:
            visitor.close()


@pytest.fixture
def three() -> range:
    """Ports that the system gives to nobody, for each process of tests its own."""
    first = 20000 + 3 * (os.getpid() % 4000)
    return range(first, first + 3)


def test_ports_of_a_range_are_taken_one_by_one_until_there_is_none(three: range) -> None:
    """Though the kernel lets sockets of a user share them."""
    where = Where("127.0.0.1", three)
    with socket.create_server(("127.0.0.1", three[1])), ExitStack() as stack:
        taken = [stack.enter_context(closing(TcpPort(where))) for _ in range(2)]
        assert {port.number for port in taken} == {three[0], three[2]}
        first, last = three[0], three[-1]
        with pytest.raises(
            ConfigError, match=f"^runtime.ports {first}-{last}: no other one is free at 127.0.0.1"
        ):
            TcpPort(where)
    with closing(TcpPort(where)):
        """What was given back can be had again."""


def test_a_port_can_be_had_again_a_moment_after_its_connections(three: range) -> None:
    """A host may have few of them, and its next stage comes within the minute for which the kernel
    remembers a connection at the end that has closed it."""
    for _ in range(3):
        with closing(TcpPort(Where("127.0.0.1", three[:1]))) as port:
            port.open()
            with socket.socket(fileno=port.hand_over()) as listening, visit(port) as guest:
                listening.accept()[0].close()
                assert guest.recv(1) == b""
                port.shut()
                assert port._can_be_shut


@pytest.mark.parametrize(
    ("endpoint", "where"),
    [
        ("tcp://auto:*", Where("127.0.0.1")),
        ("tcp://10.8.0.5:20000-20002", Where("10.8.0.5", range(20000, 20003))),
        ("tcp://127.0.0.0/8:*", Where("127.0.0.1")),
        ("tcp://[::1]:7-7", Where("::1", range(7, 8))),
        ("tcp://[::1/128]:*", Where("::1")),
        ("tcp://[fe80::1%eth0]:*", Where("fe80::1%eth0")),
    ],
)
def test_where_an_endpoint_may_be(endpoint: str, where: Where) -> None:
    assert Where.of(endpoint) == where


@pytest.mark.parametrize(
    ("limit", "size"), [(0, 0), (14, 3), (256, 64), (1024, 256), (1 << 20, MOST_RESERVED)]
)
def test_a_quarter_of_the_descriptors_is_kept_back(limit: int, size: int) -> None:
    reserve, before = Reserve(limit), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        reserve.hold()
        assert len(os.listdir("/proc/self/fd")) == before + size
    reserve.release()
    assert len(os.listdir("/proc/self/fd")) == before


# --- a listener -----------------------------------------------------------------------------


def address_of(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def hold(endpoint: str, said: bytes) -> socket.socket:
    holder = socket.create_connection(address_of(endpoint), timeout=SOON_S)
    holder.sendall(said)
    return holder


def test_control_is_shut_once_all_have_come_and_open_while_one_is_awaited(
    sockets: Sockets,
) -> None:
    server = ZmqControlServer(sockets, "tcp://127.0.0.1:*", "run", most_bytes=1000)

    def come(stage: int, attempt: int) -> None:
        invitation = Invitation("run", stage, attempt, server.endpoint)
        for role in ("stage", "heartbeat"):
            assert server.absent == {stage}
            client = ZmqControlClient(sockets, invitation, role)
            client.send(Bye() if role == "stage" else Heartbeat(0, 0, "starting", 0.0))
            assert server.receive(SOON_S) is not None
        assert server.absent == set()

    def cuts_off() -> bool:
        before = sockets.rejections.count
        with hold(server.endpoint, SILENT) as late:
            until(
                lambda: server.receive(0.0) or sockets.rejections.count > before,
                "the count",
                SOON_S,
            )
            return late.recv(1) == b""

    server.expect(0, 0)
    come(0, 0)
    assert cuts_off()
    assert sockets.rejections.news() == [
        "here: 127.0.0.1 was turned away: all processes of this run that connect here have"
    ]
    server.expect(3, 1)
    assert server.receive(0.0) is None
    come(3, 1)
    assert cuts_off()
    server.close()


@pytest.mark.parametrize("said", [SILENT, HALF, TRICKLING])
def test_who_does_not_greet_in_time_is_cut_off(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("pipeline.transport.sockets._GREETING_MS", 50)
    server = ZmqControlServer(sockets, "tcp://127.0.0.1:*", "run", most_bytes=1000)
    server.expect(0, 0)
    assert server.receive(0.0) is None
    with hold(server.endpoint, said) as holder:
        assert holder.recv(100)[:1] in (b"", b"\xff")  # a greeting, if any
        while holder.recv(100):
            pass
    until(lambda: server.receive(0.0) or sockets.rejections.count, "the count of it", SOON_S)
    server.close()


def test_a_link_lets_in_its_one_sender(sockets: Sockets) -> None:
    receiver = ZmqReceiver(
        sockets, "tcp://127.0.0.1:*", "run", names=("b", "a"), slots=1, slot_bytes=64
    )
    endpoint = receiver.address.endpoint
    with hold(endpoint, HALF):
        sender = ZmqSender(sockets, receiver.address, "run", names=("a", "b"), timeout_s=SOON_S)
        sender.send(Stop())
        assert receiver.receive(SOON_S).item == Stop()
        with hold(endpoint, SILENT) as late:
            until(lambda: receiver.queued or sockets.rejections.count, "the count of it", SOON_S)
            assert late.recv(1) == b""
        sender.finish()  # the link goes on
    sender.close()
    receiver.close()


def test_failures_that_nobody_reads_stop_nothing(sockets: Sockets) -> None:
    """libzmq's thread would wait until there is room for what it has to say of them."""
    listener = sockets.listen("tcp://127.0.0.1:*", 1000)
    listener.open()
    sender = sockets.connect(listener.endpoint, b"sender", None)
    for _ in range(2500):
        hold(listener.endpoint, b"\xff" + bytes(8) + b"\x7f\x03\x00nonsense".ljust(60)).close()
    sender.send(b"still here")
    assert listener._socket.poll(SOON_S * 1000)
    listener.close()


# --- a run ----------------------------------------------------------------------------------

LIMIT, HOLDERS = 256, 300
LIMITED = (
    f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); "
    "from launch.cli import main; main()"
)


class Holders:
    """Hold connections to every port of a run, from its first moment on; whoever is cut off
    comes again, up to `most` times in all."""

    def __init__(self, run: Launcher, most: int) -> None:
        self._run, self._left = run, most
        self._held: dict[int, list[socket.socket]] = {}
        self.cut_off = 0

    def look(self) -> bool:
        """Fill up; whether the run has ended."""
        for port in self._run.ports():
            held = self._held.setdefault(port, [])
            held[:] = [holder for holder in held if self._is_held(holder)]
            while len(held) < HOLDERS and self._left:
                held.append(self._another(port))
        return self._run.process.poll() is not None

    @property
    def ports(self) -> int:
        """How many were found."""
        return len(self._held)

    def close(self) -> None:
        """Let go."""
        for holder in (holder for held in self._held.values() for holder in held):
            holder.close()

    def _another(self, port: int) -> socket.socket:
        self._left -= 1
        holder = socket.socket()
        holder.setblocking(False)
        holder.connect_ex(("127.0.0.1", port))
        return holder

    def _is_held(self, holder: socket.socket) -> bool:
        try:
            holder.send((SILENT, HALF, TRICKLING)[holder.fileno() % 3])
            if holder.recv(100):
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        holder.close()
        self.cut_off += 1
        return False


MORE = ("schedule.epochs=15", "runtime.keep_checkpoints=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Weights of the run of which nobody holds a connection."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    assert launch(folder / "tiny.yaml", folder / "run", single=True, overrides=MORE) == 0
    return final_digests(folder / "run")


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("transport", ["tcp", "tcp-plain"])
def test_holders_change_nothing(
    launcher: Start, tmp_path: Path, undisturbed: dict[int, str], transport: str
) -> None:
    given = [option for value in MORE for option in ("--set", value)]
    given += ["--set", f"runtime.transport={transport}", "--run-dir", "run", "--stages", "2"]
    run = launcher("tiny.yaml", *given, program=LIMITED)
    with closing(Holders(run, most=10 * HOLDERS)) as holders:
        until(holders.look, "the end of the run", 2 * DEADLINE_S)
    assert run.exit_status() == 0, run.stderr
    assert final_digests(tmp_path / "run") == undisturbed
    assert 3 <= holders.ports <= 5  # control, two links, a stream of each until it is opened
    assert holders.cut_off > 0
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "restart" not in log
    assert "was turned away" in log
