"""What signals do to a run: asked of handlers in this process, which is its own addressee."""

from __future__ import annotations

import signal
import subprocess
import sys
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support.processes import HELD, python

from launch import entry
from launch.cli import main as launch
from launch.engines.interrupts import INTERRUPTIONS, interrupts_noted
from launch.engines.local import LocalEngine
from launch.job import Options
from launch.plan.checks import make_job
from launch.reproduce import main as reproduce
from launch.training import carry_out
from launch.verify import digests_of
from launch.verify import main as verify
from pipeline.signals import signals_held
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click import Command
    from support.processes import Launcher


@pytest.fixture(autouse=True)
def heeded(handlers_as_before: None) -> None:
    """Signals as Python handles Ctrl-C, however the tests were started."""
    for number in INTERRUPTIONS:
        signal.signal(number, signal.default_int_handler)


def ctrl_c(*given: Any, **options: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_signal_is_noted(number: signal.Signals) -> None:
    with interrupts_noted() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()
    assert signal.getsignal(number) is signal.default_int_handler


def test_signals_close_together_are_one() -> None:
    now = [100.0]
    with interrupts_noted(lambda: now[0]) as interrupted:
        for later in (0.0, 0.06, 0.9):
            now[0] = 100.0 + later
            signal.raise_signal(signal.SIGTERM)
        assert interrupted()
        now[0] = 101.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # nothing interrupts the cleaning


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_signal_is_not_lost_while_a_process_is_started(number: signal.Signals) -> None:
    """Which itself gets none, nor do its children."""
    program = "import os, signal; os.kill(os.getpid(), {0}); os.execvp('sleep', ['sleep', '0'])"
    with interrupts_noted() as interrupted:
        with signals_held(*INTERRUPTIONS):
            signal.raise_signal(number)
            child = subprocess.Popen([sys.executable, "-c", program.format(number.value)])
            assert not interrupted()
        assert interrupted()
    assert child.wait(60) == 0


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
def test_verifying_ends_at_a_signal_and_leaves_nothing(
    launcher: Callable[..., Launcher], tmp_path: Path
) -> None:
    program = HELD.format(step=3).replace("launch.cli", "launch.verify")
    run = launcher("tiny.yaml", "--stages", "2", program=program)
    run.wait_for("held")
    run.process.send_signal(signal.SIGTERM)
    assert run.exit_status() == 130
    assert (run.stdout, run.stderr) == ("", "interrupted\n")
    assert not list(run.temp.glob("pipeline-verify-*"))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_signal_at_the_end_of_one_run_leaves_out_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    """To verify takes two runs; the first has no step left that could end it."""

    def and_a_signal(*given: Any) -> None:
        carry_out(*given)
        signal.raise_signal(number)

    monkeypatch.setattr("launch.training.carry_out", and_a_signal)
    with pytest.raises(KeyboardInterrupt):
        digests_of(make_job(Options(tmp_path / "tiny.yaml", single=True)), 1, None)


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_what_was_ignored_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interrupts_noted() as interrupted:
        signal.raise_signal(number)
        assert not interrupted()
        for other in set(INTERRUPTIONS) - {number}:
            assert signal.getsignal(other) not in (signal.SIG_IGN, signal.default_int_handler)
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(launch, ["tiny.yaml"]), (verify, ["tiny.yaml"]), (reproduce, ["--list"])],
)
def test_ctrl_c_before_anything_has_begun(
    monkeypatch: pytest.MonkeyPatch, command: Command, arguments: list[str]
) -> None:
    """While modules are imported, which takes most of the time until then."""

    monkeypatch.setattr("launch.job.Options", ctrl_c)
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "command", [getattr(entry, name.replace("-", "_")) for name in entry.COMMANDS]
)
def test_ctrl_c_while_the_first_modules_are_imported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[], None],
) -> None:
    """Click takes most of this time, before it can do anything about a signal."""

    monkeypatch.setattr(entry, "leave_current_folder", ctrl_c)
    with pytest.raises(SystemExit) as ended:
        command()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


BEGINNING = """
import os, signal
from launch.command import run_command

def body():
    try:
        os.kill(os.getpid(), signal.{number})
    finally:
        os.kill(os.getpid(), signal.{number})  # as `timeout` does, to its child and its group

run_command(body)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_before_training_unwinds_the_command(number: str) -> None:
    done = python("-c", BEGINNING.format(number=number), preexec_fn=default_signals)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


ENDING = """
import atexit, os, signal
from launch.command import run_command
atexit.register(os.kill, os.getpid(), signal.{number})
run_command(lambda: {status})
"""


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 0), ("SIGTERM", 1), ("SIGHUP", 2)])
def test_a_signal_at_the_end_of_python_changes_nothing(number: str, status: int) -> None:
    done = python("-c", ENDING.format(number=number, status=status))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_ctrl_c_while_the_engine_is_closed_leaves_a_run_done(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    monkeypatch.setattr(LocalEngine, "warm_up", lambda engine: None)
    monkeypatch.setattr(LocalEngine, "close", ctrl_c)
    monkeypatch.setattr("launch.training.train", lambda *given, **options: (RunState(), None))
    result = CliRunner().invoke(launch, [str(tiny)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "to go on: pipeline-eval " in result.stdout.splitlines()[2]


def test_another_thread_notes_nothing_and_trains_all_the_same() -> None:
    """Python lets the main thread alone set handlers."""
    asked: list[bool] = []

    def note() -> None:
        with interrupts_noted() as interrupted:
            asked.append(interrupted())

    thread = Thread(target=note)
    thread.start()
    thread.join()
    assert asked == [False]


def default_signals() -> None:
    """Tests that a shell has started in the background, or under nohup, ignore some."""
    for number in INTERRUPTIONS:
        signal.signal(number, signal.SIG_DFL)
