"""The sockets of a process: who may open one to it, and how much it may send. The only file that
imports zmq.

Sockets that listen are ROUTERs, which know each peer by its identity; those that connect are
DEALERs. Over `ipc` the permissions of the socket's folder keep others out. Over `tcp` CURVE does:
messages are encrypted, a peer proves that it holds a key that the listener admits (ZAP), and the
listener proves that it holds the key that was asked for. `tcp-plain` has no access control.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from pipeline.errors import ConfigError
from pipeline.protocol.credentials import KeyPair
from pipeline.transport.tcp_port import TcpPort, Where

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zmq.auth.thread import ThreadAuthenticator

    from pipeline.transport.rejections import Rejections

Socket: TypeAlias = "zmq.Socket[bytes]"
Frames: TypeAlias = "Sequence[bytes | memoryview]"

LINGER_MS = 2000
_GREETING_MS = 2000
"""ZeroMQ's handshake over TCP has to end in this time: a connection that says nothing, or half of
it, holds a descriptor no longer. A worker that is late connects again."""
_LOCAL = re.compile(r"localhost:(?P<uid>\d+):\d+:(?P<pid>\d+)")
_FAILED_GREETINGS = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_LEFT = (errno.EPIPE, errno.ECONNRESET)
"""Why a handshake failed whose peer left before its end, as a worker does that is killed then."""
_LOOKS_EVERY_S = 0.5
"""Meanwhile connections of strangers wait in the kernel, and take no time of this process."""
_WAITING_MESSAGES = 1000
"""That a peer may have waiting at a listener; ours have a few."""
_LONGEST_FOLDER = 70
"""The kernel takes a path of 107 bytes; the folder's own name and the socket's are added to it."""


class Envelope:
    """A received message: the identity of its sender, and its frames."""

    def __init__(self, frames: list[zmq.Frame]) -> None:
        self.name = frames[0].bytes
        self.frames = [frame.buffer for frame in frames[1:]]
        self._last = frames[-1]

    @property
    def peer(self) -> str:
        """The sender, for a log: its IP address, or its process."""
        try:
            address = str(self._last.get("Peer-Address"))
        except zmq.ZMQError:  # libzmq does not always know
            return "somebody"
        local = _LOCAL.fullmatch(address)
        return f"process {local['pid']} (user {local['uid']})" if local else address

    @property
    def key(self) -> str | None:
        """The public key that the sender has proved to hold; None where there are none."""
        try:
            return str(self._last.get("User-Id")) or None
        except zmq.ZMQError:  # it was asked for none
            return None


class Listener:
    """A socket to which others connect, and which knows each by the identity it has chosen.

    Over `tcp` connections are accepted only between `open` and `shut`, and cut off afterwards. Over
    `ipc` it is always open.

    Args:
        failures: libzmq's events of failed handshakes.
        port: where it listens over `tcp`.
        rejections: counts connections that were cut off, and failed handshakes.
        allowed: the keys of those who may connect; None: no encryption.
    """

    def __init__(
        self,
        socket: Socket,
        failures: Socket,
        endpoint: str,
        port: TcpPort | None,
        rejections: Rejections,
        allowed: _AllowList | None,
    ) -> None:
        self._socket, self._failures, self._allowed = socket, failures, allowed
        self._port, self._rejections = port, rejections
        self._is_open, self._was_open = port is None, port is None
        self._look_again = 0.0
        self.endpoint = endpoint
        """Where it listens, the port that the system chose included."""
        self.where = port.where if port else None
        """Where other ports of this link may be."""
        rejections.watch(self._reject_strangers)

    def admit(self, keys: Iterable[str | None]) -> None:
        """From now on who connects must hold one of these public keys; until then nobody gets in.
        Without encryption there are none to tell anybody by."""
        if self._allowed is not None:
            self._allowed.keys = frozenset(keys)

    def open(self) -> None:
        """Let peers in, for the first time or again."""
        if self._port is None or self._is_open:
            return
        self._port.open()
        if not self._was_open:
            self._socket.setsockopt(zmq.USE_FD, self._port.hand_over())
            _bind(self._socket, self.endpoint)
        self._is_open = self._was_open = True

    def shut(self) -> None:
        """Go on with the peers that are in; let in no others."""
        if self._port is not None and self._is_open:
            self._port.shut()
            self._is_open = False

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message; whether one is there."""
        if monotonic() > self._look_again:
            self._look_again = monotonic() + _LOOKS_EVERY_S
            self._reject_strangers()
        return waits(self._socket) or bool(timeout_s > 0 and self._socket.poll(ms(timeout_s)))

    def _reject_strangers(self) -> None:
        while waits(self._failures):
            if parse_monitor_message(self._failures.recv_multipart())["value"] not in _LEFT:
                self._rejections.reject(
                    "somebody", "it did not greet in time as a process of this run does"
                )
        for address in self._port.cut_off() if self._port else ():
            self._rejections.reject(address, "all processes of this run that connect here have")

    def take(self) -> Envelope:
        """The next message; waits until one is there."""
        return Envelope(self._socket.recv_multipart(copy=False))

    def send(self, name: bytes, frames: Frames) -> None:
        """To the peer of that identity. That it has left is no error here: the watchdog sees it."""
        try:
            self._socket.send_multipart([name, *frames], zmq.DONTWAIT, copy=len(frames) == 1)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise

    def close(self, linger_ms: int = 0) -> None:
        self._rejections.unwatch(self._reject_strangers)
        self._socket.disable_monitor()
        self._failures.close(linger=0)
        self._socket.close(linger=linger_ms)
        if self._port:
            self._port.close()


class Sockets:
    """The ZeroMQ context of a process.

    Args:
        rejections: counts those who are kept out.
        keys: of this process's host; None: no encryption.
    """

    def __init__(self, rejections: Rejections, keys: KeyPair | None = None) -> None:
        self._context: zmq.Context[Socket] = zmq.Context()
        self.rejections, self._keys = rejections, keys
        self._guard: ThreadAuthenticator | None = None
        self._domains = count()
        self._ports: list[TcpPort] = []

    def listen(self, endpoint: str, most_bytes: int) -> Listener:
        """A socket to which others connect.

        Args:
            endpoint: `ipc://PATH`, or as `Where.of` reads it.
            most_bytes: of a frame; a peer that announces more is disconnected before memory is
                allocated for it.

        Raises:
            ConfigError: where the address can't be bound, or there is none such.
        """
        socket = self._socket(zmq.ROUTER, endpoint)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
        socket.set_hwm(0)
        socket.setsockopt(zmq.RCVHWM, _WAITING_MESSAGES)
        allowed = self._guarded(socket, self._keys) if self._keys else None
        if endpoint.startswith("tcp:"):
            socket.setsockopt(zmq.HANDSHAKE_IVL, _GREETING_MS)
            where = Where.of(endpoint)
            try:
                port = TcpPort(where)
            except OSError as error:
                raise ConfigError(
                    f"can't listen at {where.host} on host {os.uname().nodename}: "
                    f"{error.strerror}; runtime.bind_address may be a network, as 10.8.0.0/16, of "
                    "which each host takes its own address"
                ) from None
            self._ports.append(port)
            return Listener(
                socket, self._failures(socket), port.endpoint, port, self.rejections, allowed
            )
        _bind(socket, endpoint)
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return Listener(socket, self._failures(socket), endpoint, None, self.rejections, allowed)

    def connect(self, endpoint: str, name: bytes, key: str | None) -> Socket:
        """A socket connected to a listener.

        Args:
            name: the identity by which the listener knows this end.
            key: the public key that the listener must prove to hold.
        """
        socket = self._socket(zmq.DEALER, endpoint)
        socket.set_hwm(0)  # credits bound what is in flight; high-water marks are approximate
        socket.setsockopt(zmq.IDENTITY, name)
        if self._keys:
            assert key, "a process with keys knows those of the listeners it connects to"
            socket.curve_serverkey = key.encode()
            socket.curve_publickey = self._keys.public.encode()
            socket.curve_secretkey = self._keys.secret.encode()
        socket.connect(endpoint)
        return socket

    @property
    def key(self) -> str | None:
        """The public key by which others know this process."""
        return self._keys.public if self._keys else None

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close every socket, giving what was sent a moment to leave."""
        if self._guard:
            self._guard.stop()
        self._context.destroy(linger=linger_ms)
        for port in self._ports:
            port.close()

    def _guarded(self, socket: Socket, keys: KeyPair) -> _AllowList:
        """Have a listening socket ask who connects for a key; nobody's is admitted yet."""
        if self._guard is None:  # one thread answers ZAP for all of the process
            from zmq.auth.thread import ThreadAuthenticator  # asyncio: only where it is needed

            self._guard = ThreadAuthenticator(self._context)
            self._guard.start()
        allowed, domain = _AllowList(self.rejections), f"listener-{next(self._domains)}"
        self._guard.configure_curve_callback(domain, allowed)
        socket.zap_domain = domain.encode()
        socket.curve_server = True
        socket.curve_secretkey = keys.secret.encode()
        return allowed

    def _failures(self, socket: Socket) -> Socket:
        """As many as there are may wait to be read: libzmq would have its one thread, which all
        sockets share, wait for room."""
        endpoint = f"inproc://failures-{socket.getsockopt(zmq.FD)!r}"
        socket.monitor(endpoint, _FAILED_GREETINGS)
        failures = self._socket(zmq.PAIR, endpoint)
        failures.setsockopt(zmq.RCVHWM, 0)
        failures.connect(endpoint)
        return failures

    def _socket(self, kind: int, endpoint: str) -> Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        return socket


class _AllowList:
    """Answers, in another thread, whether a key may connect to one listener."""

    def __init__(self, rejections: Rejections) -> None:
        self.keys: frozenset[str | None] = frozenset()
        self._rejections = rejections

    def callback(self, domain: str, key: bytes) -> bool:
        known = key.decode("ascii") in self.keys
        if not known:
            self._rejections.reject(
                f"key {key.decode('ascii')}", "nobody who is expected there holds it"
            )
        return known


def new_socket_folder() -> Path:
    """The name of a folder for `ipc` that is still to be made, short enough for paths of sockets.

    Raises:
        ConfigError: where there is no place for one.
    """
    try:
        # not where sockets can't lie: their paths are short, and text for libzmq
        temporary = tempfile.gettempdir()
        text = os.fsencode(temporary).decode(errors="replace")
        if text != temporary or len(os.fsencode(temporary)) >= _LONGEST_FOLDER:
            temporary = "/tmp"
        return Path(temporary) / f"pipeline-{secrets.token_hex(6)}"
    except OSError as error:
        raise _no_folder(error) from None


@contextmanager
def socket_folder(path: Path | None = None) -> Iterator[Path]:
    """Such a folder, which only its owner can enter.

    Args:
        path: of `new_socket_folder`, where somebody else must know it before it is made.

    Raises:
        ConfigError: where it can't be made.
    """
    folder = path or new_socket_folder()
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise _no_folder(error) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_folder(error: OSError) -> ConfigError:
    return ConfigError(
        f"no folder for the sockets of this run can be made: {error.strerror}; let TMPDIR name "
        "a folder that can be written to, or use runtime.transport tcp"
    )


def make_keys() -> KeyPair | None:
    """A new key pair, of this process's host; None where this libzmq was built without CURVE."""
    if not zmq.has("curve"):
        return None
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def send(socket: Socket, frames: Frames) -> None:
    """All in one message; frames after the header are not copied, and may not change."""
    socket.send_multipart(list(frames), copy=len(frames) == 1)


def waits(socket: Socket) -> bool:
    """Whether a message is there; a poll that does not wait takes ten times as long."""
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int), "a set of flags"
    return bool(events & zmq.POLLIN)


def ms(seconds: float) -> int:
    """Whole milliseconds, for polls."""
    return round(seconds * 1000)


def _bind(socket: Socket, endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"can't listen at {endpoint}: {os.strerror(error.errno or 0)}") from None
