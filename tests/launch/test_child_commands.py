"""Commands in processes of their own: in order, ended by a signal, and told apart by their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.processes import until

from launch import child_commands
from launch.child_commands import Ended, carry_out
from launch.engines.interrupts import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has other programs run in place of ours: these words, and then a command's."""

    def instead(*words: str) -> None:
        def command(module: str, parent: int, *more: str) -> list[str]:
            return [*words, *more]

        monkeypatch.setattr(child_commands, "python_command", command)

    return instead


@pytest.mark.processes
def test_an_interruption_ends_all_that_is_at_work(runs: Callable[..., None]) -> None:
    runs("sleep")
    tasks = ["one", "two"]
    told: list[Ended[str]] = []

    def next_one(others: bool) -> tuple[str, list[str]]:
        if not tasks:
            raise KeyboardInterrupt  # as Ctrl-C does, wherever this process is
        return tasks.pop(0), ["60"]

    assert not carry_out(next_one, told.append, 3)
    assert sorted(one.task for one in told) == ["one", "two"]
    assert {one.status for one in told} == {INTERRUPTED}


@pytest.mark.processes
def test_what_fails_when_it_is_asked_to_end_was_interrupted(
    runs: Callable[..., None], tmp_path: Path
) -> None:
    """Where the signal comes while numpy is imported, Python tells of any error but that."""
    runs("sh", "-c", f"trap 'exit 1' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done")
    tasks = ["one"]
    told: list[Ended[str]] = []

    def next_one(others: bool) -> tuple[str, list[str]]:
        if not tasks:
            until((tmp_path / "ready").exists, "the trap of the signal")
            raise KeyboardInterrupt
        return tasks.pop(), []

    assert not carry_out(next_one, told.append, 2)
    assert [one.status for one in told] == [INTERRUPTED]


@pytest.mark.processes
def test_a_task_that_fails_tells_why(runs: Callable[..., None]) -> None:
    runs("sh", "-c", "echo said; echo 'error: it is so' >&2; exit 2")
    tasks = ["one"]
    told: list[Ended[str]] = []
    assert carry_out(lambda others: (tasks.pop(), []) if tasks else None, told.append, 1)
    assert [(one.status, one.said, one.why) for one in told] == [(2, "said\n", "it is so")]


@pytest.mark.processes
def test_what_is_killed_has_failed_and_was_not_interrupted(runs: Callable[..., None]) -> None:
    """As Linux kills what takes too much memory."""
    runs("sh", "-c")
    tasks = {"killed": "kill -KILL $$", "asked to end": "kill -TERM $$"}
    told: list[Ended[str]] = []

    def next_one(others: bool) -> tuple[str, list[str]] | None:
        return (name, [tasks.pop(name)]) if (name := next(iter(tasks), "")) else None

    assert carry_out(next_one, told.append, 1)
    assert [(one.was_interrupted, one.why) for one in told] == [
        (False, "ended by signal 9 (Killed)"),
        (True, "ended by signal 15 (Terminated)"),
    ]


def test_what_cannot_be_started_has_failed(runs: Callable[..., None]) -> None:
    runs("/nowhere/at/all")
    tasks = ["one", "two"]
    told: list[Ended[str]] = []
    assert carry_out(lambda others: (tasks.pop(), []) if tasks else None, told.append, 1)
    assert [one.status for one in told] == [1, 1]
    assert "No such file" in told[0].why


@pytest.mark.processes
def test_what_is_raised_while_a_task_is_told_ends_all_and_is_raised(
    runs: Callable[..., None],
) -> None:
    """As by a disk that takes nothing; a second interruption likewise."""
    runs("sh", "-c")
    for error in (OSError("no room"), KeyboardInterrupt()):
        tasks = ["exec sleep 60", "true"]

        def ended(one: Ended[str], error: BaseException = error) -> None:
            raise error

        def next_one(others: bool, tasks: list[str] = tasks) -> tuple[str, list[str]] | None:
            return (task, [task]) if (task := tasks.pop() if tasks else "") else None

        with pytest.raises(type(error)):
            carry_out(next_one, ended, 2)
