"""A run on a Ray that is started for it. On several hosts: `python tests/chaos/cluster.py`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from support import REPOSITORY
from support.processes import digests, epochs, final_digests, launch, until
from support.terminal import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Launcher

    Start = Callable[..., Launcher]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]

ONE_EPOCH = ("schedule.epochs=1", "schedule.milestones=[]", "data.train_limit=320")


def test_digits_on_ray_equal_single_mode(
    launcher: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is left of Ray: no process, no folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = renamed()
    config, single = REPOSITORY / "configs" / "digits.yaml", tmp_path / "single"
    assert launch(config, single, single=True, overrides=ONE_EPOCH) == 0
    settings = [part for setting in ONE_EPOCH for part in ("--set", setting)]
    run = launcher(config, "--engine", "ray", "--stages", "2", "--run-dir", "run", *settings)
    assert run.exit_status(150.0) == 0, run.stderr
    assert run.stderr == ""
    assert final_digests(tmp_path / "run") == final_digests(single)
    assert epochs(tmp_path / "run") == epochs(single)
    assert "2 stages on " in run.stdout
    until(lambda: not of_ray(run) and renamed() <= before, "the end of Ray", 10.0)
    assert not list(Path("/tmp").glob(f"pipeline-ray-*-{run.process.pid}"))


def test_a_run_whose_broker_is_gone_ends_in_order(
    launcher: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is a minute after the head of a cluster: the newest snapshot is on the disk, the live
    view has left the terminal as it was, and the line that goes on stands there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    config = REPOSITORY / "configs" / "digits.yaml"
    settings = (
        "schedule.epochs=1000",
        "schedule.milestones=[]",
        "runtime.checkpoint_every_steps=9",
    )
    words = [part for setting in settings for part in ("--set", setting)]
    with terminal() as screen:
        run = launcher(
            *(config, "--engine", "ray", "--stages", "2", "--run-dir", "run", "--view", "live"),
            *words,
            output=screen.end,
        )
        log = tmp_path / "run" / "run.log"
        until(lambda: log.exists() and "checkpoint step-" in log.read_text(), screen.text, 150.0)
        brokers = [p for p in run.family() if "launch.engines.ray_broker" in _line(p)]
        for broker in brokers:
            broker.kill()
        assert brokers
        assert run.exit_status() == 1, screen.text
        until(lambda: not screen.changes(), f"a terminal as before: {screen.changes()}", 10.0)
        assert "\x1b[?25l" in screen.text
        told = " ".join(screen.text.split())
        assert "is lost: " in told
        assert "to go on: pipeline-launch --resume --run-dir run --stages 2" in told
    until(lambda: not of_ray(run), "the end of Ray", 10.0)
    assert not list(Path("/tmp").glob(f"pipeline-ray-*-{run.process.pid}"))
    assert max(digests(tmp_path / "run")) >= 9


def test_nothing_is_left_of_a_launcher_that_is_killed(
    launcher: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of its stages, its Ray, their folders."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = renamed()
    config = REPOSITORY / "configs" / "digits.yaml"
    run = launcher(
        *(config, "--engine", "ray", "--stages", "2", "--run-dir", "run"),
        *("--set", "schedule.epochs=1000", "--set", "schedule.milestones=[]"),
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text(), "an epoch", 150.0)
    assert list(run.temp.iterdir())
    run.process.kill()
    until(lambda: not (run.family() or of_ray(run)), "the end of all processes", 30.0)
    until(lambda: renamed() <= before, "the end of Ray's agents", 10.0)
    until(lambda: not list(run.temp.iterdir()), "the end of its folder", 10.0)
    assert not list(Path("/tmp").glob(f"pipeline-ray-*-{run.process.pid}"))


def of_ray(run: Launcher) -> list[str]:
    """Command lines of Ray's processes that were started for it."""
    folder = f"-{run.process.pid}/session_"
    return [line for p in psutil.process_iter() if folder in (line := _line(p))]


def renamed() -> set[int]:
    """Processes of any Ray that no longer have the command lines by which they were started, as its
    agents: they look for the process that started them only once in a while."""
    return {p.pid for p in psutil.process_iter() if _line(p).startswith("ray::")}


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
