"""The broker: the process that belongs to a Ray cluster for a run. The only file that imports Ray.

    launcher ═══ pipe ═══ broker ─── Ray ─── actors, rooms and agents

It is no part of the launcher, because Ray ends the process that has joined a cluster, at once and
without a word, where the cluster's head has been gone for a minute; the launcher holds the newest
snapshot and the terminal. Where the launcher is gone the pipe is closed: the broker ends, and Ray
ends the actors. It sends no secret of a run to anybody.

Calls that ask the head are made by a thread of their own: they wait while it does not answer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from launch.engines.broker_messages import (
    Again,
    Code,
    Died,
    Dismiss,
    Doubtful,
    Fork,
    Gone,
    Joined,
    Node,
    Nodes,
    Prepare,
    Prepared,
    Refused,
    Release,
    Reserve,
    Reserved,
    Unreserved,
    Wake,
    line_of,
    read_line,
)
from launch.engines.host import Host
from launch.machine.gpus import gpu_names
from pipeline.errors import cut, one_line
from pipeline.system.children import children_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launch.engines.broker_messages import Answer, Request

_ANSWERS_S, _TAKES_S = 5.0, 10.0
_LOOK_S, _SAYS_S = 0.1, 0.5
_NODES_S = 0.1
"""A run may wait for a host to join; to ask takes half a millisecond of this process."""
_STORE_BYTES = 80_000_000
"""Of Ray's object store, which carries nothing of ours but a user's code."""
_NO_PACKAGE = re.compile(r"No module named '(launch|pipeline)\b")
_OF_PYTHON = re.compile(r"\w+(Error|Exception): ")
_ENDS_S, _CLOSES_S = 5.0, 2.0


def main(descriptor: int, spec: str) -> None:
    """The whole process.

    Args:
        descriptor: of its end of the socket to the launcher.
        spec: `address` (None: start Ray here), `insecure`, `cpus`, `gpus`, `folder` for its files;
            `sockets`: the launcher's folder of them, which is removed where the launcher is killed.
    """
    link = socket.socket(fileno=descriptor)
    link.set_inheritable(False)
    asked = json.loads(spec)
    launcher = _Launcher(link, asked.pop("sockets"), asked["folder"])
    why = _join(launcher, **asked)
    if why:
        launcher.say(Refused(why))
        launcher.end()
    _Broker(launcher).serve()


class _Launcher:
    """The pipe to the launcher. Its end is the end of this process, whatever that is doing."""

    def __init__(self, link: socket.socket, sockets: str, folder: str | None) -> None:
        self._link, self._sockets, self._folder, self._lock = link, sockets, folder, Lock()
        self.requests: SimpleQueue[Request] = SimpleQueue()
        Thread(target=self._listen, name="launcher", daemon=True).start()

    def say(self, answer: Answer) -> None:
        with self._lock, suppress(OSError):
            self._link.sendall(line_of(answer))

    def _listen(self) -> None:
        with suppress(OSError), self._link.makefile("rb") as lines:
            for line in lines:
                self.requests.put(read_line(line))  # type: ignore[arg-type]
        self.end()

    def end(self) -> None:
        """Of this process, of a Ray that it has started, and of their folders."""
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._folder is not None:
            until = time.monotonic() + _ENDS_S
            while _end_children() and time.monotonic() < until:
                time.sleep(_LOOK_S)
            while os.path.exists(self._folder) and time.monotonic() < until:
                shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)


def _end_children() -> bool:
    """Kill them, and all that these have started; whether there was one. Ray's agents live on for a
    minute without their raylet."""
    children = children_of(os.getpid())
    others = [one for child in children for one in _descendants(child)]
    for child in children:
        with suppress(OSError):
            os.kill(child, 9)
            os.waitpid(child, 0)
    for other in others:
        with suppress(OSError):
            os.kill(other, 9)
    return bool(children)


def _descendants(process: int) -> Iterator[int]:
    for child in children_of(process):
        yield child
        yield from _descendants(child)


# --- joining a cluster --------------------------------------------------------------------


def _join(
    launcher: _Launcher,
    address: str | None,
    insecure: bool,
    cpus: int,
    gpus: int,
    folder: str | None,
) -> str:
    """Belong to the cluster, and say so; else why not."""
    if address is not None and (why := _nobody_at(address)):
        return why
    import ray

    quietly: dict[str, Any] = {"log_to_driver": True, "include_dashboard": False}
    try:
        if address is None:
            here = None
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                object_store_memory=_STORE_BYTES,
                _temp_dir=folder,
                **quietly,
            )
        else:
            why, here = _may_join(address, insecure)
            if why:
                return why
            ray.init(address=address, _node_ip_address=here, log_to_driver=True)
    except Exception as error:  # whatever Ray raises: versions, time-outs, its own processes
        return _in_one_line(error, address)
    cluster = ray.get_runtime_context().gcs_address
    launcher.say(Joined(cluster, here or ray.util.get_node_ip_address()))
    return ""


def _nobody_at(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_S):
            return ""
    except (OSError, ValueError) as error:
        return (
            f"nobody answers at {address} ({error}): start Ray's head there (ray start --head), or "
            "give the address of one"
        )


def _may_join(address: str, insecure: bool) -> tuple[str, str]:
    """Why not, if so; and this node's address in the cluster.

    A cluster with token authentication turns away who has none: so one that does not is open to
    whoever reaches it.
    """
    from ray.exceptions import AuthenticationError

    raylet: Any = import_module("ray._raylet")

    def nodes_with(mode: str) -> Any:
        os.environ["RAY_AUTH_MODE"] = mode
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        return raylet.GcsClient(address=address).get_all_node_info(timeout=_TAKES_S)

    try:
        nodes = nodes_with("disabled")
    except AuthenticationError:
        where = _where_the_token_is()
        if not where:
            return (
                f"the cluster at {address} asks for a token, and there is none here: put it into "
                "RAY_AUTH_TOKEN, or a file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
            ), ""
        try:
            nodes = nodes_with("token")
        except AuthenticationError:
            return f"the cluster at {address} has another token than {where}", ""
    else:
        if not insecure:
            return (
                f"the cluster at {address} asks nobody for a token: whoever reaches it may run "
                "anything there; start it with RAY_AUTH_MODE=token, or give --ray-insecure"
            ), ""
    alive = [node.node_manager_address for node in nodes.values() if node.state == 0]
    here = next((one for one in alive if _is_here(one)), "")
    if not here:
        return (
            f"this machine is no node of the cluster at {address}: run this on one of "
            f"{', '.join(alive[:5])}, or let it join (ray start --address={address})"
        ), ""
    return "", here


def _where_the_token_is() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN says"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    return f"{path} holds" if os.path.exists(path) else ""


def _is_here(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as trial:
        trial.bind((address, 0))
        return True
    return False


def _in_one_line(error: Exception, address: str | None) -> str:
    text = " ".join(str(error).split())
    where = f"at {address}" if address else "on this machine"
    if "ersion mismatch" in text:
        return f"the Ray cluster {where} is of another version: {text[:400]}"
    return f"Ray {where} can't be joined: {type(error).__name__}: {text[:400]}"


# --- a cluster joined ---------------------------------------------------------------------


class PipelineRoom:
    """An actor that reserves GPUs of its node, and does nothing: only an actor learns which."""

    def held(self) -> tuple[str | None, tuple[str, ...]]:
        """As in `broker_messages.Reserved`: its GPUs, and what these are."""
        return os.environ.get("CUDA_VISIBLE_DEVICES"), gpu_names()

    def stay(self) -> None:
        """As long as it lives."""
        while True:
            time.sleep(_ENDS_S)


class PipelineAgent(Host):
    """An actor that starts processes. Its folder is in that of Ray's session on the node, which is
    the cluster's own to clean."""

    def __init__(self, packed: bytes, modules: bytes, forsaken_s: float) -> None:
        node: Any = import_module("ray._private.worker")._global_node
        super().__init__(packed, modules, node.get_session_dir_path(), forsaken_s)


class _GpuRoom:
    """What an actor holds; `call`: is over with it."""

    def __init__(self, number: int, actor: Any) -> None:
        self.number, self.actor = number, actor
        self.is_held = False
        self.call = actor.held.remote()


class _CpuRoom(Thread):
    """What a placement group holds, which takes no process: so it is there at once. It asks the
    head, for which a thread can wait; without its node it is no more."""

    def __init__(self, request: Reserve, say: Callable[[Answer], None]) -> None:
        super().__init__(name=f"room-{request.room}", daemon=True)
        self._request, self._say, self._is_released = request, say, Event()

    def run(self) -> None:
        from ray.util.placement_group import placement_group, remove_placement_group

        room, there = self._request.room, {"ray.io/node-id": self._request.node}
        try:
            group = placement_group([{"CPU": self._request.cpus}], bundle_label_selector=[there])
            while not self._is_released.is_set():
                if group.wait(_TAKES_S):
                    self._say(Reserved(room, None))
                    self._is_released.wait()
            remove_placement_group(group)
        except Exception as error:  # whatever Ray raises where its head is gone
            self._say(Unreserved(room, _short(error)))

    def release(self) -> None:
        self._is_released.set()


class _Agent:
    """An actor, and the calls to it that are under way. `ends_at`: when it is killed that was asked
    to close."""

    def __init__(self, number: int, node: str, actor: Any) -> None:
        self.number, self.node, self.actor = number, node, actor
        self.is_ready = self.is_doubtful = False
        self.ends_at = inf
        self.call = actor.about.remote()
        self.forks: dict[Any, tuple[int, int]] = {}
        """(stage, attempt) of processes that were asked for, and may not be started yet."""


class _Broker:
    def __init__(self, launcher: _Launcher) -> None:
        import ray

        self._ray, self._launcher = ray, launcher
        self._code = [ray.put(b""), ray.put(b"")]
        self._addresses: dict[str, tuple[str, int]] = {}
        """Where nodes listen."""
        self._gpu_rooms: dict[int, _GpuRoom] = {}
        self._cpu_rooms: dict[int, _CpuRoom] = {}
        self._agents: dict[int, _Agent] = {}
        self._ended: set[str] = set()
        """Nodes that have ended while they were in doubt."""

    def serve(self) -> None:
        """Until the launcher is gone, or Ray ends this process."""
        Thread(target=self._watch_nodes, name="nodes", daemon=True).start()
        Thread(target=self._watch_doubts, name="doubts", daemon=True).start()
        while True:
            for request in self._requests():
                self._heed(request)
            for room in list(self._gpu_rooms.values()):
                self._look_at_room(room)
            for agent in list(self._agents.values()):
                self._look_at_agent(agent)

    def _requests(self) -> Iterator[Request]:
        with suppress(Empty):
            yield self._launcher.requests.get(timeout=_LOOK_S)
            while True:
                yield self._launcher.requests.get_nowait()

    def _heed(self, request: Request) -> None:
        if isinstance(request, Code):
            files = (request.packed, request.modules)
            self._code = [self._ray.put(Path(file).read_bytes() if file else b"") for file in files]
        elif isinstance(request, Reserve):
            self._reserve(request)
        elif isinstance(request, Release):
            if of_cpus := self._cpu_rooms.pop(request.room, None):
                of_cpus.release()
            elif of_gpus := self._gpu_rooms.pop(request.room, None):
                self._kill(of_gpus.actor)
        elif isinstance(request, Prepare):
            options = self._on(request.node, 0, 0)
            given = (*self._code, request.forsaken_s)
            actor = self._ray.remote(PipelineAgent).options(**options).remote(*given)
            self._agents[request.agent] = _Agent(request.agent, request.node, actor)
        elif agent := self._agents.get(request.agent):
            self._heed_for(agent, request)

    def _heed_for(self, agent: _Agent, request: Fork | Wake | Dismiss) -> None:
        if isinstance(request, Fork):
            invitation = request.invitation
            call = agent.actor.fork.remote(asdict(invitation), request.gpus)
            agent.forks[call] = invitation.stage, invitation.attempt
        elif isinstance(request, Wake):
            agent.actor.wake.remote(request.stage)
        else:
            agent.call, agent.ends_at = agent.actor.close.remote(), time.monotonic() + _CLOSES_S

    def _reserve(self, request: Reserve) -> None:
        if request.gpus:
            options = self._on(request.node, request.cpus, request.gpus)
            actor = self._ray.remote(PipelineRoom).options(**options).remote()
            self._gpu_rooms[request.room] = _GpuRoom(request.room, actor)
        else:
            self._cpu_rooms[request.room] = _CpuRoom(request, self._launcher.say)
            self._cpu_rooms[request.room].start()

    def _on(self, node: str, cpus: int, gpus: int) -> dict[str, Any]:
        """Options of an actor that is to be on that node or nowhere."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        never = {"max_restarts": 0, "max_task_retries": 0}
        return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": there, **never}

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # it is gone already, or can't be reached
            self._ray.kill(actor)

    def _look_at_room(self, room: _GpuRoom) -> None:
        if not self._done([room.call]):
            return
        try:
            found = self._ray.get(room.call)
        except self._ray.exceptions.ActorUnavailableError:
            pass  # as long as it is not known to be dead, it holds what it holds
        except Exception as error:
            del self._gpu_rooms[room.number]
            self._launcher.say(Unreserved(room.number, _short(error)))
            return
        else:
            if not room.is_held:
                room.is_held = True
                visible, kinds = found
                self._launcher.say(Reserved(room.number, visible, tuple(kinds)))
        room.call = room.actor.stay.remote()

    def _look_at_agent(self, agent: _Agent) -> None:
        if agent.ends_at < inf:
            if self._done([agent.call]) or time.monotonic() > agent.ends_at:
                del self._agents[agent.number]
                self._kill(agent.actor)
                self._launcher.say(Gone(agent.number, "was ended"))
            return
        self._look_at_forks(agent)
        if agent.node in self._ended:
            self._leave(agent)
            return
        if not self._done([agent.call]):
            return
        try:
            found = self._ray.get(agent.call)
        except self._ray.exceptions.ActorUnavailableError as error:
            if self._has_ended(agent.node):
                self._leave(agent)
                return
            agent.is_doubtful = True
            self._launcher.say(Doubtful(agent.number, _short(error)))
        except Exception as error:  # ActorDiedError; what its constructor has raised; no such node
            del self._agents[agent.number]
            with suppress(Exception):  # the head may be gone, too
                self._launcher.say(self._nodes())
            self._launcher.say(Gone(agent.number, _short(error)))
            return
        else:
            self._take(agent, found)
        method = agent.actor.died if agent.is_ready else agent.actor.about
        agent.call = method.remote()

    def _leave(self, agent: _Agent) -> None:
        del self._agents[agent.number]
        self._launcher.say(Gone(agent.number, "its node has ended", with_node=True))

    def _watch_doubts(self) -> None:
        """A host without power is in doubt, and has ended once it is on again: Ray would find that
        out by its own time-outs alone."""
        while True:
            doubtful = {agent.node for agent in list(self._agents.values()) if agent.is_doubtful}
            self._ended.update(filter(self._has_ended, doubtful - self._ended))
            time.sleep(_SAYS_S)

    def _has_ended(self, node: str) -> bool:
        """Long before the cluster counts it as dead; what it has started is gone, too."""
        return node in self._addresses and nobody_listens(self._addresses[node])

    def _look_at_forks(self, agent: _Agent) -> None:
        for call in self._done(list(agent.forks)):
            stage, attempt = agent.forks.pop(call)
            try:
                self._ray.get(call)
            except self._ray.exceptions.ActorDiedError:
                pass  # all processes of it are lost
            except Exception as error:  # of the way there, or of the host
                why, trace = f"can't be started: {_short(error)}", str(error)
                died = Died(agent.number, stage, attempt, why, silent=True, traceback=trace)
                self._launcher.say(died)

    def _take(self, agent: _Agent, found: Any) -> None:
        if not agent.is_ready:
            key, facts = found
            agent.is_ready = True
            self._launcher.say(Prepared(agent.number, key, tuple(facts)))
            return
        if agent.is_doubtful:
            agent.is_doubtful = False
            self._launcher.say(Again(agent.number))
        for fields in found:
            self._launcher.say(Died(agent.number, *fields))

    def _done(self, calls: list[Any]) -> list[Any]:
        if not calls:
            return []
        done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        return list(done)

    # nodes

    def _watch_nodes(self) -> None:
        said = None
        while True:
            with suppress(Exception):  # the head does not answer: there is nothing new
                now = self._nodes()
                if now != said:
                    said = now
                    self._launcher.say(now)
            time.sleep(_NODES_S)

    def _nodes(self) -> Nodes:
        from ray._private.state import available_resources_per_node

        nodes, found = self._ray.nodes(), []
        free = available_resources_per_node()  # last: what has just joined is there, too
        for node in nodes:
            if not node["Alive"]:
                continue
            address = node["NodeManagerAddress"]
            self._addresses[node["NodeID"]] = address, node["NodeManagerPort"]
            lends, rest = node["Resources"], free.get(node["NodeID"], {})
            found.append(
                Node(
                    node["NodeID"],
                    node["NodeManagerHostname"],
                    address,
                    *(int(lends.get(what, 0)) for what in ("CPU", "GPU")),
                    *(int(rest.get(what, 0)) for what in ("CPU", "GPU")),
                )
            )
        return Nodes(tuple(sorted(found, key=lambda node: (node.name, node.id))))


def nobody_listens(address: tuple[str, int]) -> bool:
    """Whether the host itself says so; one that can't be reached says nothing."""
    try:
        socket.create_connection(address, _SAYS_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _short(error: Exception) -> str:
    """The line of an error of Ray's that says what happened."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):  # of what a host was asked for
        return one_line(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if missing := [line for line in lines if _NO_PACKAGE.search(line)]:
        return f"this package is not installed there ({missing[-1]})"
    of_python = [line for line in lines if _OF_PYTHON.match(line)]
    return cut(of_python[-1] if of_python else " ".join(lines), 300) or type(error).__name__


if __name__ == "__main__":
    sys.exit("this is a part of --engine ray")
