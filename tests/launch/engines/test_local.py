"""The launcher's end of the fork server, where no process is needed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from launch.engines.fork_messages import Start, read_start, start_line
from launch.engines.local import ForkServerClient, LocalEngine
from pipeline.planning.plan import Plan, StagePlan
from pipeline.protocol.credentials import Invitation

if TYPE_CHECKING:
    from pipeline.protocol.credentials import KeyPair


class Unkillable:
    """A process in uninterruptible sleep."""

    pid = 4711

    def kill(self) -> None:
        """Not even this ends it."""

    def wait(self, timeout: float) -> int:
        raise subprocess.TimeoutExpired("fork server", timeout)


def test_a_fork_server_that_not_even_sigkill_ends_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: Unkillable())
    server = ForkServerClient()
    server.run()
    server.close()
    assert capsys.readouterr().err == (
        "process 4711, which starts workers, was killed and has not ended within 5 s: what it "
        "waits for does not answer; it ends, with its workers, once that does\n"
    )
    assert server.how_it_ended() is None


@pytest.mark.parametrize("coordinator", [None, "the coordinator's public key"])
def test_secret_keys_go_to_workers_over_the_pipe_alone(
    monkeypatch: pytest.MonkeyPatch, coordinator: str | None
) -> None:
    """All of a host have the same, of which the coordinator learns the public one before each
    starts; where it has none itself they get none."""
    asked: list[Start] = []
    invited: list[tuple[int, int, str | None]] = []

    def invite(stage: int, attempt: int, key: str | None) -> Invitation:
        invited.append((stage, attempt, key))
        return Invitation("run", stage, attempt, "nowhere", ("a:b",), coordinator)

    monkeypatch.setattr(ForkServerClient, "run", lambda server: None)
    monkeypatch.setattr(
        ForkServerClient, "ask", lambda server, start: asked.append(read_start(start_line(start)))
    )
    plan = Plan(tuple(StagePlan(stage, (stage,), "cpu") for stage in range(2)))
    workers = LocalEngine().start(plan, invite)
    workers.replace(1, 3)
    (key,) = {key for _, _, key in invited}
    assert [(stage, attempt) for stage, attempt, _ in invited] == [(0, 0), (1, 0), (1, 3)]
    assert [start.invitation for start in asked] == [
        Invitation("run", stage, attempt, "nowhere", ("a:b",), coordinator)
        for stage, attempt, _ in invited
    ]
    (keys,) = {start.keys for start in asked}
    assert _public(keys) == (key if coordinator else None)
    assert keys is None or keys.secret not in repr(asked)


def _public(keys: KeyPair | None) -> str | None:
    return keys.public if keys else None
