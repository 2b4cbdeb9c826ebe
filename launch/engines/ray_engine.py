"""Workers on the hosts of a Ray cluster: one that runs, or one that is started here for a run.

    hosts ─▶ plan ─▶ reserve ─▶ start          where a cluster runs, the broker joins for its hosts

Ray places and watches; what a run computes, sends and keeps is as on one machine.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from socket import MSG_DONTWAIT, gethostname, socketpair
from time import monotonic
from typing import TYPE_CHECKING

from launch.engines.broker_messages import Code, Joined, Nodes, Refused, line_of, read_line
from launch.engines.cluster import Cluster, ClusterWorkers
from launch.engines.host import facts_here
from launch.engines.interrupts import INTERRUPTIONS
from launch.machine.gpus import devices
from pipeline.errors import GPUS, ConfigError, EngineLostError, cut
from pipeline.planning.hosts import Host
from pipeline.signals import signals_held
from pipeline.system.interpreter import python_command, python_environment
from pipeline.transport.sockets import new_socket_folder

if TYPE_CHECKING:
    from socket import socket

    from launch.engines.broker_messages import Answer, Request
    from launch.engines.users_code import UsersCode
    from pipeline.coordinator.engine import Invite
    from pipeline.planning.hosts import Wanted
    from pipeline.planning.plan import Plan

_JOINS_S = 120.0
"""Ray's own processes may take so long to start on a busy machine."""
_ENDS_S = 10.0
_HEALS_S = 30.0
"""TCP does not notice at once that a cable is back: the longer it was out, the later it tries."""
_LOOK_S = 0.02
_LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):[0-9]{1,5}")
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}


class BrokerClient:
    """The launcher's end of the broker; no call but `close` waits for it.

    Args:
        spec: as `ray_broker.main` has it.
        environment: of the broker, beside this process's own.
    """

    def __init__(self, spec: dict[str, object], environment: dict[str, str]) -> None:
        ours, theirs = socketpair()
        self._printed, printing = os.pipe()
        os.set_blocking(self._printed, False)
        with theirs, signals_held(*INTERRUPTIONS):
            self._process = subprocess.Popen(
                python_command("launch.engines.ray_broker", theirs.fileno(), json.dumps(spec)),
                env={**python_environment(), **_QUIET, **environment},
                stdin=subprocess.DEVNULL,
                stdout=printing,
                stderr=printing,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the launcher, which ends it in time
            )
        os.close(printing)
        self._link: socket = ours
        self._unsent = self._unread = self._unprinted = b""
        self.cluster = str(spec["address"] or "this machine")

    def ask(self, request: Request) -> None:
        self._unsent += line_of(request)
        self._send()

    def answers(self) -> list[Answer]:
        how = self._process.poll()  # first: what it said before its end is still read
        self._send()
        with suppress(BlockingIOError, ConnectionError):
            while data := self._link.recv(1 << 16, MSG_DONTWAIT):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        found = [read_line(line) for line in lines]
        if how is not None and not any(isinstance(answer, Refused) for answer in found):
            raise EngineLostError(
                f"the Ray cluster at {self.cluster} is lost: its head has not answered for a "
                f"minute, or the process that spoke with it was ended (exit status {how})"
            )
        return found  # type: ignore[return-value]

    def output(self) -> list[str]:
        with suppress(BlockingIOError):
            while data := os.read(self._printed, 1 << 16):
                self._unprinted += data
        *lines, self._unprinted = self._unprinted.split(b"\n")
        return [line.decode(errors="replace") for line in lines if line.strip()]

    def close(self) -> None:
        """End it: Ray then ends the actors, and a Ray that was started for the run ends, too."""
        self._link.close()
        try:
            self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._printed)

    def _send(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            while self._unsent:
                self._unsent = self._unsent[self._link.send(self._unsent, MSG_DONTWAIT) :]


class RayEngine:
    """As `coordinator.engine.Engine` describes.

    Args:
        address: of the head, as host:port; None: as RAY_ADDRESS says, else Ray is started here.
        insecure: whether the cluster may be one without token authentication.

    Raises:
        ConfigError: for an address that is none.
    """

    def __init__(self, address: str | None, *, insecure: bool) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        if self._address and "://" in self._address:
            raise ConfigError(
                f"--ray-address {self._address}: stages talk with the launcher directly, which a "
                "Ray Client is no part of: run this on a node of the cluster, and give its head as "
                "10.0.0.1:6379"
            )
        if self._address and not _ADDRESS.fullmatch(self._address):
            raise ConfigError(
                f"--ray-address {cut(self._address)}: give host and port of the cluster's head, as "
                "10.0.0.1:6379"
            )
        self._insecure, self._threads = insecure, 1
        self._broker: BrokerClient | None = None
        self._joined: Joined | None = None
        self._cluster = Cluster()
        self._workers: ClusterWorkers | None = None
        self._ray_folder: Path | None = None
        self._code: list[int] = []
        self._socket_folder = new_socket_folder()

    @property
    def socket_folder(self) -> Path:
        return self._socket_folder

    @property
    def address(self) -> str:
        return self._joined.here if self._joined and self._address else _LOOPBACK

    def hosts(self, wanted: Wanted) -> tuple[Host, ...]:
        self._threads = wanted.threads
        if self._address is None:  # Ray is started once the plan says with how much
            return (Host(_name_here(), _LOOPBACK, devices(wanted.gpus)),)
        most = None if wanted.gpus is None else _devices_of_each_host(wanted.gpus)
        self._start_broker(cpus=0, gpus=0)
        self._await_nodes()
        found = self._cluster.hosts(most, wanted.threads)
        if most and found[0].devices == ("cpu",):
            raise ConfigError(
                *(GPUS, f" {wanted.gpus}: no host of the cluster at {self._address} has a GPU; "),
                *("use ", GPUS, " cpu"),
            )
        return found

    def reserve(self, plan: Plan, code: UsersCode, silence_s: float) -> None:
        """Begin to look for room for a plan, without waiting for it.

        Args:
            silence_s: for which hosts and launcher may be cut off from each other.
        """
        if self._address is None:
            names = {stage.device for stage in plan.stages}
            gpus = sum(not name.endswith("cpu") for name in names)
            self._start_broker(cpus=max(1, plan.n_stages * self._threads), gpus=gpus)
        assert self._broker, "it was started"
        files = [self._in_memory(data) for data in (code.packed, code.modules)]
        self._broker.ask(Code(*files))
        self._workers = ClusterWorkers(
            self._broker,
            self._cluster,
            self._threads,
            facts_here(),
            forsaken_s=silence_s + _HEALS_S,
            spares=self._address is not None,
        )
        if self._cluster.nodes:
            self._workers.reserve(plan)

    def start(self, plan: Plan, invite: Invite) -> ClusterWorkers:
        assert self._workers, "room was reserved"
        if not self._cluster.nodes:
            self._await_nodes()
            self._workers.reserve(plan)
        self._workers.begin(invite)
        return self._workers

    def close(self) -> None:
        if self._broker is not None:
            self._broker.close()
        if self._ray_folder is not None:
            shutil.rmtree(self._ray_folder, ignore_errors=True)
        for descriptor in self._code:
            os.close(descriptor)
        self._broker, self._code = None, []

    def warm_up(self) -> None:
        """Hosts do so as soon as there is room."""

    def _start_broker(self, cpus: int, gpus: int) -> None:
        environment: dict[str, str] = {}
        if self._address is None:
            # paths of its sockets are short in there
            folder = tempfile.mkdtemp(prefix="pipeline-ray-", suffix=f"-{os.getpid()}", dir="/tmp")
            self._ray_folder = Path(folder)
            environment = {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_worker_niceness": "0",
            }
        spec: dict[str, object] = {
            "address": self._address,
            "insecure": self._insecure,
            "cpus": cpus,
            "gpus": gpus,
            "folder": str(self._ray_folder) if self._ray_folder else None,
            "sockets": str(self._socket_folder),
        }
        self._broker = BrokerClient(spec, environment)

    def _await_nodes(self) -> None:
        """Until the cluster is joined and its nodes are known."""
        assert self._broker, "it was started"
        until, printed = monotonic() + _JOINS_S, list[str]()
        while not (self._joined and self._cluster.nodes):
            try:
                for answer in self._broker.answers():
                    self._take(answer)
            except EngineLostError as error:
                last = "; ".join([*printed, *self._broker.output()][-3:])
                raise ConfigError(f"--engine ray: {error}: {last}") from None
            if monotonic() > until:
                raise ConfigError(
                    f"--engine ray: Ray at {self._broker.cluster} has not answered within "
                    f"{_JOINS_S:g} s"
                )
            printed += self._broker.output()
            time.sleep(_LOOK_S)

    def _take(self, answer: Answer) -> None:
        if isinstance(answer, Refused):
            raise ConfigError(f"--engine ray: {answer.why}")
        if isinstance(answer, Joined):
            self._joined = answer
        elif isinstance(answer, Nodes):
            self._cluster.take(answer.nodes)

    def _in_memory(self, data: bytes | memoryview) -> str:
        """The path of a file without a name that holds `data`, for processes of this user."""
        if not data:
            return ""
        self._code.append(os.memfd_create("pipeline"))
        with os.fdopen(os.dup(self._code[-1]), "wb") as file:
            file.write(data)
        return f"/proc/{os.getpid()}/fd/{self._code[-1]}"


def _name_here() -> str:
    return gethostname().partition(".")[0]


def _devices_of_each_host(gpus: str) -> int:
    """How many GPUs `--gpus` names, of which a host lends so many at most; 0: none."""
    named = devices(gpus, count=lambda: sys.maxsize)
    return 0 if named == ("cpu",) else len(named)
