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
import socket
import struct

from pipeline.system.descriptors import Reserve, raise_limit

_SO_ATTACH_REUSEPORT_CBPF = 51  # of <asm-generic/socket.h>
_RETURN = 0x06  # BPF_RET | BPF_K of <linux/bpf_common.h>


class TcpPort:
    """A port of `host`, an IP address, that the system chooses.

    Raises:
        OSError: where `host` is none of this machine's.
    """

    def __init__(self, host: str) -> None:
        self._reserve = Reserve(raise_limit())
        # who still waits when the port is shut is accepted, and takes no more than half of it
        self._waiting = max(1, self._reserve.size // 2)
        self._host, self._is_shut = host, False
        self._first = bound(host, 0)
        self.number: int = self._first.getsockname()[1]
        self._can_be_shut = _prefer_the_second(self._first)
        self._first.listen(self._waiting)
        self._second = bound(host, self.number)  # now: once it is needed there may be none left

    def open(self) -> None:
        """Hold the reserve, and let connections in."""
        self._reserve.hold()
        if self._is_shut:
            shut, self._second = self._second, bound(self._host, self.number)
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
        self._reserve.release()


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


def with_port(endpoint: str, port: int) -> str:
    """The same address, another port."""
    return f"{endpoint.rpartition(':')[0]}:{port}"


def connected(endpoint: str, timeout_s: float) -> socket.socket:
    """A socket connected to an endpoint; every wait on it ends in that time.

    Raises:
        OSError: where nobody answers there.
    """
    port = int(endpoint.rpartition(":")[2])
    return socket.create_connection((host_of(endpoint), port), timeout_s)


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
