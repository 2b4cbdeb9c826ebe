"""A TCP port that accepts connections while they are expected, and refuses them afterwards.

    until it is opened   connections wait in the kernel's queue, and take no descriptor
    open                 libzmq accepts them; a reserve of descriptors is held
    shut                 new ones are cut off, and can be named; the reserve is free

Connections that were made before it is shut go on. ZeroMQ can't do that: to unbind a socket ends
all that came through it. So a second socket listens at the port while it is shut, and a filter
of one instruction has the kernel choose that one. Where the kernel (not Linux's own) knows no such
filters the port stays open.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import struct
from secrets import randbelow
from typing import NamedTuple

from pipeline.errors import ConfigError
from pipeline.system.descriptors import Reserve, raise_limit
from pipeline.system.own_addresses import address_within

_SO_ATTACH_REUSEPORT_CBPF = 51  # of <asm-generic/socket.h>
_ENDPOINT = re.compile(r"tcp://\[?(?P<host>[^\[\]]+?)\]?:(\*|(?P<first>\d{1,5})-(?P<last>\d{1,5}))")
_RETURN = 0x06  # BPF_RET | BPF_K of <linux/bpf_common.h>


class Where(NamedTuple):
    """Where a port may be: `host` an IP address of this machine; `ports`: None, any."""

    host: str
    ports: range | None = None

    @classmethod
    def of(cls, endpoint: str) -> Where:
        """Read `tcp://HOST:PORTS`: HOST an address; a network, of which this host has one address;
        or `auto`, for who is not told how others reach this host. IPv6 stands in brackets. PORTS:
        `*`, or the first and the last, `20000-20100`.

        Raises:
            ConfigError: where it has none, or several.
        """
        found = _ENDPOINT.fullmatch(endpoint)
        assert found, f"{endpoint} is no place to listen"
        host = "127.0.0.1" if found["host"] == "auto" else found["host"]
        ports = range(int(found["first"]), int(found["last"]) + 1) if found["first"] else None
        return cls(address_within(host) if "/" in host else host, ports)

    def bound(self) -> tuple[socket.socket, socket.socket | None]:
        """A socket at a port that nobody else has, and, for one of `ports`, what keeps it ours.

        Raises:
            ConfigError: where all of `ports` are taken.
            OSError: where `host` is none of this machine's.
        """
        if self.ports is None:
            return bound(self.host, 0), None
        # what was closed a moment ago, and others may still look for, should not be first
        start = randbelow(len(self.ports))
        for number in (*self.ports[start:], *self.ports[:start]):
            try:
                made = bound(self.host, number)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            try:
                if claim := _claimed(made):
                    return made, claim
            except OSError:
                made.close()
                raise
            made.close()
        first, last = self.ports[0], self.ports[-1]
        raise ConfigError(
            f"runtime.ports {first}-{last}: no other one is free at {self.host} on host "
            f"{os.uname().nodename}: give more of them; a host needs two for each of its "
            "stages, and the launcher one"
        )


class TcpPort:
    """A port that the system chooses, or a free one of some.

    Raises:
        ConfigError, OSError: as `Where.bound`.
    """

    def __init__(self, where: Where) -> None:
        self._reserve = Reserve(raise_limit())
        # who still waits when the port is shut is accepted, and takes no more than half of it
        self._waiting = max(1, self._reserve.size // 2)
        self.where, self._is_shut = where, False
        self._first, self._claim = where.bound()
        self.number: int = self._first.getsockname()[1]
        self._first.listen(self._waiting)
        # not before it listens: the kernel would then refuse a port at which connections were
        # closed within the last minute, as those of a run before this one
        self._can_be_shut = _prefer_the_second(self._first)
        self._second = bound(where.host, self.number)  # once it is needed there may be none

    def open(self) -> None:
        """Hold the reserve, and let connections in."""
        self._reserve.hold()
        if self._is_shut:
            shut, self._second = self._second, bound(self.where.host, self.number)
            shut.close()
            self._is_shut = False

    def hand_over(self) -> int:
        """The descriptor of the listening socket; its new owner accepts from it and closes it."""
        return self._first.detach()

    def shut(self) -> None:
        """Let no more connections in, and release the reserve."""
        if self._can_be_shut and not self._is_shut:
            self._second.listen(self._waiting)
            self._is_shut = True
        self._reserve.release()

    def cut_off(self) -> list[str]:
        """End the connections of those who came while it was shut; their IP addresses."""
        found: list[str] = []
        while self._is_shut and len(found) < self._waiting:
            try:
                visitor, address = self._second.accept()
            except OSError:  # none waits; or it has left again, or there is no descriptor for it
                break
            visitor.close()
            found.append(str(address[0]))
        return found

    def close(self) -> None:
        """Close every socket that was not handed over; release the reserve."""
        self._first.close()
        self._second.close()
        if self._claim:
            self._claim.close()
        self._reserve.release()

    @property
    def endpoint(self) -> str:
        """Where others connect to."""
        return endpoint_at(self.where.host, self.number)


def endpoint_at(host: str, port: int | str) -> str:
    """As ZeroMQ has it."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not block; port 0: of the system's choice.

    Raises:
        OSError: where `host` is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # which knows the interface of fe80::1%eth0, too
    found = socket.getaddrinfo(host, port, family, flags=socket.AI_NUMERICHOST)
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setblocking(False)
        made.bind(found[0][4])
    except OSError:
        made.close()
        raise
    return made


def host_of(endpoint: str) -> str:
    """The IP address in `tcp://ADDRESS:PORT`, IPv6 in brackets."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def connected(endpoint: str, timeout_s: float) -> socket.socket:
    """A socket connected to an endpoint; every wait on it ends in that time.

    Raises:
        OSError: where nobody answers there.
    """
    port = int(endpoint.rpartition(":")[2])
    return socket.create_connection((host_of(endpoint), port), timeout_s)


def _claimed(made: socket.socket) -> socket.socket | None:
    """A socket under a name that one process at a time can have, and that ends with it; None: there
    is one already. Several sockets of a user may be bound to one port (SO_REUSEPORT), as ours are:
    without the name two runs could have the same."""
    address, number = made.getsockname()[:2]
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0pipeline {address} {number}")
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return claim


def _prefer_the_second(first: socket.socket) -> bool:
    """Of the sockets that will listen at this port; whether the kernel can. Where there is no
    second one it takes the first."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN, 0, 0, 1))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
    try:
        first.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError:
        return False
    return True
