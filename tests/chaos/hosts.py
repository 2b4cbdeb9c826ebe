"""Imitated hosts on one machine: each has network, processes, mounts and a name of its own.

A host is made of Linux namespaces; its first process is that which every other process of it ends
with, as in a power cut. All are on one switch, on a network that exists nowhere else. Needs root,
`ip`, `unshare` and `nsenter`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NETWORK = "10.78.0"
_TOOLS = ("ip", "unshare", "nsenter", "mount")
_BORN_S = 10.0


def why_not() -> str:
    """Why no hosts can be imitated here; empty where they can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"hosts can't be imitated here: there is no {', '.join(missing)}"
    trial = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "true"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        return "hosts can't be imitated here: namespaces need root"
    return ""


class ImitatedHost:
    """One of them: its address, and ways to be in it and to disturb it."""

    def __init__(self, number: int, names: Names) -> None:
        self.number, self.name = number, f"host{number}"
        self.address, self._names = f"{NETWORK}.{10 + number}", names
        self.folder, self.private = names.folder / self.name, names.private
        self._first: subprocess.Popen[bytes] | None = None
        self._init = 0

    def turn_on(self) -> None:
        """Let it begin, with a network and nothing running."""
        net, port = self._names.of(self.number), f"port{self.number}"
        switch, inside = self._names.switch, ("ip", "-n", net)
        _run("ip", "netns", "add", net)
        pair = ("type", "veth", "peer", "name", port, "netns", switch)
        _run("ip", "link", "add", "eth0", "netns", net, *pair)
        _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        self.folder.mkdir(exist_ok=True)
        born = self.folder / "born"
        born.unlink(missing_ok=True)
        script = (
            f"hostname {self.name}; mount -t tmpfs -o size=2g tmpfs /dev/shm; "
            f"mount -t tmpfs -o size=2g tmpfs {self._names.private}; touch {born}; "
            "while :; do sleep 3600 & wait; done"
        )
        apart = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._first = subprocess.Popen(
            ["ip", "netns", "exec", net, *apart, "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + _BORN_S
        while not born.exists():
            assert time.monotonic() < until, f"{self.name} is not there"
            time.sleep(0.02)
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        self._init = int(children.read_text().split()[0])

    def command(self, *words: str) -> list[str]:
        """A command line that runs in it."""
        of_init = ("-t", str(self._init), "--mount", "--uts", "--net", "--pid")
        return ["nsenter", *of_init, f"--wdns={self.folder}", "--", *words]

    def start(self, *words: str, **given: Any) -> subprocess.Popen[Any]:
        """A process in it; `given`: as for `subprocess.Popen`."""
        return subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, **given)

    def processes(self, holding: str = "") -> dict[int, str]:
        """Command lines of its processes, by the ids that this machine knows them by."""
        if not self._init or not Path(f"/proc/{self._init}").exists():
            return {}
        ours, found = os.readlink(f"/proc/{self._init}/ns/pid"), {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(path / "ns" / "pid") == ours and int(path.name) != self._init:
                    line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if holding in line and not line.startswith("sleep 3600"):
                        found[int(path.name)] = line
        return found

    def cut(self) -> None:
        """Take the cable out."""
        _run("ip", "-n", self._names.switch, "link", "set", f"port{self.number}", "down")

    def join(self) -> None:
        """Put the cable back."""
        _run("ip", "-n", self._names.switch, "link", "set", f"port{self.number}", "up")

    def turn_off(self) -> None:
        """Take its power: every process of it is gone, and so is its network."""
        if self._first is not None:
            with suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
            self._first.kill()
            self._first.wait()
            self._first = None
            subprocess.run(
                ["ip", "netns", "del", self._names.of(self.number)],
                capture_output=True,
                check=False,
            )


class Names:
    """Of what the system keeps apart by name: several sets of hosts may be there at once. In the
    folder `private` each host has files of its own."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self._prefix = folder, prefix
        self.switch, self.private = f"{prefix}sw", folder / "own"
        self.private.mkdir(exist_ok=True)

    def of(self, number: int) -> str:
        return f"{self._prefix}{number}"


@contextmanager
def imitated_hosts(
    folder: Path, count: int, prefix: str | None = None
) -> Iterator[Sequence[ImitatedHost]]:
    """Hosts 0, 1, … on one switch; nothing is left of them afterwards."""
    names = Names(folder, prefix or f"plh{os.getpid() % 100_000}n")
    hosts = [ImitatedHost(number, names) for number in range(count)]
    _run("ip", "netns", "add", names.switch)
    try:
        _run("ip", "-n", names.switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", names.switch, "link", "set", "br0", "up")
        for host in hosts:
            host.turn_on()
        yield hosts
    finally:
        for host in hosts:
            host.turn_off()
        subprocess.run(["ip", "netns", "del", names.switch], capture_output=True, check=False)


def environment(**changes: str) -> Mapping[str, str]:
    """For a process of a host."""
    return {**os.environ, **changes}


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(words)}: {done.stderr.strip()}"
