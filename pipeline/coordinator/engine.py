"""Where workers run: what an engine must offer. `local` is this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from pipeline.protocol.credentials import Invitation

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
        """Stages whose process has ended, each with how."""

    def replace(self, stage: int, attempt: int) -> None:
        """End the stage's process, if it still runs, and start another.

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

    def start(self, stages: int, invite: Invite) -> Workers:
        """Start one process per stage. Each is given its invitation, and over a pipe of its own
        host, if the coordinator has keys, those of that host: no secret travels."""

    def close(self) -> None:
        """Let go of what was begun; there are no workers any more."""
