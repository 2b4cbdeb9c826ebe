"""Two commands and one run folder: none takes, replaces or mixes what is the other's."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import HELD, TINY_EPOCH, contents, digests, epochs, final_digests, launch

from launch import run_job as run_job_module
from launch.run_directory import HeldRun
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Launcher

    Start = Callable[..., Launcher]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("sockets_gone")]

MIDDLE = TINY_EPOCH + 2
"""A step in the middle of the second epoch."""


def test_a_command_that_began_before_another_had_finished_is_refused(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It has been held up between its start and its lock for all the time that another took."""
    run, held = tmp_path / "run", run_job_module.hold
    after_the_first: dict[Path, bytes | None] = {}

    def late(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(run_job_module, "hold", held)
        assert launch(tiny, run, single=True) == 0
        after_the_first.update(contents(run))
        return held(*given, **more)

    monkeypatch.setattr(run_job_module, "hold", late)
    assert launch(tiny, run, single=True) == 2
    assert "already holds a run (config.yaml)" in capsys.readouterr().err
    assert contents(run) == after_the_first
    assert max(digests(run)) == 3 * TINY_EPOCH


def test_resuming_what_another_command_has_finished_meanwhile(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, held = tmp_path / "run", run_job_module.hold
    resume = partial(launch, tiny, run, single=True, resume=True)
    short = ("schedule.epochs=1",)
    assert launch(tiny, run, single=True, overrides=short) == 0
    finished: dict[Path, bytes | None] = {}

    def late(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(run_job_module, "hold", held)
        assert resume() == 0
        finished.update(contents(run))
        return held(*given, **more)

    monkeypatch.setattr(run_job_module, "hold", late)
    assert resume() == 0
    assert "nothing to do: the run in " in capsys.readouterr().out
    assert contents(run) == finished


def test_a_folder_that_is_moved_while_its_run_trains(
    launcher: Start,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And another run begins and ends under its old name."""
    run, moved = tmp_path / "run", tmp_path / "moved run"
    words = (
        "tiny.yaml",
        "--run-dir",
        "run",
        "--stages",
        "2",
        "--set",
        "runtime.keep_checkpoints=2",
    )
    first = launcher(*words, program=HELD.format(step=MIDDLE))
    first.wait_for("held")
    first.wait_for("run/run.log", f"checkpoint step-{TINY_EPOCH:08d}")
    run.rename(moved)
    assert launch(tiny, run, single=True) == 0  # the second
    second = contents(run)
    first.press_ctrl_c()
    assert first.exit_status() == 130
    said, command = first.stderr.splitlines()
    assert said == f"interrupted after step {MIDDLE}: a checkpoint was written; to go on:"
    assert shlex.split(command)[:4] == ["pipeline-launch", "--resume", "--run-dir", str(moved)]
    assert sorted(digests(moved)) == [TINY_EPOCH, MIDDLE]
    assert contents(run) == second

    assert launch(tiny, moved, single=True, resume=True) == 0
    assert final_digests(moved) == final_digests(run)
    assert epochs(moved) == epochs(run)
    assert contents(run) == second
    log = (moved / "run.log").read_text(encoding="utf-8")
    assert "can't be written" not in log


def test_a_folder_that_is_deleted_before_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is advised of what is there under its name by then."""
    run = tmp_path / "run"
    prepare = HeldRun.prepare

    def deleted(*given: Any, **named: Any) -> None:
        prepare(*given, **named).close()
        shutil.rmtree(run)
        assert launch(tiny, run, single=True, overrides=("schedule.epochs=1",)) == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldRun, "prepare", _once(deleted, prepare))
    assert launch(tiny, run, single=True) == 130
    assert capsys.readouterr().err == "interrupted: there is no complete checkpoint\n"
    assert max(digests(run)) == TINY_EPOCH


def _once(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter([first])
    return lambda *given, **named: next(calls, then)(*given, **named)


def test_without_locks_a_run_says_so_and_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "lock", lambda folder: False)
    assert launch(tiny, tmp_path / "run", single=True, overrides=("schedule.epochs=1",)) == 0
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "has no locks: nothing keeps another command from changing it" in log


FIVE = """
import datetime, sys
from launch import run_directory
moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
run_directory.datetime = type("SameSecond", (), {"now": lambda: moment})
print("ready", flush=True)
sys.stdin.readline()
with run_directory.hold_new("digits") as run:
    print(run.path, flush=True)
    sys.stdin.readline()
"""


def test_five_processes_that_start_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", FIVE],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                )
            )
            for _ in range(5)
        ]  # fmt: skip
        for ready in (True, False):
            said = [process.stdout.readline().strip() for process in started if process.stdout]
            for process in started:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            assert ready == (set(said) == {"ready"})
    plain = "runs/digits-20260102-030405"
    assert sorted(said) == [plain, *(f"{plain}-{number}" for number in (2, 3, 4, 5))]
