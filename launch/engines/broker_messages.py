"""What launcher and broker say to each other: a line of JSON each.

launcher ──── Code, Reserve, Release, Prepare, Fork, Wake, Dismiss ───▶ broker
         ◀─── Joined, or Refused, and it ends
         ◀─── Nodes, whenever they have changed
         ◀─── Reserved ─▶ Unreserved              of each room: what is reserved of a node
         ◀─── Prepared ─▶ Doubtful ⇄ Again ─▶ Gone, and Died      of each agent: an actor that
                                                                  starts processes on its node
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeAlias

from launch.engines.fork_messages import invitation_of

if TYPE_CHECKING:
    from pipeline.protocol.credentials import Invitation


@dataclass(frozen=True, slots=True)
class Code:
    """Files with a user's own code (`users_code.UsersCode`), which actors get; empty: there is
    none."""

    packed: str
    modules: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold so much of a node, for as long as it takes to be free."""

    room: int
    node: str
    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give room on a host back to Ray."""

    room: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make an agent on a node. It reserves nothing, and imports what workers need. `forsaken_s`: if
    it is asked nothing for so long, the launcher's host is gone for it, and it ends."""

    agent: int
    node: str
    forsaken_s: float


@dataclass(frozen=True, slots=True)
class Fork:
    """Start the process of a stage there, in place of one that is still there. `gpus`: which of the
    host's it sees, as CUDA_VISIBLE_DEVICES names them; None: as its agent does."""

    agent: int
    invitation: Invitation
    gpus: str | None


@dataclass(frozen=True, slots=True)
class Wake:
    """Let the process of a stage go on, where somebody has stopped it."""

    agent: int
    stage: int


@dataclass(frozen=True, slots=True)
class Dismiss:
    """End the agent, and with it all processes of its stages. Answered by `Gone`."""

    agent: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive; `free_…`: what nobody has reserved of what it lends."""

    id: str
    name: str
    address: str
    cpus: int
    gpus: int
    free_cpus: int
    free_gpus: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The broker belongs to the cluster at `cluster`; `here`: the address of this node."""

    cluster: str
    here: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no cluster to run on, for the user."""

    why: str


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes that are alive, in the order of their names."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Reserved:
    """The room is held; `gpus`: as in `Fork`; `kinds`: what these are, as "NVIDIA H200"."""

    room: int
    gpus: str | None
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreserved:
    """It is not held any more, or can't be."""

    room: int
    why: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The agent is there: the public key of its workers, and what runs there."""

    agent: int
    key: str | None
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Doubtful:
    """The agent can't be reached. It may live."""

    agent: int
    why: str


@dataclass(frozen=True, slots=True)
class Again:
    """An agent that could not be reached can be reached again."""

    agent: int


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such agent any more, or there can be none; its processes are gone, or go.
    `with_node`: because its node is gone, which the cluster may not have noticed yet."""

    agent: int
    why: str
    with_node: bool = False


@dataclass(frozen=True, slots=True)
class Died:
    """The process of a stage has ended; the rest as `coordinator.engine.End`."""

    agent: int
    stage: int
    attempt: int
    how: str
    silent: bool = False
    comes_back: bool = False
    traceback: str = ""


Request: TypeAlias = Code | Reserve | Release | Prepare | Fork | Wake | Dismiss
OfRoom: TypeAlias = Reserved | Unreserved
OfAgent: TypeAlias = Prepared | Doubtful | Again | Gone | Died
Answer: TypeAlias = Joined | Refused | Nodes | OfRoom | OfAgent
_KINDS: dict[str, type[Request | Answer]] = {
    kind.__name__: kind
    for kind in (
        *(Code, Reserve, Release, Prepare, Fork, Wake, Dismiss, Joined, Refused, Nodes),
        *(Reserved, Unreserved, Prepared, Doubtful, Again, Gone, Died),
    )
}


def line_of(message: Request | Answer) -> bytes:
    """A message as it travels."""
    return json.dumps([type(message).__name__, asdict(message)]).encode() + b"\n"


def read_line(line: bytes) -> Request | Answer:
    """What `line_of` has written."""
    name, fields = json.loads(line)
    if name == "Nodes":
        return Nodes(tuple(Node(**node) for node in fields["nodes"]))
    if name == "Fork":
        return Fork(**{**fields, "invitation": invitation_of(fields["invitation"])})
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return _KINDS[name](**{**fields, **lists})
