"""A Ray cluster on imitated hosts, what can be hit of it, and runs that it carries out.

Ray's head is on the first host, and launchers unless they are put elsewhere. The cluster asks for a
token.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import TYPE_CHECKING, Any

from support.hosts import imitated_hosts
from support.processes import COMMAND, nothing_ignored, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from support.cable import Cable
    from support.hosts import ImitatedHost
    from support.terminal import Terminal

TOKEN = "0123456789abcdef" * 2
PORT = 6379
RAY = (sys.executable, "-m", "ray.scripts.scripts")
STARTS_S, ENDS_S = 120.0, 400.0
AGAIN = "training again"


class RayOnHosts:
    """A Ray cluster on imitated hosts, with a token; what belongs to it on each.

    Args:
        cpus: that each host lends.
        more: of the environment of its nodes and of commands.
    """

    def __init__(
        self,
        hosts: Sequence[ImitatedHost],
        cpus: Sequence[int],
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.hosts, self._cpus, self._more = hosts, cpus, more or {}
        self.raylet_at = 0.0
        self._started: list[subprocess.Popen[Any]] = []
        self.address = f"{hosts[0].address}:{PORT}"

    def start(self, *numbers: int) -> None:
        """Let hosts be nodes; the first of all is the head. `raylet_at`: when the process of the
        last one was there, which is before the cluster knows of it."""
        for number in numbers:
            host = self.hosts[number]
            first = ("--head", f"--port={PORT}", "--include-dashboard=false")
            role = (
                (*first, f"--temp-dir={host.private}")
                if not number
                else (f"--address={self.address}",)
            )
            words = (
                *RAY, "start", "--block", *role, f"--node-ip-address={host.address}",
                f"--num-cpus={self._cpus[number]}", "--object-store-memory=80000000",
                "--disable-usage-stats",
            )  # fmt: skip
            old = _joined(host)
            with (host.folder / "ray.log").open("ab") as log:
                given = {"env": self.environment, "stdout": log, "stderr": log}
                self._started.append(host.start(*words, **given))
            until(lambda host=host: host.processes("/raylet/raylet "), f"{host.name}", STARTS_S)
            self.raylet_at = time.monotonic()
            until(lambda host=host, old=old: _joined(host) > old, f"{host.name} to join", STARTS_S)
            if not number:
                until(self._head_is_ready, "Ray's head", STARTS_S)

    def start_anew(self) -> None:
        """After its head was lost, which takes all with it in the end."""
        for host in self.hosts:
            kill(host.processes("ray"))
        until(lambda: not any(host.processes("ray") for host in self.hosts), "the end of Ray")
        self.start(*range(len(self.hosts)))

    def close(self) -> None:
        """End all of it, and the hosts."""
        for host in self.hosts:
            host.turn_off()
        for process in self._started:
            process.wait(ENDS_S)

    def _head_is_ready(self) -> bool:
        return b"block forever" in (self.hosts[0].folder / "ray.log").read_bytes()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_worker_niceness": "0",
            **self._more,
        }

    # what can be hit

    def stages_on(self, host: ImitatedHost) -> list[int]:
        """Process ids of the stages there."""
        forks = set(host.processes("launch.engines.fork_server"))
        return sorted(pid for pid in forks if _parent(pid) in forks)

    def agents_on(self, host: ImitatedHost) -> list[int]:
        """Process ids of those actors there that have stages."""
        return sorted({_parent(_parent(pid)) for pid in self.stages_on(host)})

    def await_spares(self, host: ImitatedHost) -> None:
        """Until a second agent is there, with all that workers need."""
        servers = "launch.engines.fork_server"

        def there() -> bool:
            forks = set(host.processes(servers))
            ready = [pid for pid in forks if _parent(pid) not in forks and _has_torch(pid)]
            return len(ready) == 2

        until(there, f"a second agent on {host.name}", STARTS_S)

    def homes(self) -> list[ImitatedHost]:
        """Hosts that have stages."""
        return [host for host in self.hosts if self.stages_on(host)]


def _joined(host: ImitatedHost) -> int:
    """How often it has become a node, as `ray start` says."""
    log = host.folder / "ray.log"
    return log.read_bytes().count(b"Ray runtime started") if log.exists() else 0


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _has_torch(pid: int) -> bool:
    """Whether a fork server has imported it, and waits."""
    with suppress(OSError):
        is_there = "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
        asleep = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
        return is_there and asleep
    return False


def kill(pids: Sequence[int] | dict[int, str]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class Training:
    """A `pipeline-launch` on a host.

    Args:
        words: more of its command, resumed or not.
        launcher_on: the host's number.
        terminal: on which it shows the live view.
    """

    cluster: RayOnHosts
    folder: Path
    config: str
    words: tuple[str, ...] = ()
    launcher_on: int = 0
    terminal: Terminal | None = None
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.host = self.cluster.hosts[self.launcher_on]
        self.run_dir, self.temp = self.folder / "run", self.folder / "t"
        self.temp.mkdir(parents=True)
        (self.folder / "run.yaml").write_text(self.config, encoding="utf-8")
        self.process = self._launched()

    def _launched(self, *more: str) -> subprocess.Popen[Any]:
        words: tuple[str, ...] = (
            *(*self._command, *self._on_ray, f"--run-dir={self.run_dir}"),
            *(*self.words, *more),
        )
        environment = self._environment
        with self._file.open("ab") as file, nothing_ignored():
            if self.terminal is None:
                words, streams = (*words, "--view=plain"), {"stdout": file, "stderr": file}
            else:
                # as a shell does: it is what Ctrl-C on this terminal is meant for
                words = ("setsid", "--ctty", *words, "--view=live")
                streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.terminal.end)
                environment["TERM"] = "xterm-256color"
            return self.host.start(*words, env=environment, **streams)

    @property
    def _command(self) -> tuple[str, ...]:
        return (COMMAND, str(self.folder / "run.yaml"), "--gpus=cpu")

    @property
    def _on_ray(self) -> tuple[str, ...]:
        return ("--engine=ray", f"--ray-address={self.cluster.address}")

    @property
    def _environment(self) -> dict[str, str]:
        return {**self.cluster.environment, "TMPDIR": str(self.temp)}

    def dry_run(self, *words: str, single: bool = False) -> str:
        """What the command says of such a run; `single`: in one process."""
        where = ("--single",) if single else (*self._on_ray, *self.words)
        words = (*self._command, *where, "--dry-run", *words)
        given = {"env": self._environment, "stdout": PIPE, "stderr": STDOUT, "text": True}
        said = self.host.start(*words, **given).communicate(timeout=STARTS_S)[0]
        return str(said)

    def resume(self) -> None:
        """Go on after an end."""
        self.process = self._launched("--resume")

    @property
    def _file(self) -> Path:
        return self.folder / "said"

    @property
    def said(self) -> str:
        """All that it has shown."""
        return self.terminal.text if self.terminal else self._file.read_text(errors="replace")

    @property
    def log(self) -> str:
        path = self.run_dir / "run.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def wait_for(self, text: str, times: int = 1, deadline_s: float = STARTS_S) -> float:
        """Until the log holds it so often; seconds that it took."""
        began = time.monotonic()

        def there() -> bool:
            has_ended = self.process.poll() is not None  # first: its last words are still read
            found = self.log.count(text) >= times
            assert found or not has_ended, self.all_said
            time.sleep(0.02)  # what is measured has these cores, too
            return found

        until(there, f"{text!r} in the log; {self.all_said}", deadline_s)
        return time.monotonic() - began

    @property
    def all_said(self) -> str:
        return f"{self.said[-3000:]}\n{self.log[-3000:]}"

    def hit(self, act: Callable[[], object], deadline_s: float = STARTS_S) -> float:
        """Disturb it; seconds until it trains again."""
        before, began = self.log.count(AGAIN), time.monotonic()
        act()
        self.wait_for(AGAIN, before + 1, deadline_s)
        return time.monotonic() - began

    def left(self) -> list[str]:
        """What there is of it on any host: processes; the launcher's folder, and those of agents,
        which lie in that of Ray's session."""
        found = [str(path) for path in self.temp.iterdir()]
        for host in self.cluster.hosts:
            for word in ("launch.engines", "ray::Pipeline", "pipeline-launch"):
                found += [f"{host.name}: {line[-200:]}" for line in host.processes(word).values()]
            search = f"ls -d {host.private}/session_latest/pipeline-* 2>/dev/null || true"
            found += host.run("sh", "-c", search).split()
        return found

    def ends(self, status: int = 0, deadline_s: float = ENDS_S) -> None:
        until(lambda: self.process.poll() is not None, f"its end: {self.all_said}", deadline_s)
        found = self.process.wait()
        assert found == status, f"exit status {found}: {self.all_said}"


@contextmanager
def cluster_on(
    folder: Path,
    cpus: Sequence[int],
    cable: Cable | None = None,
    more: Mapping[str, str] | None = None,
) -> Iterator[RayOnHosts]:
    """One that runs, on as many hosts as `cpus` has numbers."""
    with (
        imitated_hosts(folder, len(cpus), cable) as hosts,
        closing(RayOnHosts(hosts, cpus, more)) as cluster,
    ):
        cluster.start(*range(len(cpus)))
        yield cluster
