"""Imitated hosts: each has network, process, mount, host-name and IPC namespaces of its own, and
addresses of networks that exist only in here.

    host0 ── port0 ┐
    host1 ── port1 ┼ a bridge, in a network namespace of its own: the switch
    host2 ── port2 ┘
        '- a `Cable`, where there is to be one

The namespaces have no names: they end with the processes that hold them, and those with this one,
however it ends. They need root, and Linux's `ip`, `unshare` and `nsenter`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import psutil

from support.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.cable import Cable

_TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")
_CONGESTION = "/proc/sys/net/ipv4/tcp_congestion_control"
_SEND_WITHOUT_PACING = f"echo cubic 2> /dev/null > {_CONGESTION} || echo reno > {_CONGESTION}"
"""Not as this machine may: bbr paces bursts by what it believes of a cable. There are kernels that
list cubic and refuse it in a network namespace."""
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_CLONE_NEWNET = 0x40000000  # of <sched.h>
_ETH_P_ALL = 3  # of <linux/if_ether.h>
_SO_RCVBUFFORCE = 33  # of <asm-generic/socket.h>
_FRAME_BYTES, _MOST_BYTES = 1 << 18, 1 << 28
_STAYS = "while :; do sleep 1000000 & wait $!; done"
"""A shell that is the first process of a host also takes in what has lost its parent."""
_BEGINS = (
    'hostname "$0" && mount -t tmpfs -o size=2g tmpfs /dev/shm && '
    'mount -t tmpfs -o size=2g tmpfs "$1" && touch "$2" || exit 1; '
)
NETWORKS = ("10.77.0.{}/24", "10.78.0.{}/24", "fd00:77::{}/64")
"""In each of which every host has one address."""


def why_not() -> str:
    """Why no hosts can be imitated here; empty where they can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"hosts can't be imitated here: there is no {', '.join(missing)}"
    switch = "ip link add br0 type bridge && ip link add v0 type veth peer name v1"
    own = ["unshare", "--mount", "--uts", "--net", "--ipc", "--pid", "--fork"]
    trial = [*own, "sh", "-c", f"{switch} && {{ {_SEND_WITHOUT_PACING}; }}"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"hosts can't be imitated here: {done.stderr.strip()}" if done.returncode else ""


class ImitatedHost:
    """One of them, and what may happen to it.

    `addresses`: in the order of `NETWORKS`. `folder`: of this test, which all hosts see. `private`:
    a folder in which each sees files of its own. `cable`: that joins it to the switch; None: as
    fast as this machine.
    """

    def __init__(self, number: int, folder: Path, switch: int, cable: Cable | None = None) -> None:
        self.number, self.name, self._switch = number, f"host{number}", switch
        self._cable = cable
        self._with_length = [network.format(10 + number) for network in NETWORKS]
        self.addresses = tuple(one.partition("/")[0] for one in self._with_length)
        self.address = self.addresses[0]
        self.folder, self.private = folder / self.name, folder / "private"
        self._holder: subprocess.Popen[bytes] | None = None
        self._laid: subprocess.Popen[bytes] | None = None
        self._first = 0

    def turn_on(self) -> None:
        """Let it begin, with a network and nothing running."""
        for made in (self.folder, self.private):
            made.mkdir(exist_ok=True)
        born = self.folder / "born"
        born.unlink(missing_ok=True)
        spaces = ("--mount", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child")
        given = (self.name, str(self.private), str(born))
        self._holder = _holder(spaces, _BEGINS + _STAYS, given)
        until(born.exists, f"the first process of {self.name}")
        (first,) = psutil.Process(self._holder.pid).children()
        self._first = first.pid
        self._connect()

    def command(self, *words: str, here: Path | None = None) -> list[str]:
        """A command line that runs in it, in the folder `here`, else in its own."""
        spaces = ("--mount", "--uts", "--net", "--pid", "--ipc", f"--wdns={here or self.folder}")
        return ["nsenter", f"--target={self._first}", *spaces, "--", *words]

    def start(self, *words: str, here: Path | None = None, **given: Any) -> subprocess.Popen[Any]:
        """A process in it; `given`: as for `subprocess.Popen`."""
        return subprocess.Popen(
            self.command(*words, here=here), **{"stdin": subprocess.DEVNULL, **given}
        )

    def run(self, *words: str) -> str:
        """What a command in it prints, to its end."""
        return _run(*self.command(*words))

    def processes(self, holding: str = "") -> dict[int, str]:
        """Command lines of its processes, by the numbers that they have outside."""
        with suppress(OSError):
            ours, found = os.readlink(f"/proc/{self._first}/ns/pid"), {}
            for path in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    of_it = os.readlink(path / "ns" / "pid") == ours and int(path.name)
                    if of_it not in (False, self._first) and holding in line:
                        found[int(path.name)] = line
            return {pid: line for pid, line in found.items() if not line.startswith("sleep 1000")}
        return {}

    def cut(self) -> None:
        """Take the cable out."""
        _in_network(self._switch, "ip", "link", "set", f"port{self.number}", "down")

    def join(self) -> None:
        """Put the cable back."""
        _in_network(self._switch, "ip", "link", "set", f"port{self.number}", "up")

    def turn_off(self) -> None:
        """Take its power: every process of it is gone, and so is its network."""
        if self._holder is not None:
            self._holder.kill()  # and with it its first process, and so all
            self._holder.wait()
            until(lambda: not psutil.pid_exists(self._first), f"the end of {self.name}")
            self._holder, self._first = None, 0
        if self._laid is not None:
            self._laid.kill()
            self._laid.communicate()
            self._laid = None

    def _connect(self) -> None:
        port, mtu = f"port{self.number}", ("mtu", "9000")
        if self._cable is not None:
            self._laid = self._cable.laid(self._first, self._switch, port)
            self.run("ip", "link", "set", "eth0", *mtu)
            _in_network(self._switch, "ip", "link", "set", port, *mtu)
        else:
            _run(
                *("ip", "link", "add", "eth0", *mtu, "netns", str(self._first), "type", "veth"),
                *("peer", "name", port, *mtu, "netns", str(self._switch)),
            )
        _in_network(self._first, "sh", "-c", _SEND_WITHOUT_PACING)
        _in_network(self._switch, "ip", "link", "set", port, "master", "br0", "up")
        for device in ("lo", "eth0"):
            self.run("ip", "link", "set", device, "up")
        for address in self._with_length:
            # IPv6 would first ask for a second whether somebody else has it
            at_once = ["nodad"] if ":" in address else []
            self.run("ip", "address", "add", address, "dev", "eth0", *at_once)


@contextmanager
def imitated_hosts(
    folder: Path, count: int, cable: Cable | None = None
) -> Iterator[Sequence[ImitatedHost]]:
    """Hosts 0, 1, … on one switch; nothing is left of them afterwards.

    Args:
        cable: of all but the first: it is crossed once between that and another.
    """
    with ExitStack() as stack:
        switch = _holder((), "exec sleep 1000000", ("switch",))
        stack.callback(switch.wait)
        stack.callback(switch.kill)
        until(lambda: _is_apart(switch.pid), "the namespace of the switch")
        _in_network(switch.pid, "ip", "link", "add", "br0", "mtu", "9000", "type", "bridge")
        _in_network(switch.pid, "ip", "link", "set", "br0", "up")
        hosts = [
            ImitatedHost(number, folder, switch.pid, cable if number else None)
            for number in range(count)
        ]
        for host in hosts:
            stack.callback(host.turn_off)
            host.turn_on()
        yield hosts


class Capture:
    """Keeps all frames that cross the switch of some hosts, while it is open."""

    def __init__(self, hosts: Sequence[ImitatedHost]) -> None:
        self._tap, self._found, self._done = _tap(hosts[0]._switch), bytearray(), False
        self._thread = Thread(target=self._take, daemon=True)

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done = True
        self._thread.join()
        self._tap.close()

    @property
    def all(self) -> bytes:
        """One frame after the other, each as often as it has crossed a port."""
        return bytes(self._found)

    def _take(self) -> None:
        self._tap.settimeout(0.1)
        while not self._done:
            with suppress(TimeoutError):
                self._found += self._tap.recv(_FRAME_BYTES)
            assert len(self._found) < _MOST_BYTES, "more than a test should send"


def _tap(pid: int) -> socket.socket:
    """A socket that receives all frames of the network namespace of a process, made by a thread: it
    enters the namespace for good."""
    made: list[socket.socket] = []

    def make() -> None:
        with open(f"/proc/{pid}/ns/net", "rb") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)))
        made[0].setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _MOST_BYTES)

    thread = Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _holder(spaces: Sequence[str], script: str, given: Sequence[str]) -> subprocess.Popen[bytes]:
    """A shell in a network namespace of its own, and in others."""
    prctl = ctypes.CDLL(None).prctl
    return subprocess.Popen(
        ["unshare", "--net", "--ipc", *spaces, "sh", "-c", script, *given],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _is_apart(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")


def _in_network(pid: int, *words: str) -> None:
    _run("nsenter", f"--target={pid}", "--net", "--", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert not done.returncode, f"{' '.join(words)}: {done.stderr.strip()}"
    return done.stdout
