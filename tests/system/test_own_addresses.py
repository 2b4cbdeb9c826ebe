"""Of several addresses of a host the one that lies in a network, and else an error that helps."""

from __future__ import annotations

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.system import own_addresses
from pipeline.system.own_addresses import OwnAddress, address_within

HOST = os.uname().nodename
OWN = [
    OwnAddress("127.0.0.1", "lo"),
    OwnAddress("10.8.0.5", "eth0"),
    OwnAddress("10.9.0.5", "eth1"),
    OwnAddress("fe80::1%eth0", "eth0"),
    OwnAddress("fd00:8::5", "eth0"),
]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_addresses, "own_addresses", lambda: OWN)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("10.8.0.0/16", "10.8.0.5"),
        ("10.9.0.5/32", "10.9.0.5"),
        ("fd00::/8", "fd00:8::5"),
        ("fe80::/10", "fe80::1%eth0"),
    ],
)
def test_a_network_picks_the_address_that_lies_in_it(network: str, address: str) -> None:
    assert address_within(network) == address


@pytest.mark.usefixtures("own")
def test_none_or_two_are_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(ConfigError) as none:
        address_within("10.7.0.0/16")
    assert str(none.value) == (
        f"runtime.bind_address 10.7.0.0/16: host {HOST} has no address in it, but 127.0.0.1 (lo), "
        "10.8.0.5 (eth0), 10.9.0.5 (eth1), fe80::1%eth0 (eth0), fd00:8::5 (eth0): give a network "
        "in which each host of the run has one"
    )
    with pytest.raises(ConfigError) as two:
        address_within("10.0.0.0/8")
    assert str(two.value) == (
        f"runtime.bind_address 10.0.0.0/8: host {HOST} has 2 addresses in it, 10.8.0.5 (eth0), "
        "10.9.0.5 (eth1): give a smaller network, in which each host of the run has one"
    )


def test_a_host_of_many_addresses_does_not_fill_the_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [OwnAddress(f"10.8.0.{number}", f"eth{number}") for number in range(1, 100)]
    monkeypatch.setattr(own_addresses, "own_addresses", lambda: many)
    with pytest.raises(ConfigError, match=r"99 addresses in it.* 10.8.0.8 \(eth8\) and 91 more:"):
        address_within("10.8.0.0/16")


def test_this_host_has_loopback() -> None:
    assert OwnAddress("127.0.0.1", "lo") in own_addresses.own_addresses()
    assert address_within("127.0.0.0/8") == "127.0.0.1"
