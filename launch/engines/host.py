"""What runs on a host of a cluster, in an actor: a fork server, and the workers that it starts.

    actor ─▶ fork server ─▶ workers         on one machine the launcher is in the actor's place

The host makes its key pair itself; only the public key leaves it. Objects that go in or out are
plain, as JSON has them, but for a user's own. No Ray in here.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from launch.engines.fork_messages import invitation_of
from launch.engines.local import ForkedWorkers, ForkServerClient, fork_request
from launch.engines.users_code import HERE, ON_PATH, unpack
from pipeline.device.host import processor_fact
from pipeline.system.interpreter import module_path
from pipeline.system.sources import running_code
from pipeline.transport.sockets import make_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.protocol.credentials import Invitation

_LOOK_S = 1.0


def facts_here() -> tuple[str, ...]:
    """What this process runs, as `sources.running_code`, and a line for its processor, since
    another one may round otherwise."""
    return (*running_code(), f"processor {processor_fact('model name')}")


class Silence(Thread):
    """Acts once nothing has been heard for `most_s`. It counts the seconds that it has slept: who
    was stopped meanwhile, perhaps with the whole machine, could not hear."""

    def __init__(
        self,
        most_s: float,
        act: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(name="silence", daemon=True)
        self._most_s, self._act, self._sleep = most_s, act, sleep
        self._silent_s = 0.0

    def heard(self) -> None:
        """Begin to count again."""
        self._silent_s = 0.0

    def run(self) -> None:
        while self._silent_s < self._most_s:
            self._sleep(_LOOK_S)
            self._silent_s += _LOOK_S
        self._act()


class Host:
    """The class of the actor.

    Ray would end it once it knew that the launcher is gone, which it may never learn where no cable
    leads there any more. The broker asks for the dead all the time: so silence says it, too.

    Args:
        packed, modules: of `UsersCode`.
        temporary: a folder to make one in, for these modules.
        forsaken_s: after so long without being asked anything it ends its process, and all workers.
    """

    def __init__(self, packed: bytes, modules: bytes, temporary: str, forsaken_s: float) -> None:
        running_code()  # before other files can take the place of what was imported
        self._keys = make_keys()
        self._server = ForkServerClient(packed)
        # which the fork server removes, should this process be killed
        self._server.folder = self._folder = Path(temporary) / self._server.folder.name
        if modules:
            unpack(modules, self._folder)
        self._server.run()
        self._invitations: dict[int, Invitation] = {}
        self._environments: dict[int, dict[str, str]] = {}
        self._told: dict[int, int] = {}
        """Attempts, by stage, whose end has been told."""
        self._workers = ForkedWorkers(self._server, self._start)
        self._silence = Silence(forsaken_s, self._end)
        self._silence.start()

    def about(self) -> tuple[str | None, tuple[str, ...]]:
        """The public key of its workers, and facts."""
        return self._keys.public if self._keys else None, facts_here()

    def fork(self, invitation: dict[str, Any], gpus: str | None) -> None:
        """Start the process of a stage, in place of one that is still there.

        Args:
            gpus: that it sees, as CUDA_VISIBLE_DEVICES has them; None: those that this one does.
        """
        invited = invitation_of(invitation)
        self._invitations[invited.stage] = invited
        self._environments[invited.stage] = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
        self._workers.replace(invited.stage, invited.attempt)

    def wake(self, stage: int) -> None:
        """Let its process go on, where somebody has stopped it."""
        self._workers.wake(stage)

    def died(self) -> list[tuple[int, int, str, bool, bool, str]]:
        """Stages whose process has ended since this was asked last: stage, attempt, and the fields
        of its `End`."""
        self._silence.heard()
        found = []
        for stage, end in self._workers.dead().items():
            attempt = self._invitations[stage].attempt
            if self._told.get(stage) != attempt:
                self._told[stage] = attempt
                found.append((stage, attempt, end.how, end.silent, end.comes_back, end.traceback))
        return found

    def close(self) -> None:
        """End all of it; the folder, too."""
        self._workers.stop()
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)

    def _start(self, number: int, stage: int, attempt: int) -> None:
        self._server.run()  # it may have been killed, too
        here, path = str(self._folder / HERE), (*module_path(), str(self._folder / ON_PATH))
        start = fork_request(number, self._invitations[stage], self._keys, here, path)
        self._server.ask(replace(start, environment=self._environments[stage]))
