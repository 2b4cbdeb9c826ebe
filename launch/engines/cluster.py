"""Which stage runs on which node of a cluster, and where it goes when that is lost. No Ray here,
and no process: requests to a broker, and what it answers.

    a stage wants room ──Reserve──▶ has room ──── an agent is there ──Fork──▶ a process runs
         ▲                             ▲                                            │
         │  the node is lost           │  the process, or its agent, is lost        │
         └─────────────────────────────┴──────────────── replace ◀── dead ◀─────────┘

A room is what is reserved of a node: all stages that find a place there at the same time share one.
An agent is an actor that reserves nothing: it has imported what workers need, and starts them for
the rooms of its node. Once a run is under way there is a second agent wherever stages are, and one
on some other node with free room, so that who is lost is replaced without such an import. A room is
kept while its node lives. GPUs are reserved as planned: stages that share one move together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from launch.engines.broker_messages import (
    Again,
    Died,
    Dismiss,
    Doubtful,
    Fork,
    Gone,
    Nodes,
    Prepare,
    Prepared,
    Release,
    Reserve,
    Reserved,
    Unreserved,
    Wake,
)
from pipeline.coordinator.engine import End
from pipeline.errors import ConfigError, EngineLostError
from pipeline.planning.hosts import Host, Place, host_of, local_name
from pipeline.run.events import Detail, Note
from pipeline.system.sources import difference_between_hosts, unlike

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from launch.engines.broker_messages import Answer, Node, OfAgent, OfRoom, Request
    from pipeline.coordinator.engine import Invite
    from pipeline.planning.plan import Plan

_LEAVE_S = 5.0
_LOOK_S = 0.02
_LATE_S = 10.0
"""What is still not there then waits for room that somebody else has taken, or its host is slow."""
_COUNTED_S = 2.0
"""After so long a node counts what was reserved of it."""
_CALM_S = 3.0
"""Agents that nobody needs yet are made when so long nothing else was started, or awaited."""
_SPARE_NODES = 1
"""Nodes without a stage that get an agent: a node is rarely lost."""
_TRIES = 2
"""Of a node on which no agent can be made, before it is left out."""


class Broker(Protocol):
    """Who talks to the cluster."""

    def ask(self, request: Request) -> None:
        """Hand over a request, without waiting."""

    def answers(self) -> list[Answer]:
        """What has happened meanwhile.

        Raises:
            EngineLostError: where the cluster, or the broker, is gone.
        """

    def output(self) -> list[str]:
        """Lines that Ray has printed meanwhile."""


@dataclass(slots=True)
class _Room:
    """`gpus`: how many it holds; `visible`: which, as `broker_messages.Fork` has it."""

    number: int
    node: Node
    cpus: int
    gpus: int
    asked_at: float
    is_held: bool = False
    held_at: float = inf
    visible: str | None = None


@dataclass(slots=True)
class _Agent:
    """`host`: with key and facts, once it is there. `doubt`: why it can't be reached."""

    number: int
    node: Node
    host: Host
    asked_at: float
    is_ready: bool = False
    is_gone: bool = False
    doubt: str = ""

    @property
    def can_be_used(self) -> bool:
        return self.is_ready and not self.is_gone and not self.doubt


@dataclass(slots=True)
class _Seat:
    """Where a stage is, or is to be. `planned`: as `hostA/cuda:0`; `device`: as processes of its
    room call it. `agent`: of its process, also once that is lost."""

    stage: int
    planned: str
    attempt: int = 0
    room: _Room | None = None
    device: str = ""
    agent: _Agent | None = None
    end: End | None = None

    @property
    def waits(self) -> bool:
        """Whether a process is to be started."""
        return self.end is None and self.agent is None


@dataclass(slots=True)
class Cluster:
    """The nodes that are alive, under the names that people know them by."""

    nodes: dict[str, Node] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def take(self, nodes: Iterable[Node]) -> None:
        """These are the nodes now."""
        self.nodes = {node.id: node for node in nodes}
        self._names = {key: name for key, name in self._names.items() if key in self.nodes}
        for node in self.nodes.values():
            if node.id not in self._names:
                self._names[node.id] = self._free_name(node.name.partition(".")[0])

    def _free_name(self, name: str) -> str:
        numbered = (f"{name}-{number}" for number in count(2))
        taken = set(self._names.values())
        return name if name not in taken else next(n for n in numbered if n not in taken)

    def name(self, node: Node) -> str:
        """As plans call it; also of one that is gone."""
        return self._names.get(node.id, node.name)

    def hosts(self, gpus: int | None, threads: int) -> tuple[Host, ...]:
        """What a run may use: GPUs of those hosts that have some, else the CPUs.

        Args:
            gpus: at most so many of each host; None: all; 0: the CPU alone.
            threads: CPU threads of a stage, of which each reserves one CPU.
        """
        nodes = sorted(self.nodes.values(), key=lambda node: (self.name(node), node.id))
        lent = {node.id: node.gpus if gpus is None else min(gpus, node.gpus) for node in nodes}
        if any(lent.values()):
            return tuple(
                Host(
                    self.name(node),
                    node.address,
                    tuple(f"cuda:{number}" for number in range(lent[node.id])),
                )
                for node in nodes
                if lent[node.id]
            )
        return tuple(
            Host(self.name(node), node.address, ("cpu",), room=node.cpus // threads)
            for node in nodes
        )


class ClusterWorkers:
    """As `coordinator.engine.Workers` describes.

    Args:
        cluster: its nodes by now; kept up to date.
        threads: as for `Cluster.hosts`.
        ours: facts of this process (`host.facts_here`), which those of a host are held against.
        forsaken_s: as `Prepare` has it.
        spares: whether agents are made that nobody needs yet.
    """

    def __init__(
        self,
        broker: Broker,
        cluster: Cluster,
        threads: int,
        ours: tuple[str, ...],
        *,
        forsaken_s: float,
        spares: bool = True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._broker, self._cluster, self._threads = broker, cluster, threads
        self._ours, self._spares, self._clock = ours, spares, clock
        self._forsaken_s = forsaken_s
        self._invite: Invite | None = None
        self._seats: list[_Seat] = []
        self._rooms: dict[int, _Room] = {}
        self._agents: dict[int, _Agent] = {}
        self._numbers = count(1)
        self._started_at = inf
        self._news: list[str] = []
        self._failures: dict[str, int] = {}
        """How often no agent could be made, by node."""
        self._ended: set[str] = set()
        """Nodes that are gone, and may still be listed."""
        self._like: tuple[str, ...] = ()
        """Facts of the first host, which others should be like."""
        self._kinds: tuple[str, ...] = ()
        """Of its GPUs."""
        self._told: set[str] = set()

    def reserve(self, plan: Plan) -> None:
        """Begin to look for room, and to make agents there; nothing waits for it."""
        self._seats = [_Seat(stage.stage, stage.device) for stage in plan.stages]
        self._settle()

    def begin(self, invite: Invite) -> None:
        """From now on stages get their processes. It is called right before a process is started,
        once the key of its host is known."""
        self._invite = invite
        self._settle()

    # what the coordinator asks

    def dead(self) -> dict[int, End]:
        self._look()
        return {seat.stage: seat.end for seat in self._seats if seat.end}

    def home(self, stage: int) -> Place | None:
        seat = self._seats[stage]
        if seat.agent is not None:
            return Place(seat.agent.host, seat.device)
        return Place(self._host(seat.room.node), seat.device) if seat.room else None

    def waiting(self) -> dict[int, str]:
        self._look()
        late, found = self._clock() - _LATE_S, dict[int, str]()
        for seat in self._seats:
            if not seat.waits:
                continue
            if seat.room is None:
                found[seat.stage] = self._what_is_missing(seat)
            elif not seat.room.is_held and seat.room.asked_at < late:
                found[seat.stage] = f"{self._cluster.name(seat.room.node)} to make room for it"
        return found

    def news(self) -> list[Note | Detail]:
        news, self._news = self._news, []
        return [*map(Note, news), *(Detail(f"ray: {line}") for line in self._broker.output())]

    def replace(self, stage: int, attempt: int) -> None:
        """Room, where there is none any more, is found for all stages together that are replaced
        now."""
        seat = self._seats[stage]
        agent, seat.agent, seat.end, seat.attempt = seat.agent, None, None, attempt
        if agent is not None and agent.can_be_used:
            self._start(seat, agent)
        elif agent is not None and agent.doubt and not agent.is_gone:
            self._give_up(agent)

    def wake(self, stage: int) -> None:
        """What is still awaited, perhaps since its host imports torch, is not to compete with an
        agent that nobody needs yet."""
        self._started_at = self._clock()
        agent = self._seats[stage].agent
        if agent is not None and agent.can_be_used:
            self._broker.ask(Wake(agent.number, stage))

    def leave(self) -> None:
        self._wait(lambda: all(seat.end or not seat.agent for seat in self._seats))

    def stop(self) -> None:
        for agent in self._agents.values():
            self._broker.ask(Dismiss(agent.number))
        for room in self._rooms.values():
            self._broker.ask(Release(room.number))
        self._wait(lambda: not self._agents)

    # what the broker says

    def _look(self) -> None:
        for answer in self._broker.answers():
            self._take(answer)
        self._settle()

    def _take(self, answer: Answer) -> None:
        if isinstance(answer, Nodes):
            self._cluster.take(answer.nodes)
            for room in list(self._rooms.values()):
                if room.node.id not in self._cluster.nodes:
                    self._release(room)
        elif isinstance(answer, Reserved | Unreserved):
            self._take_of_room(answer)
        elif isinstance(answer, Prepared | Doubtful | Again | Gone | Died):
            self._take_of_agent(answer)

    def _take_of_room(self, answer: OfRoom) -> None:
        room = self._rooms.get(answer.room)
        if room is None:
            return
        if isinstance(answer, Reserved):
            room.is_held, room.held_at, room.visible = True, self._clock(), answer.gpus
            self._kinds = self._kinds or answer.kinds
            if answer.kinds != self._kinds:
                self._tell_unlike(
                    self._cluster.name(room.node),
                    [f"GPUs are {', '.join(answer.kinds)}, elsewhere {', '.join(self._kinds)}"],
                )
        else:
            self._forget(room)

    def _take_of_agent(self, answer: OfAgent) -> None:
        agent = self._agents.get(answer.agent)
        if agent is None:
            return
        if isinstance(answer, Prepared):
            self._prepared(agent, answer)
        elif isinstance(answer, Doubtful):
            if self._is_reached(agent.node):
                self._news.append(f"{agent.host.name} can't be reached: {answer.why}")
            agent.doubt = answer.why
        elif isinstance(answer, Again):
            agent.doubt = ""
            if self._is_reached(agent.node):
                self._news.append(f"{agent.host.name} can be reached again")
        elif isinstance(answer, Gone):
            if answer.with_node:
                self._ended.add(agent.node.id)
                self._release(*self._rooms_on(agent.node))
            self._gone(agent, answer.why)
        else:
            seat = self._seats[answer.stage]
            if seat.agent is agent and seat.attempt == answer.attempt:
                seat.end = End(answer.how, answer.silent, answer.comes_back, answer.traceback)

    def _prepared(self, agent: _Agent, prepared: Prepared) -> None:
        name = agent.host.name
        if wrong := difference_between_hosts(self._ours, prepared.facts):
            raise ConfigError(
                f"host {name} runs other code than the launcher: {wrong}; install the same version "
                "on every host"
            )
        self._like = self._like or prepared.facts
        self._tell_unlike(name, unlike(self._like, prepared.facts))
        agent.is_ready = True
        agent.host = replace(agent.host, key=prepared.key, facts=prepared.facts)

    def _tell_unlike(self, name: str, odd: list[str]) -> None:
        """Tell, once, of a host on which results may differ."""
        text = f"host {name}: {'; '.join(odd)}: results are exact only between hosts that are alike"
        if odd and text not in self._told:
            self._told.add(text)
            self._news.append(text)

    def _gone(self, agent: _Agent, why: str) -> None:
        del self._agents[agent.number]
        agent.is_gone = True
        for seat in self._seats:
            if seat.agent is agent and seat.end is None:
                seat.end = End(f"is gone: {why}", silent=True)
        is_there = agent.node.id in self._cluster.nodes and agent.node.id not in self._ended
        if not agent.is_ready and is_there:
            self._note_failure(agent, why)

    def _note_failure(self, agent: _Agent, why: str) -> None:
        failures = self._failures.get(agent.node.id, 0) + 1
        self._failures[agent.node.id] = failures
        if failures == _TRIES:
            self._news.append(f"{agent.host.name} can't be used: {why}")
            self._release(*self._rooms_on(agent.node))
        if not any(map(self._can_be_used, self._cluster.nodes)):
            raise ConfigError(f"no host of the cluster can be used: {agent.host.name}: {why}")

    def _release(self, *rooms: _Room) -> None:
        for room in rooms:
            self._broker.ask(Release(room.number))
            self._forget(room)

    def _forget(self, room: _Room) -> None:
        """Its stages need another; those that still run are lost on their own."""
        del self._rooms[room.number]
        for seat in self._seats:
            if seat.room is room:
                seat.room = None

    def _give_up(self, agent: _Agent) -> None:
        """Of one that can't be reached, and its node: should it come back it is ended."""
        self._broker.ask(Dismiss(agent.number))
        self._gone(agent, f"{agent.host.name} can't be reached: {agent.doubt}")
        self._release(*self._rooms_on(agent.node))

    def _rooms_on(self, node: Node) -> list[_Room]:
        return [room for room in self._rooms.values() if room.node.id == node.id]

    def _agents_on(self, node: str) -> list[_Agent]:
        return [agent for agent in self._agents.values() if agent.node.id == node]

    # room, agents, processes

    def _settle(self) -> None:
        """Whatever stages need and can have now."""
        self._reconsider()
        self._find_room()
        for seat in self._seats:
            if seat.waits and seat.room is not None:
                agent = self._agent_on(seat.room.node)
                if seat.room.is_held and agent is not None and agent.can_be_used and self._invite:
                    self._start(seat, agent)
        self._prepare_spares()

    def _agent_on(self, node: Node) -> _Agent | None:
        """The one that starts processes there; it is made where there is none."""
        there = self._agents_on(node.id)
        if not there:
            return self._prepare(node)
        return next((agent for agent in there if agent.can_be_used), None)

    def _prepare(self, node: Node) -> _Agent:
        agent = _Agent(next(self._numbers), node, self._host(node), self._clock())
        self._agents[agent.number] = agent
        self._broker.ask(Prepare(agent.number, node.id, self._forsaken_s))
        return agent

    def _prepare_spares(self) -> None:
        """Two agents where stages are, and one on another node."""
        is_calm = self._clock() - self._started_at > _CALM_S
        if not (self._spares and is_calm) or any(seat.waits for seat in self._seats):
            return
        if any(not agent.is_ready for agent in self._agents.values()):
            return  # one after the other
        used = {seat.room.node.id for seat in self._seats if seat.room}
        free = {key: sum(room) for key, room in self._free().items()}
        others = [key for key in free if key not in used and free[key] > 0]
        others.sort(key=lambda key: (-free[key], key))
        for key in [*sorted(used), *others[:_SPARE_NODES]]:
            if len(self._agents_on(key)) < 1 + (key in used) and self._can_be_used(key):
                self._prepare(self._cluster.nodes[key])
                return

    def _start(self, seat: _Seat, agent: _Agent) -> None:
        assert self._invite, "it has begun"
        invitation = self._invite(seat.stage, seat.attempt, agent.host.key)
        visible = seat.room.visible if seat.room else None
        self._broker.ask(Fork(agent.number, invitation, visible))
        seat.agent, self._started_at = agent, self._clock()

    def _find_room(self) -> None:
        free = self._free()
        chosen: dict[str, list[list[_Seat]]] = {}
        for unit in self._units():
            node = self._node_for(unit, free)
            if node is not None:
                cpus, gpus = self._need(unit, node)
                free[node.id] = free[node.id][0] - cpus, free[node.id][1] - gpus
                chosen.setdefault(node.id, []).append(unit)
        for key, units in chosen.items():
            self._reserve(self._cluster.nodes[key], units)

    def _reserve(self, node: Node, units: list[list[_Seat]]) -> None:
        needs = [self._need(unit, node) for unit in units]
        cpus, gpus = (sum(amounts) for amounts in zip(*needs, strict=True))
        room = _Room(next(self._numbers), node, cpus, gpus, self._clock())
        self._rooms[room.number] = room
        seats = [seat for unit in units for seat in unit]
        for place, unit in enumerate(units):
            for seat in unit:
                seat.room, seat.device = room, f"cuda:{place}" if gpus else "cpu"
        self._broker.ask(Reserve(room.number, node.id, cpus, gpus))
        self._agent_on(node)
        if any(seat.attempt for seat in seats):
            self._news.append(f"{_stages(seats)} on {self._cluster.name(node)}")

    def _units(self) -> Iterator[list[_Seat]]:
        """Stages that want room, those together that are planned on one GPU."""
        shared: dict[str, list[_Seat]] = {}
        for seat in self._seats:
            if seat.waits and seat.room is None:
                on_gpu = local_name(seat.planned) != "cpu"
                shared.setdefault(seat.planned if on_gpu else str(seat.stage), []).append(seat)
        yield from shared.values()

    def _need(self, unit: list[_Seat], node: Node) -> tuple[int, int]:
        """How many CPUs and GPUs stages that go together need on a node."""
        if local_name(unit[0].planned) == "cpu":
            return self._threads, 0
        return int(node.cpus >= node.gpus), 1

    def _can_be_used(self, node: str) -> bool:
        usable = node not in self._ended and self._failures.get(node, 0) < _TRIES
        return usable and self._is_reached(self._cluster.nodes[node])

    def _is_reached(self, node: Node) -> bool:
        return not any(agent.doubt for agent in self._agents_on(node.id))

    def _free(self) -> dict[str, tuple[int, int]]:
        """Free CPUs and GPUs of every node that can be used; its node may not count a room yet that
        was just made."""
        now, found = self._clock(), dict[str, tuple[int, int]]()
        for node in self._cluster.nodes.values():
            if self._can_be_used(node.id):
                ours = self._rooms_on(node)
                uncounted = [room for room in ours if now - room.held_at < _COUNTED_S]
                found[node.id] = (
                    min(
                        node.free_cpus - sum(room.cpus for room in uncounted),
                        node.cpus - sum(room.cpus for room in ours),
                    ),
                    min(
                        node.free_gpus - sum(room.gpus for room in uncounted),
                        node.gpus - sum(room.gpus for room in ours),
                    ),
                )
        return found

    def _node_for(self, unit: list[_Seat], free: dict[str, tuple[int, int]]) -> Node | None:
        """As planned; beside a neighbour; where there is most room."""
        nodes = [node for node in self._cluster.nodes.values() if node.id in free]
        fitting = [node for node in nodes if _fits(self._need(unit, node), free[node.id])]
        stages = {seat.stage for seat in unit}
        beside = {
            seat.room.node.id
            for seat in self._seats
            if seat.room and {seat.stage - 1, seat.stage + 1} & stages
        }

        def merit(node: Node) -> tuple[bool, bool, int, str]:
            name = self._cluster.name(node)
            planned = name == host_of(unit[0].planned)
            return not planned, node.id not in beside, -sum(free[node.id]), name

        return min(fitting, key=merit, default=None)

    def _reconsider(self) -> None:
        """Room that was free may have been taken by others: look elsewhere where there is some."""
        late = self._clock() - _LATE_S
        for room in [room for room in self._rooms.values() if not room.is_held]:
            node, needs = self._cluster.nodes.get(room.node.id), (room.cpus, room.gpus)
            is_slow = node is not None and _fits(needs, (node.free_cpus, node.free_gpus))
            elsewhere = [free for key, free in self._free().items() if key != room.node.id]
            if room.asked_at < late and not is_slow and any(_fits(needs, one) for one in elsewhere):
                self._release(room)

    def _what_is_missing(self, seat: _Seat) -> str:
        nodes = {
            self._cluster.name(node): node
            for node in self._cluster.nodes.values()
            if self._can_be_used(node.id)
        }
        if local_name(seat.planned) == "cpu":
            what = "1 CPU" if self._threads == 1 else f"{self._threads} CPUs of one host"
            free = [f"{name} {node.free_cpus} of {node.cpus}" for name, node in nodes.items()]
        else:
            what = "a GPU"
            free = [f"{name} {node.free_gpus} of {node.gpus}" for name, node in nodes.items()]
        return f"{what} (free: {', '.join(sorted(free)) or 'no host can be used'})"

    def _host(self, node: Node) -> Host:
        return Host(self._cluster.name(node), node.address, ())

    def _wait(self, done: Callable[[], bool]) -> None:
        until = monotonic() + _LEAVE_S
        try:
            while not done() and monotonic() < until:
                for answer in self._broker.answers():
                    self._take(answer)
                time.sleep(_LOOK_S)
        except (EngineLostError, ConfigError):
            pass  # it ends anyway


def _fits(needs: tuple[int, int], free: tuple[int, int]) -> bool:
    return needs[0] <= free[0] and needs[1] <= free[1]


def _stages(seats: list[_Seat]) -> str:
    numbers = ", ".join(str(seat.stage) for seat in seats)
    return f"stages {numbers} are" if seats[1:] else f"stage {numbers} is"
