"""The IP addresses of this host, and which of them lies in a network."""

from __future__ import annotations

import array
import os
import socket
import struct
from fcntl import ioctl
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError

_IF_INET6 = Path("/proc/net/if_inet6")
_SIOCGIFCONF = 0x8912  # of <linux/sockios.h>
_ENTRY_BYTES, _MOST_ENTRIES = 40, 1000  # of `struct ifreq`
_SCOPE_LINK = 0x20
_COMES_AND_GOES = 0x01 | 0x08 | 0x20 | 0x40
"""IFA_F_ TEMPORARY, DADFAILED, DEPRECATED, TENTATIVE of <linux/if_addr.h>: an address for the sake
of privacy, or one that can't be used, or not yet."""
_MOST_NAMED = 8


class OwnAddress(NamedTuple):
    """An address, as a socket is bound to it (`fe80::1%eth0`), and the name of its interface."""

    text: str
    interface: str

    def __str__(self) -> str:
        return f"{self.text} ({self.interface})"


def own_addresses() -> list[OwnAddress]:
    """All at which somebody may reach this host, and those of loopback."""
    return [*_ipv4(), *_ipv6()]


def address_within(network: str) -> str:
    """The address of this host in a network, given as `10.8.0.0/16`.

    Raises:
        ConfigError: where there is none, or more than one.
    """
    within, own = ip_network(network), own_addresses()
    fitting = [address for address in own if _bare(address) in within]
    if len(fitting) == 1:
        return fitting[0].text
    this = f"runtime.bind_address {network}: host {os.uname().nodename} has"
    if fitting:
        raise ConfigError(
            f"{this} {len(fitting)} addresses in it, {_named(fitting)}: give a smaller network, in "
            "which each host of the run has one"
        )
    raise ConfigError(
        f"{this} no address in it, but {_named(own) or 'none at all'}: give a network in which "
        "each host of the run has one"
    )


def _ipv4() -> list[OwnAddress]:
    found = array.array("B", bytes(_ENTRY_BYTES * _MOST_ENTRIES))
    room, where = found.buffer_info()[1], found.buffer_info()[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = ioctl(any_socket, _SIOCGIFCONF, struct.pack("iP", room, where))
    filled = struct.unpack("iP", answer)[0]
    entries = [bytes(found[at : at + _ENTRY_BYTES]) for at in range(0, filled, _ENTRY_BYTES)]
    return [
        OwnAddress(socket.inet_ntoa(entry[20:24]), os.fsdecode(entry[:16].partition(b"\0")[0]))
        for entry in entries
    ]


def _ipv6() -> list[OwnAddress]:
    found = []
    lines = _IF_INET6.read_text(encoding="ascii").splitlines() if _IF_INET6.exists() else []
    for digits, _, _, scope, flags, interface in map(str.split, lines):
        if not int(flags, 16) & _COMES_AND_GOES:
            zone = f"%{interface}" if int(scope, 16) == _SCOPE_LINK else ""
            found.append(OwnAddress(f"{IPv6Address(int(digits, 16))}{zone}", interface))
    return found


def _bare(address: OwnAddress) -> IPv4Address | IPv6Address:
    return ip_address(address.text.partition("%")[0])


def _named(addresses: list[OwnAddress]) -> str:
    more = f" and {len(addresses) - _MOST_NAMED} more" if len(addresses) > _MOST_NAMED else ""
    return ", ".join(map(str, addresses[:_MOST_NAMED])) + more
