"""Where workers run: what an engine must offer. `local` is this machine, `ray` a cluster.

    hosts ─▶ plan ─▶ start ─▶ Workers:  home ◀── replace ◀── dead
                                          └──── waiting ────┘      where there is no room

No call of `Workers` but `leave` and `stop` waits for anything: the coordinator's one thread makes
them all, between messages of stages that live on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from pipeline.planning.hosts import Host, Place, Wanted
    from pipeline.planning.plan import Plan
    from pipeline.protocol.credentials import Invitation
    from pipeline.run.events import Detail, Note

    Invite: TypeAlias = Callable[[int, int, str | None], Invitation]
    """Of (stage, attempt, public key of the host), asked for before the process is started there:
    from then on the coordinator admits that key for the stage. None: the host can make no keys."""


@dataclass(frozen=True, slots=True)
class End:
    """How a stage's process ended: `how`, as the end of a sentence ("was killed by SIGKILL").

    `silent`: it could say nothing before. `comes_back`: another process would end the same way,
    where this one had not begun to train. `traceback`: its own, or empty.
    """

    how: str
    silent: bool = False
    comes_back: bool = False
    traceback: str = ""


class Workers(Protocol):
    """The started processes, one per stage."""

    def dead(self) -> dict[int, End]:
        """Stages whose process has ended, each with how. One whose host can't be reached is not
        among them: if it lives its heartbeats say so, and if not, their absence will.

        Raises:
            EngineLostError: where the engine itself is gone.
        """

    def home(self, stage: int) -> Place | None:
        """Where the stage's process runs, or is being started; None while it waits for room."""

    def waiting(self) -> dict[int, str]:
        """Stages for which there is no room now, each with what it waits for ("1 CPU"). A host that
        joins takes them, without being asked."""

    def news(self) -> list[Note | Detail]:
        """What the person who watches should know of hosts, or find in the log, since this was
        asked last."""

    def replace(self, stage: int, attempt: int) -> None:
        """End the stage's process, if it still runs, and start another, there or elsewhere.

        Args:
            attempt: how often the run has begun again; the process says so in its hello.
        """

    def wake(self, stage: int) -> None:
        """Let the stage's process go on, where somebody has stopped it (SIGSTOP)."""

    def leave(self) -> None:
        """Wait a while for workers that have said bye."""

    def stop(self) -> None:
        """End whatever still runs; returns when nothing does."""


class Engine(Protocol):
    """Starts worker processes."""

    @property
    def socket_folder(self) -> Path:
        """Where their sockets are to lie; still to be made. Whichever process is left when the
        launcher is killed removes it, and so must know its name before it is made."""

    def warm_up(self) -> None:
        """Begin what takes long (importing torch) without waiting for it."""

    @property
    def address(self) -> str | None:
        """Of this process, as the hosts reach it; None: as `runtime.bind_address` says."""

    def hosts(self, wanted: Wanted) -> tuple[Host, ...]:
        """Where stages may run, for the plan.

        Raises:
            ConfigError: where there is nothing of what is wanted.
        """

    def start(self, plan: Plan, invite: Invite) -> Workers:
        """Start one process per stage, on the devices of the plan as far as there is room. Each is
        given its invitation, and over a pipe of its own host, if the coordinator has keys, those of
        that host: no secret travels."""

    def close(self) -> None:
        """Let go of what was begun; there are no workers any more."""
