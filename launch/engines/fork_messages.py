"""What launcher and fork server say to each other: a line of JSON each.

launcher ──── Start ───▶ fork server
         ◀─── Imported, once it has imported what workers need; or Broken, and it ends
         ◀─── Started ─▶ Ended, perhaps with Failed before: of each worker, by its number
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from pipeline.protocol.credentials import Invitation, KeyPair


@dataclass(frozen=True, slots=True)
class Start:
    """Fork a worker that calls `target` (module:function) with its invitation and this host's keys.

    `here`: the folder to work in, None for the fork server's own. `path`: where to look for
    modules. `environment`: what is other in it than in that of the fork server.
    """

    worker: int
    target: str
    invitation: Invitation
    here: str | None
    path: tuple[str, ...]
    keys: KeyPair | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Imported:
    """The fork server has imported what workers need, and can fork."""


@dataclass(frozen=True, slots=True)
class Broken:
    """What all workers need can't be imported."""

    why: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Started:
    """The worker is this process."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker can't be forked, or failed before it could tell the coordinator so."""

    worker: int
    why: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker's process is gone; a negative `code` is the signal that ended it."""

    worker: int
    code: int


Answer: TypeAlias = Imported | Broken | Started | Failed | Ended
_ANSWERS: dict[str, type[Answer]] = {
    kind.__name__: kind for kind in (Imported, Broken, Started, Failed, Ended)
}


def answer_line(answer: Answer) -> bytes:
    """An answer as it travels."""
    return json.dumps([type(answer).__name__, asdict(answer)]).encode() + b"\n"


def read_answer(line: bytes) -> Answer:
    """What `answer_line` has written."""
    name, fields = json.loads(line)
    return _ANSWERS[name](**fields)


def start_line(start: Start) -> bytes:
    """A request as it travels."""
    return json.dumps(asdict(start)).encode() + b"\n"


def read_start(line: bytes) -> Start:
    """What `start_line` has written."""
    tree = json.loads(line)
    keys, tree["invitation"] = tree["keys"], invitation_of(tree["invitation"])
    tree["keys"] = KeyPair(**keys) if keys else None
    return Start(**{**tree, "path": tuple(tree["path"])})


def invitation_of(tree: dict[str, Any]) -> Invitation:
    """An invitation from its fields as JSON has them."""
    return Invitation(**{**tree, "user_code": tuple(tree["user_code"])})
