"""Which node a stage is on, and where it goes when that is lost: a scripted broker, no process."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

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
from launch.engines.cluster import Cluster, ClusterWorkers
from pipeline.errors import ConfigError, EngineLostError
from pipeline.planning.plan import Plan, StagePlan
from pipeline.protocol.credentials import Invitation
from pipeline.run.events import Note

if TYPE_CHECKING:
    from launch.engines.broker_messages import Answer, Request

FACTS = ("python 3.11.7", "torch 2.9.0:/here", "launch/cli.py 11", "processor AMD 9")


def node(name: str, cpus: int = 1, gpus: int = 0, free: int | None = None) -> Node:
    free_cpus = cpus if free is None else free
    return Node(f"id-{name}", name, f"10.0.0.{ord(name[-1])}", cpus, gpus, free_cpus, gpus)


@dataclass
class Scene:
    """A cluster, and what was asked of it. Rooms are held and agents come up at once, unless they
    are not `prompt`. Numbers of rooms and agents are theirs in the order of their begin."""

    nodes: list[Node]
    plan: Plan
    prompt: bool = True
    facts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.asked: list[Request] = []
        self.said: list[Answer] = [Nodes(tuple(self.nodes))]
        self.is_gone = False
        cluster = Cluster()
        cluster.take(self.nodes)
        self.invited: list[tuple[int, int, str | None]] = []
        self.workers = ClusterWorkers(
            self, cluster, 1, FACTS, forsaken_s=75.0, clock=lambda: self.now
        )
        self.workers.reserve(self.plan)

    # the broker

    def ask(self, request: Request) -> None:
        self.asked.append(request)
        if isinstance(request, Reserve) and self.prompt:
            gpus = ",".join(map(str, range(4, 4 + request.gpus))) or None
            self.said.append(Reserved(request.room, gpus))
        if isinstance(request, Prepare) and self.prompt:
            name = request.node.removeprefix("id-")
            key = f"key-{self.agents().index(name) + 1}"
            self.said.append(Prepared(request.agent, key, self.facts.get(name, FACTS)))

    def answers(self) -> list[Answer]:
        if self.is_gone:
            raise EngineLostError("its head is gone")
        said, self.said = self.said, []
        return said

    def output(self) -> list[str]:
        return ["(raylet) something"]

    # the coordinator

    def begin(self) -> Scene:
        def invite(stage: int, attempt: int, key: str | None) -> Invitation:
            self.invited.append((stage, attempt, key))
            return Invitation("run", stage, attempt, "tcp://nowhere", (), "key")

        self.workers.begin(invite)
        self.workers.dead()
        return self

    def hear(self, *answers: Answer) -> dict[int, str]:
        """Answers come in, and those to what is asked then; how stages are dead."""
        self.said += answers
        self.workers.dead()
        return {stage: end.how for stage, end in self.workers.dead().items()}

    def replace(self, *stages: int, attempt: int = 1) -> None:
        for stage in stages:
            self.workers.replace(stage, attempt)
        self.hear()

    def number(self, kind: type, place: int) -> int:
        """Of the room (`Reserve`) or agent (`Prepare`) that was begun in this place."""
        begun = [each for each in self.asked if isinstance(each, kind)]
        return begun[place].room if kind is Reserve else begun[place].agent

    def room(self, place: int) -> int:
        return self.number(Reserve, place)

    def agent(self, place: int) -> int:
        return self.number(Prepare, place)

    def rooms(self) -> list[tuple[str, int, int]]:
        """Nodes, CPUs and GPUs of all rooms so far."""
        rooms = [each for each in self.asked if isinstance(each, Reserve)]
        return [(each.node.removeprefix("id-"), each.cpus, each.gpus) for each in rooms]

    def agents(self) -> list[str]:
        """Nodes of all agents so far."""
        return [each.node.removeprefix("id-") for each in self.asked if isinstance(each, Prepare)]

    def forks(self) -> list[tuple[int, int, int]]:
        """The agent's place, stage and attempt of all processes so far."""
        agents = [each.agent for each in self.asked if isinstance(each, Prepare)]
        forks = [each for each in self.asked if isinstance(each, Fork)]
        return [
            (agents.index(each.agent), each.invitation.stage, each.invitation.attempt)
            for each in forks
        ]

    def homes(self) -> list[str]:
        places = [self.workers.home(stage.stage) for stage in self.plan.stages]
        return [place.name if place else "" for place in places]

    def told(self) -> list[str]:
        return [each.text for each in self.workers.news() if isinstance(each, Note)]


def on(*devices: str) -> Plan:
    return Plan(tuple(StagePlan(k, (k,), device) for k, device in enumerate(devices)))


def three(**given: bool) -> Scene:
    """Stages 0 and 1 on a, 2 on b, which are full, and a spare node c."""
    nodes = [node("a", 2), node("b"), node("c")]
    scene = Scene(nodes, on("a/cpu", "a/cpu", "b/cpu"), **given).begin()
    scene.hear(Nodes((node("a", 2, free=0), node("b", free=0), node("c"))))
    return scene


def test_a_run_begins_with_a_room_and_an_agent_on_each_host() -> None:
    scene = three()
    assert scene.rooms() == [("a", 2, 0), ("b", 1, 0)]
    assert scene.agents() == ["a", "b"]
    assert scene.forks() == [(0, 0, 0), (0, 1, 0), (1, 2, 0)]
    assert scene.invited == [(0, 0, "key-1"), (1, 0, "key-1"), (2, 0, "key-2")]
    assert scene.homes() == ["a/cpu", "a/cpu", "b/cpu"]
    home = scene.workers.home(2)
    assert home
    assert (home.host.address, home.host.key, home.host.facts) == ("10.0.0.98", "key-2", FACTS)
    assert scene.workers.waiting() == {}


def test_nothing_starts_before_it_begins() -> None:
    """Room is looked for while the launcher still reads its data."""
    scene = Scene([node("a", 2)], on("a/cpu", "a/cpu"))
    assert scene.hear() == {}
    assert scene.rooms()
    assert not scene.forks()
    scene.begin()
    assert [stage for _, stage, _ in scene.forks()] == [0, 1]


def test_a_process_that_dies_is_started_again_where_it_was() -> None:
    scene = three()
    died = Died(scene.agent(0), 1, 0, "was killed by SIGKILL", True)
    assert scene.hear(died) == {1: "was killed by SIGKILL"}
    scene.replace(1)
    assert scene.forks()[3:] == [(0, 1, 1)]
    assert scene.hear(died) == {}  # told of the one before
    assert scene.homes()[1] == "a/cpu"


def test_who_loses_its_agent_keeps_its_room() -> None:
    scene = three()
    how = "is gone: was killed"
    assert scene.hear(Gone(scene.agent(0), "was killed")) == {0: how, 1: how}
    assert scene.homes() == ["a/cpu", "a/cpu", "b/cpu"]  # by which people are told
    scene.replace(0, 1)
    assert len(scene.rooms()) == 2
    assert scene.agents() == ["a", "b", "a"]
    scene.hear()
    assert scene.forks()[3:] == [(2, 0, 1), (2, 1, 1)]


def test_spare_agents_are_made_once_a_run_is_under_way_and_take_over_at_once() -> None:
    scene = three()
    scene.now = 10.0
    for _ in range(5):
        scene.hear()
    assert scene.agents() == ["a", "b", "a", "b", "c"]
    scene.prompt = False
    scene.hear(Gone(scene.agent(1), "was killed"))
    scene.replace(2)
    assert scene.forks()[3:] == [(3, 2, 1)]
    scene.now = 20.0
    scene.hear()
    assert scene.agents()[5:] == ["b"]


def test_no_spare_agents_are_made_while_a_stage_is_awaited() -> None:
    scene = three()
    for scene.now in (2.0, 4.0, 6.0):
        scene.workers.wake(2)  # it has not said hello
        scene.hear()
    assert scene.agents() == ["a", "b"]
    scene.now = 10.0
    scene.hear()
    assert scene.agents()[2:]


def test_who_loses_its_node_goes_elsewhere() -> None:
    scene = three()
    gone = (Unreserved(scene.room(1), "gone"), Gone(scene.agent(1), "its node is gone"))
    scene.hear(Nodes((node("a", 2, free=0), node("c"))), *gone)
    scene.replace(2)
    assert scene.homes() == ["a/cpu", "a/cpu", "c/cpu"]
    assert scene.workers.waiting() == {}
    assert scene.told() == ["stage 2 is on c"]


def test_a_node_that_has_ended_is_left_before_the_cluster_counts_it_as_dead() -> None:
    scene = three()
    scene.hear(Gone(scene.agent(1), "its node has ended", with_node=True))
    scene.replace(2)
    assert Release(scene.room(1)) in scene.asked
    assert scene.homes()[2] == "c/cpu"


def test_a_node_whose_end_is_known_late_is_left_then() -> None:
    scene = three()
    scene.prompt = False
    scene.hear(Gone(scene.agent(1), "died"))
    scene.replace(2)
    assert scene.agents()[2:] == ["b"]  # where its room is
    scene.hear(Nodes((node("a", 2, free=0), node("c"))), Gone(scene.agent(2), "no such node"))
    assert scene.rooms()[2:] == [("c", 1, 0)]
    assert scene.agents()[3:] == ["c"]


def test_without_room_it_waits_until_a_host_joins() -> None:
    scene = three()
    scene.hear(Nodes((node("a", 2, free=0),)), Gone(scene.agent(1), "its node is gone"))
    scene.replace(2)
    assert scene.workers.waiting() == {2: "1 CPU (free: a 0 of 2)"}
    assert scene.workers.home(2) is None
    scene.hear(Nodes((node("a", 2, free=0), node("d", 4))))
    assert scene.homes()[2] == "d/cpu"
    assert scene.workers.waiting() == {}
    scene.hear()
    assert scene.forks()[-1] == (2, 2, 1)


def test_a_cluster_that_is_too_small_takes_what_it_has_room_for() -> None:
    scene = Scene([node("a")], on("a/cpu", "host-to-come/cpu")).begin()
    assert scene.homes() == ["a/cpu", ""]
    assert list(scene.workers.waiting()) == [1]
    assert [stage for _, stage, _ in scene.forks()] == [0]


def test_a_host_that_can_not_be_reached_is_in_doubt_and_not_dead() -> None:
    scene = three()
    assert scene.hear(Doubtful(scene.agent(1), "no answer")) == {}
    assert scene.homes()[2] == "b/cpu"
    assert scene.hear(Again(scene.agent(1))) == {}
    scene.replace(2)
    assert scene.forks()[-1] == (1, 2, 1)
    assert scene.told() == ["b can't be reached: no answer", "b can be reached again"]


def test_who_is_silent_on_a_host_in_doubt_moves_with_all_that_is_there() -> None:
    scene = three()
    scene.hear(Nodes((node("a", 2, free=0), node("b", free=0), node("c", 2))))
    assert scene.hear(Doubtful(scene.agent(0), "no answer")) == {}
    scene.replace(0)  # the coordinator has not heard of it for too long
    assert Dismiss(scene.agent(0)) in scene.asked
    assert Release(scene.room(0)) in scene.asked
    assert scene.hear() == {1: "is gone: a can't be reached: no answer"}
    scene.replace(1)
    assert scene.homes()[1:] == ["c/cpu", "b/cpu"]


def test_gpus_are_reserved_as_planned() -> None:
    """Stages that share one move together, and call it by its place in their room."""
    nodes = [node("a", 8, 2), node("b", 8, 1), node("c", 8, 2)]
    plan = on("a/cuda:1", "a/cuda:0", "b/cuda:0", "a/cuda:1")
    scene = Scene(nodes, plan).begin()
    assert scene.rooms() == [("a", 2, 2), ("b", 1, 1)]
    assert scene.homes() == ["a/cuda:0", "a/cuda:1", "b/cuda:0", "a/cuda:0"]
    assert {each.gpus for each in scene.asked if isinstance(each, Fork)} == {"4,5", "4"}
    scene.hear(
        Nodes((replace(nodes[1], free_gpus=0), replace(nodes[2], free_gpus=1))),
        Gone(scene.agent(0), "its node is gone"),
    )
    scene.replace(0, 1, 3)
    assert scene.homes() == ["c/cuda:0", "", "b/cuda:0", "c/cuda:0"]
    assert scene.workers.waiting() == {1: "a GPU (free: b 0 of 1, c 1 of 2)"}


def test_room_that_somebody_else_has_taken_is_looked_for_elsewhere() -> None:
    """A host that has it, and is only slow, is waited for."""
    scene = Scene([node("a"), node("b")], on("a/cpu"), prompt=False).begin()
    scene.now = 11.0
    assert scene.workers.waiting() == {0: "a to make room for it"}
    assert scene.rooms() == [("a", 1, 0)]
    scene.hear(Nodes((node("a", free=0), node("b"))))
    assert scene.rooms() == [("a", 1, 0), ("b", 1, 0)]
    assert scene.workers.waiting() == {}


def test_a_host_with_other_code_is_refused() -> None:
    facts = {"b": (*FACTS[:2], "launch/cli.py 12", FACTS[3])}
    nodes = [node("a"), node("b")]
    with pytest.raises(ConfigError, match=r"host b runs other code .*launch/cli.py is 11 here, 12"):
        Scene(nodes, on("a/cpu", "b/cpu"), facts=facts).begin()


def test_a_host_that_computes_otherwise_is_named_once() -> None:
    facts = {"b": (FACTS[0], "torch 2.8.0:/there", FACTS[2], FACTS[3])}
    scene = Scene([node("a"), node("b")], on("a/cpu", "b/cpu"), facts=facts).begin()
    scene.hear(Gone(scene.agent(1), "was killed"))
    scene.replace(1)
    assert scene.told() == [
        "host b: torch is 2.8.0, elsewhere 2.9.0: results are exact only between hosts that are "
        "alike"
    ]


def test_a_host_on_which_no_agent_can_be_made_is_left_out() -> None:
    scene = Scene([node("a"), node("b", free=0)], on("a/cpu"), prompt=False).begin()
    scene.hear(Gone(scene.agent(0), "no torch"))
    scene.hear(Gone(scene.agent(1), "no torch"))
    assert scene.told() == ["a can't be used: no torch"]
    assert scene.workers.waiting() == {0: "1 CPU (free: b 0 of 1)"}
    scene.hear(Nodes((node("a"), node("b"))))
    scene.hear(Gone(scene.agent(2), "no numpy"))
    with pytest.raises(ConfigError, match="no host of the cluster can be used: b: no numpy"):
        scene.hear(Gone(scene.agent(3), "no numpy"))


def test_hosts_of_one_name_are_told_apart() -> None:
    cluster = Cluster()
    twins = [replace(node("a"), id="1", name="a.site"), replace(node("a"), id="2", name="a.other")]
    cluster.take(twins)
    assert [cluster.name(each) for each in twins] == ["a", "a-2"]
    cluster.take(twins[1:])
    assert cluster.name(twins[1]) == "a-2"
    cluster.take([*twins[1:], replace(node("a"), id="3", name="a")])
    assert cluster.name(cluster.nodes["3"]) == "a"


@pytest.mark.parametrize(
    ("gpus", "threads", "expected"),
    [
        (None, 1, {"b": ("cuda:0", "cuda:1")}),
        (1, 1, {"b": ("cuda:0",)}),
        (0, 1, {"a": 4, "b": 8}),
        (0, 3, {"a": 1, "b": 2}),
    ],
)
def test_what_hosts_lend(gpus: int | None, threads: int, expected: dict[str, object]) -> None:
    cluster = Cluster()
    cluster.take([node("a", 4), node("b", 8, 2)])
    found = cluster.hosts(gpus, threads)
    assert {each.name: each.room or each.devices for each in found} == expected


def test_the_end_of_the_engine_ends_the_run_and_no_clean_up() -> None:
    scene = three()
    scene.is_gone = True
    with pytest.raises(EngineLostError):
        scene.workers.dead()
    scene.workers.stop()
    ended = [each for each in scene.asked if isinstance(each, Dismiss)]
    assert ended == [Dismiss(scene.agent(0)), Dismiss(scene.agent(1))]


def test_a_stopped_process_is_woken_where_it_is() -> None:
    scene = three()
    scene.workers.wake(2)
    assert scene.asked[-1] == Wake(scene.agent(1), 2)


def test_messages_arrive_as_they_were_sent() -> None:
    invitation = Invitation("run", 1, 2, "tcp://10.0.0.1:1", ("mine:net",), "key")
    messages = (
        *(Code("", "/proc/1/fd/2"), Reserve(1, "id", 2, 3), Release(1), Prepare(1, "id", 75.0)),
        *(Fork(1, invitation, "0,1"), Fork(1, invitation, None), Wake(1, 2), Dismiss(1)),
        *(Joined("10.0.0.1:1", "10.0.0.2"), Refused("why"), Nodes((node("a"), node("b", 2, 2)))),
        *(Reserved(1, "0,1", ("NVIDIA H200",)), Unreserved(1, "why"), Prepared(1, None, FACTS)),
        *(Doubtful(1, "why"), Again(1), Gone(1, "why", True)),
        Died(1, 2, 3, "how", True, True, "trace\nback"),
    )
    for message in messages:
        assert read_line(line_of(message)) == message
        assert line_of(message).count(b"\n") == 1
