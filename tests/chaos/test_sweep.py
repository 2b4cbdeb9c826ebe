"""A few strikes; `python tests/chaos/sweep.py --step-ms 50` is the whole proof."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest
from support.processes import DEADLINE_S, final_digests, launch, until

from chaos.sweep import DIGITS, Strike, strike

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Launcher

    Start = Callable[..., Launcher]

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Weights of the run that nobody strikes, in one process."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    assert launch(folder / "digits.yaml", folder / "run", single=True) == 0
    return final_digests(folder / "run")


@pytest.mark.parametrize(
    "blow",
    [
        Strike("launcher", "SIGKILL", 1.1),
        Strike("fork server", "SIGKILL", 1.9),
        Strike("stage 1", "SIGSTOP", 0.5),
    ],
    ids=str,
)
def test_a_strike_changes_nothing(
    launcher: Start, tmp_path: Path, calm: dict[int, str], blow: Strike
) -> None:
    if strike(tmp_path, launcher, blow) is None:
        assert final_digests(tmp_path / "run") == calm


def test_workers_that_are_stopped_as_soon_as_they_live_go_on(
    launcher: Start, tmp_path: Path, calm: dict[int, str]
) -> None:
    (tmp_path / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    run = launcher("digits.yaml", "--run-dir", "run", "--stages", "2")
    fork_server = until(run.fork_servers, "a fork server")[0]
    stopped: set[int] = set()

    def all_were_stopped() -> bool:
        with suppress(psutil.Error):
            for worker in fork_server.children():
                if worker.pid not in stopped:
                    os.kill(worker.pid, signal.SIGSTOP)
                    stopped.add(worker.pid)
        return len(stopped) >= 2  # more where one was taken for stuck and replaced meanwhile

    until(all_were_stopped, "two workers")
    assert run.exit_status(2 * DEADLINE_S) == 0, run.stderr
    assert final_digests(tmp_path / "run") == calm


def test_a_launcher_killed_while_its_workers_are_made_leaves_no_folder(
    launcher: Start, tmp_path: Path
) -> None:
    (tmp_path / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    run = launcher("digits.yaml", "--run-dir", "run", "--stages", "2")
    until(lambda: list(run.temp.glob("pipeline-*")), "a folder of sockets")
    until(run.workers, "a worker")
    run.process.kill()
    until(lambda: not run.family(), "the end of all processes")
    assert not list(run.temp.glob("pipeline-*"))
