"""A run on several hosts: addresses, ports, what is in the way, what can be read on the wire."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.hosts import NETWORKS, Capture, imitated_hosts, why_not
from support.processes import final_digests, launch, until
from support.run_on_hosts import run_on, secrets_in
from zmq.utils import z85

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.hosts import ImitatedHost

pytestmark = [
    pytest.mark.processes,
    pytest.mark.usefixtures("tiny"),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
LABELS = re.compile(rb"(?:[\x01-\x09]\x00{7}){3}")
"""Of digits, as they travel: three in a row that are not 0."""
IPV4, ANOTHER, IPV6 = (network.format(0).replace("::0", "::") for network in NETWORKS)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[ImitatedHost]]:
    with imitated_hosts(tmp_path_factory.mktemp("hosts"), 2) as made:
        yield made


def over(transport: str, network: str, *more: str) -> list[str]:
    settings = (f"runtime.transport={transport}", f"runtime.bind_address={network}", *more)
    return [part for setting in settings for part in ("--set", setting)]


def log_of(folder: Path) -> str:
    path = folder / "run" / "run.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def said_in(folder: Path) -> str:
    """All that a run has said: its log and what it has shown."""
    shown = [(folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return "\n".join([log_of(folder), *shown])


@pytest.mark.parametrize(("transport", "network"), [("tcp", IPV4), ("tcp-plain", IPV6)])
def test_two_hosts_train_as_one_process_and_nobody_between_them_can_read_it(
    hosts: Sequence[ImitatedHost], tmp_path: Path, transport: str, network: str
) -> None:
    """Each has three addresses, of which the network picks one. That what is looked for would be
    found shows where nothing is encrypted."""
    ports = "runtime.ports=21000-21020"
    given = ("tiny.yaml", "--run-dir", "run", "--stages", "3", *over(transport, network, ports))
    with Capture(hosts) as wire, run_on(hosts, (0, 1, 1), tmp_path, *given) as launcher:
        assert launcher.wait(60) == 0, (tmp_path / "stderr").read_text()
    assert launch(tmp_path / "tiny.yaml", tmp_path / "single", single=True) == 0
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "single")
    sent = wire.all
    assert len(sent) > 100 * 64, "the images of an epoch"
    assert bool(LABELS.search(sent)) == (transport == "tcp-plain")
    secrets = secrets_in(tmp_path)
    assert len(secrets) == (3 if transport == "tcp" else 2)  # the coordinator's, and two hosts'
    for secret in secrets:
        assert not any(part in sent for part in halves(secret.encode()))
        assert not any(part in sent for part in halves(z85.decode(secret)))
    assert "the next stage is in another container of this machine" in log_of(tmp_path)
    assert "turned away" not in log_of(tmp_path)


def halves(secret: bytes) -> tuple[bytes, bytes]:
    """One of them is whole, even where the secret is divided between two packets."""
    middle = len(secret) // 2
    return secret[:middle], secret[middle:]


def test_a_port_that_is_blocked_is_told_of_and_training_goes_on_once_it_is_open(
    hosts: Sequence[ImitatedHost], tmp_path: Path
) -> None:
    """The first host may connect to no port of the second; the second reaches the first."""
    there = hosts[1].address
    rule = ("ip", "rule", "add", "to", there, "ipproto", "tcp", "dport", "21000-21020")
    given = ("tiny.yaml", "--run-dir", "run", "--stages", "1")
    settings = over("tcp", "auto", "runtime.ports=21000-21020", "runtime.stall_timeout_s=300")
    with ExitStack() as blocked, run_on(hosts, (1,), tmp_path, *given, *settings) as launcher:
        hosts[0].run(*rule, "unreachable")
        blocked.callback(hosts[0].run, "ip", "rule", "del", *rule[3:], "unreachable")
        until(
            lambda: "has had no answer" in log_of(tmp_path) or launcher.poll() is not None, "a note"
        )
        assert launcher.poll() is None, said_in(tmp_path)
        blocked.close()
        assert launcher.wait(60) == 0
    said = re.search(
        r"the coordinator, on host host0, has had no answer from stage 0 at (\S+) port (\d+) for "
        r"\d+ s: no way leads there; look at the firewalls between them",
        log_of(tmp_path),
    )
    assert said
    assert said[1] == there
    assert 21000 <= int(said[2]) <= 21020


def test_a_host_that_has_no_address_in_the_network_ends_the_run_in_one_line(
    hosts: Sequence[ImitatedHost], tmp_path: Path
) -> None:
    """The first one has."""
    given = ("tiny.yaml", "--run-dir", "run", "--stages", "2")
    only_first = f"{hosts[0].addresses[1]}/32"
    with run_on(hosts, (0, 1), tmp_path, *given, *over("tcp", only_first)) as launcher:
        assert launcher.wait(60) == 2
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert f"runtime.bind_address {only_first}: host host1 has no address in it, but " in line
    for address in hosts[1].addresses:
        assert address in line


def test_a_cable_can_be_cut_and_joined(hosts: Sequence[ImitatedHost]) -> None:
    at = f"(('{hosts[0].address}', 7)"
    listen = f"import socket; s = socket.create_server{at}); print(flush=True); s.accept()"
    visit = f"import socket; socket.create_connection{at}, 0.3)"
    with hosts[0].start(sys.executable, "-c", listen, stdout=subprocess.PIPE) as listening:
        assert listening.stdout
        listening.stdout.readline()
        hosts[0].cut()
        with hosts[1].start(sys.executable, "-c", visit, stderr=subprocess.DEVNULL) as visitor:
            assert visitor.wait(60) == 1
        hosts[0].join()
        until(lambda: not hosts[1].start(sys.executable, "-c", visit).wait(60), "a visit")
