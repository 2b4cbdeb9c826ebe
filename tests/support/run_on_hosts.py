"""A run whose workers are on imitated hosts: an engine for it, and the agent on each host that
starts workers there.

    launcher ─ HostsEngine ═ socket pair ═ agent ─ fork server ─ workers     of each host

A host's keys are made by its agent. Tests look for secrets in what travels, so whoever makes keys
writes the secret one to a file, too.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from socket import MSG_DONTWAIT, socket, socketpair
from typing import TYPE_CHECKING, Any

from launch.engines.local import ForkedWorkers, ForkServerClient, fork_request
from pipeline.coordinator.engine import End
from pipeline.planning.hosts import Host, Place
from pipeline.protocol.credentials import Invitation, KeyPair
from pipeline.transport.sockets import make_keys, new_socket_folder
from support import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.coordinator.engine import Invite
    from pipeline.planning.plan import Plan
    from pipeline.run.events import Detail, Note
    from support.hosts import ImitatedHost

_PROGRAM = (
    f"import launch, pipeline, sys; sys.path.append({str(REPOSITORY / 'tests')!r})\n"
    "from support.run_on_hosts import {main}\n"
    "{main}(*sys.argv[1:])\n"
)
"""`tests` has folders of the same names as packages."""
_SECRETS = "secret-{}"


def secrets_in(folder: Path) -> list[str]:
    """Of all key pairs that were made for a run in `folder`."""
    return [path.read_text() for path in sorted(folder.glob(_SECRETS.format("*")))]


# --- the test's side ---------------------------------------------------------------------------


@contextmanager
def run_on(
    hosts: Sequence[ImitatedHost], homes: Sequence[int], folder: Path, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A `pipeline-launch ARGUMENTS` on the first host, in `folder`, where its output goes to files.

    Args:
        homes: the host of each stage.
    """
    python, agents, ours = sys.executable, [], []
    for number in sorted(set(homes)):
        near, far = socketpair()
        program = _PROGRAM.format(main="be_agent")
        given = (python, "-c", program, str(far.fileno()), str(folder))
        agents.append(hosts[number].start(*given, pass_fds=[far.fileno()], here=folder))
        far.close()
        ours.append((number, near))
    links = json.dumps([[number, hosts[number].address, link.fileno()] for number, link in ours])
    given = (links, hosts[0].address, json.dumps(homes))
    program = _PROGRAM.format(main="be_launcher")
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        launcher = hosts[0].start(
            *(python, "-c", program, *given, *arguments, "--gpus", "cpu"),
            pass_fds=[link.fileno() for _, link in ours],
            here=folder,
            stdout=out,
            stderr=err,
        )
    for _, link in ours:
        link.close()
    try:
        yield launcher
    finally:
        for process in (launcher, *agents):
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)


# --- the launcher -------------------------------------------------------------------------------


def be_launcher(links: str, address: str, homes: str, *arguments: str) -> None:
    """The whole process: the command, with workers on other hosts."""
    import launch.run_job
    from launch.cli import main
    from pipeline.coordinator import session
    from pipeline.transport import first_answer

    found = {
        number: (socket(fileno=descriptor), Host(f"host{number}", there, ("cpu",)))
        for number, there, descriptor in json.loads(links)
    }
    engine = HostsEngine(address, found, json.loads(homes))

    @contextmanager
    def engine_for(**options: Any) -> Iterator[HostsEngine]:
        yield engine

    launch.run_job.engine_for = engine_for  # type: ignore[assignment]
    session.make_keys = lambda: _kept(make_keys(), Path())  # type: ignore[attr-defined]
    first_answer.UNANSWERED_S = 1.0  # a test need not wait longer
    main(list(arguments))


class HostsEngine:
    """As `coordinator.engine.Engine`.

    Args:
        address: of this host.
        agents: links to them, by the number of the host.
        homes: the host of each stage.
    """

    def __init__(
        self, address: str, agents: dict[int, tuple[socket, Host]], homes: Sequence[int]
    ) -> None:
        self.address, self._agents, self._homes = address, agents, homes
        self.socket_folder = new_socket_folder()

    def warm_up(self) -> None:
        """The agents do."""

    def start(self, plan: Plan, invite: Invite) -> HostsWorkers:
        assert plan.n_stages == len(self._homes)
        return HostsWorkers(self._agents, self._homes, invite)

    def close(self) -> None:
        for link, _ in self._agents.values():
            link.close()


class HostsWorkers:
    """As `coordinator.engine.Workers`."""

    def __init__(
        self, agents: dict[int, tuple[socket, Host]], homes: Sequence[int], invite: Invite
    ) -> None:
        self._agents, self._homes, self._invite = agents, homes, invite
        self._unread = dict.fromkeys(agents, b"")
        self._keys = {number: json.loads(_line(link)) for number, (link, _) in agents.items()}
        self._attempts = [0] * len(homes)
        self._ended: dict[int, End] = {}
        for stage in range(len(homes)):
            self.replace(stage, 0)

    def dead(self) -> dict[int, End]:
        for number, (link, _) in self._agents.items():
            with suppress(BlockingIOError):
                self._unread[number] += link.recv(1 << 16, MSG_DONTWAIT)
            *lines, self._unread[number] = self._unread[number].split(b"\n")
            for stage, attempt, end in map(json.loads, lines):
                if attempt == self._attempts[stage]:
                    self._ended[stage] = End(**end)
        return self._ended

    def home(self, stage: int) -> Place:
        return Place(self._agents[self._homes[stage]][1], "cpu")

    def waiting(self) -> dict[int, str]:
        return {}

    def news(self) -> list[Note | Detail]:
        return []

    def replace(self, stage: int, attempt: int) -> None:
        number = self._homes[stage]
        self._ended.pop(stage, None)
        self._attempts[stage] = attempt
        invitation = self._invite(stage, attempt, self._keys[number])
        self._agents[number][0].sendall(json.dumps(asdict(invitation)).encode() + b"\n")

    def wake(self, stage: int) -> None:
        """Nobody stops them."""

    def leave(self) -> None:
        until = time.monotonic() + 5.0
        while len(self.dead()) < len(self._homes) and time.monotonic() < until:
            time.sleep(0.01)

    def stop(self) -> None:
        """The agents end them, once the links are closed."""


# --- the agent ----------------------------------------------------------------------------------


def be_agent(descriptor: str, folder: str) -> None:
    """The whole process: starts workers as it is told, until the launcher has closed its end."""
    keys, unread = _kept(make_keys(), Path(folder)), b""
    link, server = socket(fileno=int(descriptor)), ForkServerClient()
    invitations: dict[int, Invitation] = {}
    told: dict[int, int] = {}

    def start(number: int, stage: int, attempt: int) -> None:
        server.ask(fork_request(number, invitations[stage], keys, folder, sys.path))

    workers = ForkedWorkers(server, start)
    server.run()
    link.sendall(json.dumps(keys.public).encode() + b"\n")
    try:
        while True:
            if select.select([link], [], [], 0.02)[0]:
                data = b""
                with suppress(ConnectionError):
                    data = link.recv(1 << 16)
                if not data:
                    return
                *lines, unread = (unread + data).split(b"\n")
                for tree in map(json.loads, lines):
                    asked = Invitation(**{**tree, "user_code": tuple(tree["user_code"])})
                    invitations[asked.stage] = asked
                    workers.replace(asked.stage, asked.attempt)
            for stage, end in workers.dead().items():
                attempt = invitations[stage].attempt
                if told.get(stage) != attempt:
                    told[stage] = attempt
                    link.sendall(json.dumps((stage, attempt, asdict(end))).encode() + b"\n")
    finally:
        server.close()


def _kept(keys: KeyPair | None, folder: Path) -> KeyPair:
    assert keys is not None, "pyzmq's own wheel has CURVE"
    (folder / _SECRETS.format(f"{os.uname().nodename}-{os.getpid()}")).write_text(keys.secret)
    return keys


def _line(link: socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        found += link.recv(1)
    return found
