"""However a run ends that has drawn on a terminal, the terminal is as it was before."""

from __future__ import annotations

import os
import signal
import termios
from typing import TYPE_CHECKING

import pytest
from support.processes import HELD, until
from support.terminal import terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Launcher
    from support.terminal import Terminal

    Start = Callable[..., Launcher]


@pytest.fixture(autouse=True)
def one_that_can_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def is_as_before(screen: Terminal) -> None:
    """And was not for a while: the live view hides the cursor."""
    until(lambda: not screen.changes(), f"a terminal as before: {screen.changes()}", 10.0)
    assert "\x1b[?25l" in screen.text, screen.text


@pytest.mark.processes
@pytest.mark.parametrize(("number", "status"), [(0, 0), (signal.SIGINT, 130), (signal.SIGHUP, 130)])
def test_a_run_that_ends_leaves_the_terminal_as_it_was(
    launcher: Start, tiny: Path, tmp_path: Path, number: int, status: int
) -> None:
    with terminal() as screen:
        held = HELD.format(step=5) if number else None
        run = launcher(
            *(tiny, "--run-dir", "run", "--view", "live"), program=held, output=screen.end
        )
        if number:
            until((tmp_path / "held").exists, "the step")
            run.process.send_signal(number)
        assert run.exit_status() == status, screen.text
        is_as_before(screen)


def test_what_is_not_put_back_is_named() -> None:
    with terminal() as screen:
        assert screen.changes() == []
        os.write(screen.end, b"\x1b[?25l\x1b[?1049h\x1b[?2004;7l")
        until(lambda: len(screen.changes()) == 3, "all of it")
        assert screen.changes() == [
            "private mode 7 is off",
            "the cursor is hidden",
            "the alternate screen is shown",
        ]
        os.write(screen.end, b"\x1b[?1049l\x1b[?7;25h")
        until(lambda: not screen.changes(), "as before")
        settings = termios.tcgetattr(screen.end)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(screen.end, termios.TCSANOW, settings)
        assert screen.changes() == ["echo is off"]
