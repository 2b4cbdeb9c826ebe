"""Workers and launchers that die, hang or fail: who is named, and that nothing is left behind.

Every test here uses `launcher` or `sockets_gone`, which check in the end that no process, no
folder of sockets and nothing in shared memory is left.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from support import processes
from support.processes import HELD, TINY_EPOCH, digests, final_digests, launch, until

from launch.engines.fork_messages import Ended, Start
from launch.engines.local import ForkServerClient, LocalEngine
from pipeline.planning.plan import Plan, StagePlan
from pipeline.protocol.credentials import Invitation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Launcher

    Start = Callable[..., Launcher]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("tiny")]

ENDLESS = ("--run-dir", "run", "--set", "schedule.epochs=1000000")


def training(launcher: Start, *arguments: str) -> Launcher:
    """An endless run of 3 stages that has begun to train."""
    started = launcher("tiny.yaml", *ENDLESS, *arguments)
    started.wait_for("run/metrics.jsonl", '"epoch": 1,')
    assert len(started.workers()) == 3
    assert len(list(started.temp.glob("pipeline-*/control"))) == 1
    return started


def test_a_run_leaves_nothing_behind(launcher: Start, tmp_path: Path) -> None:
    done = launcher("tiny.yaml", "--run-dir", "run")
    assert done.exit_status() == 0
    assert done.stderr == ""
    assert list(done.temp.iterdir()) == []
    until(lambda: not done.family(), "the end of the fork server", 5.0)
    assert max(digests(tmp_path / "run")) == 12


AT_ONCE = ("--set", "runtime.max_restarts=0")
"""Lost workers are not replaced: the run ends."""


def test_a_worker_is_killed(launcher: Start, tmp_path: Path) -> None:
    run = training(launcher, *AT_ONCE)
    run.workers()[1].kill()
    assert run.exit_status(15.0) == 1
    assert run.stderr == "error: stage 1 (block 1, cpu) was killed by SIGKILL\n"
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert log.endswith("failed: stage 1 (block 1, cpu) was killed by SIGKILL\n")


def test_a_worker_hangs(launcher: Start) -> None:
    run = training(launcher, *AT_ONCE, "--set", "runtime.heartbeat_timeout_s=1")
    run.workers()[2].suspend()
    assert run.exit_status(20.0) == 1
    assert run.stderr.startswith("error: stage 2 (blocks 2–3, cpu) hangs: no sign of life for 1.")
    assert run.stderr.count("\n") == 1


def test_the_disk_refuses_a_checkpoint(launcher: Start, tmp_path: Path) -> None:
    """It is said at once, training goes on, and the next checkpoint is tried."""
    run = training(launcher)
    run.wait_for("run/run.log", "checkpoint step-00000004")
    folder = tmp_path / "run" / "checkpoints"
    folder.rename(folder.with_name("moved"))
    folder.write_text("a file is in the way", encoding="utf-8")
    run.wait_for("run/run.log", "checkpoints")
    run.wait_for_more("run/metrics.jsonl")
    folder.unlink()
    run.press_ctrl_c()
    assert run.exit_status() == 130
    assert f"interrupted after step {max(digests(tmp_path / 'run'))}:" in run.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_whole_job_is_told_to_end(
    launcher: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """As clusters and closed terminals do: the workers hear it too, only the launcher acts."""
    run = training(launcher)
    os.killpg(run.process.pid, number)
    assert run.exit_status(15.0) == 130
    assert "a checkpoint was written" in run.stderr
    assert f"interrupted after step {max(digests(tmp_path / 'run'))}:" in run.stderr


def test_the_whole_job_is_suspended_for_a_while(launcher: Start) -> None:
    run = training(launcher, "--set", "runtime.heartbeat_timeout_s=3")
    os.killpg(run.process.pid, signal.SIGSTOP)
    time.sleep(4.0)  # a suspension is a time in which nothing happens
    os.killpg(run.process.pid, signal.SIGCONT)
    run.wait_for_more("run/metrics.jsonl")
    assert run.process.poll() is None
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.exit_status(15.0) == 130


def test_workers_that_could_be_started_are_stopped_where_one_can_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, asked = LocalEngine(), list[Any]()

    def reluctant(server: ForkServerClient, start: Any) -> None:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(start)
        ask(server, start)

    plan = Plan(tuple(StagePlan(stage, (stage,), "cpu") for stage in range(3)))
    ask = ForkServerClient.ask
    monkeypatch.setattr(ForkServerClient, "ask", reluctant)
    with pytest.raises(KeyboardInterrupt):
        engine.start(plan, lambda stage, attempt, key: Invitation("run", stage, 0, "ipc://nobody"))
    assert no_workers_here()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_the_process_that_starts_workers_is_lost(
    launcher: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """It is started, or woken, again; a stopped one when another worker is needed."""
    run = training(launcher)
    run.fork_servers()[0].send_signal(number)
    if number == signal.SIGSTOP:
        run.workers()[1].kill()
    run.wait_for("run/run.log", "training again")
    run.wait_for_more("run/metrics.jsonl")
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.exit_status(15.0) == 130
    assert "Traceback" not in run.stderr + run.stdout


@pytest.mark.parametrize("stopped", ["nobody", "a worker", "the fork server", "all"])
def test_the_launcher_is_killed_while_others_are_stopped(launcher: Start, stopped: str) -> None:
    run = training(launcher, "--set", "runtime.heartbeat_timeout_s=60")
    assert len(run.family()) >= 5  # launcher, fork server, three workers
    workers, servers = run.workers(), run.fork_servers()
    servers = [process for process in servers if process not in workers]
    found = {"a worker": workers[1:2], "the fork server": servers, "all": servers + workers}
    for process in found.get(stopped, []):
        process.suspend()
    run.process.kill()
    assert run.exit_status() == -9
    until(lambda: not run.family(), "the end of workers and fork server", 5.0)
    until(lambda: not list(run.temp.glob("pipeline-*")), "the end of the socket folder", 5.0)


def test_recoveries_leave_nothing_open(launcher: Start, tmp_path: Path) -> None:
    """The survivors, and the launcher, have as many descriptors after the fifth as after the
    first."""
    run = training(launcher, "--set", "runtime.max_restarts=100")
    log, found = tmp_path / "run" / "run.log", []
    for recoveries in range(1, 6):
        run.workers()[-1].kill()
        until(
            lambda n=recoveries: log.read_text(encoding="utf-8").count("training again") == n,
            f"recovery {recoveries}",
        )
        run.wait_for_more("run/metrics.jsonl")
        found.append([p.num_fds() for p in (run.process, *run.workers()[:2])])
    # files may be open just now: a leak would be one with each recovery, so two from these to those
    first, last = map(max, zip(*found[:2], strict=True)), map(min, zip(*found[-2:], strict=True))
    assert all(late < early + 2 for early, late in zip(first, last, strict=True)), found
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.exit_status(15.0) == 130


def test_a_run_from_another_loses_a_worker_before_its_first_snapshot(
    launcher: Start, tmp_path: Path
) -> None:
    """All go back to what the run began with, not to what is drawn for a new one."""
    source = tmp_path / "source"
    assert launch(tmp_path / "tiny.yaml", source, single=True) == 0
    settings = (
        f"model.init_from={source}", "model.freeze=[0]", "schedule.epochs=4",
        "runtime.checkpoint_every_steps=100000",
    )  # fmt: skip
    whole = tmp_path / "whole"
    assert launch(tmp_path / "tiny.yaml", whole, single=True, overrides=settings) == 0
    overrides = [part for setting in settings for part in ("--set", setting)]
    held = HELD.format(step=3 * TINY_EPOCH + 1)
    run = launcher("tiny.yaml", "--run-dir", "run", *overrides, program=held)
    run.wait_for("run/metrics.jsonl", '"epoch": 2,')
    run.workers()[1].kill()
    (tmp_path / "released").touch()
    assert run.exit_status() == 0
    assert "replaced; all go back to step 0" in (tmp_path / "run" / "run.log").read_text()
    assert digests(tmp_path / "run") == digests(whole)
    assert final_digests(whole)[0] != final_digests(source)[0]  # which has heads


def test_a_member_of_a_team_is_killed(launcher: Start, tmp_path: Path) -> None:
    team = ("parallel.members=2", "schedule.epochs=40")
    run = launcher("tiny.yaml", "--run-dir", "run", *(f"--set={text}" for text in team))
    run.wait_for("run/metrics.jsonl", '"epoch": 2,')
    run.workers()[1].kill()
    assert run.exit_status() == 0
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "member 1 (cpu) was killed by SIGKILL: replaced; all go back to step" in log
    whole = tmp_path / "whole"
    assert launch(tmp_path / "tiny.yaml", whole, single=True, overrides=team) == 0
    assert final_digests(tmp_path / "run") == final_digests(whole)


REPLICAS = (("--stages", "3", "--replicas", "1:2"), {"stages": 3, "replicas": ("1:2",)})
"""Of the command, and of a run in this process."""


@pytest.mark.parametrize("replica", [1, 0])
def test_a_replica_of_a_stage_is_killed(launcher: Start, tmp_path: Path, replica: int) -> None:
    """In the middle of a round, mostly, of which there are two in an epoch."""
    words, options = REPLICAS
    longer = ("schedule.epochs=40", "runtime.checkpoint_every_steps=3")
    settings = [part for setting in longer for part in ("--set", setting)]
    run = launcher("tiny.yaml", "--run-dir", "run", *words, *settings)
    run.wait_for("run/metrics.jsonl", '"epoch": 2,')
    run.workers()[2 - replica].kill()  # they stand in the order of rounds, the last first
    assert run.exit_status() == 0
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    killed = f"stage {2 - replica}, replica {replica} (block 1, cpu) was killed by SIGKILL"
    assert f"{killed}: replaced; all go back to step" in log
    whole = tmp_path / "whole"
    assert launch(tmp_path / "tiny.yaml", whole, single=True, overrides=longer, **options) == 0
    found, expected = digests(tmp_path / "run"), digests(whole)
    # where the disk is slower than snapshots come, one is left out, and an older one stays
    both = found.keys() & expected.keys()
    assert {max(found), max(expected)} <= both
    assert {step: found[step] for step in both} == {step: expected[step] for step in both}


KILLED_AT_START = """\
import os, signal
from launch.cli import main
from launch.engines.local import LocalEngine

LocalEngine.start = lambda engine, *given: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_the_launcher_is_killed_between_its_sockets_and_its_workers(launcher: Start) -> None:
    """Nobody has been told of anything, but the folder is there."""
    run = launcher("tiny.yaml", *ENDLESS, program=KILLED_AT_START)
    assert run.exit_status() == -9
    until(lambda: not run.family(), "the end of the fork server")  # that imports torch first
    until(lambda: not list(run.temp.iterdir()), "the end of its folder", 5.0)


@pytest.mark.parametrize("there", ["fork_servers", "workers"])
def test_the_launcher_is_killed_while_others_start(launcher: Start, there: str) -> None:
    run = launcher("tiny.yaml", *ENDLESS)
    until(getattr(run, there), there)
    run.process.kill()
    assert run.exit_status() == -9
    until(lambda: not run.family(), "the end of all")  # the fork server imports torch first
    until(lambda: not list(run.temp.iterdir()), "the end of its folder", 5.0)


@pytest.mark.usefixtures("sockets_gone")
def test_a_worker_raises(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.engines.local._work", processes.work_that_raises)
    no_restarts = ("runtime.max_restarts=0",)
    assert launch(tiny, tiny.parent / "run", stages=2, overrides=no_restarts) == 1
    first, second, *others = capsys.readouterr().err.splitlines()
    assert (
        first == "error: stage 1 (blocks 1–3, cpu), block 2 failed at batch 3: ValueError: planted"
    )
    assert second == "Traceback (most recent call last):"
    assert others[-2:] == ["ValueError: planted", "and its second line"]
    assert any("in fails" in line for line in others)
    assert no_workers_here()


@pytest.mark.usefixtures("sockets_gone")
def test_a_worker_ends_without_a_word(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.engines.local._work", processes.work_that_exits)
    assert launch(tiny, tiny.parent / "run", overrides=("runtime.max_restarts=1",)) == 1
    assert capsys.readouterr().err == ("error: stage 1 (block 1, cpu) ended with exit status 3\n")
    assert no_workers_here()


STREAMS = """
import sys, time

class Stream:
    def __init__(self, error):
        self.error = error
    def flush(self):
        raise self.error

def work(invitation, keys, gone):
    if invitation.stage == 3:
        time.sleep(100)
    errors = (RuntimeError(), KeyboardInterrupt())
    sys.stdout = None if invitation.stage == 2 else Stream(errors[invitation.stage])
    return 5
"""


def test_a_worker_whose_stdout_fails_ends_alone(tmp_path: Path) -> None:
    """It does not become another fork server, which would end its siblings."""
    (tmp_path / "streams.py").write_text(STREAMS)
    server, path = ForkServerClient(), (str(tmp_path), *sys.path)
    server.folder = folder = tmp_path / "sockets"
    folder.mkdir()
    server.run()
    for stage in (3, 0, 1, 2):
        one = Invitation("run", stage, 0, "ipc://nobody")
        server.ask(Start(stage, "streams:work", one, None, path))
    answers: list[Any] = []
    until(lambda: answers.extend(server.answers()) or len(answers) == 8, "their ends")
    try:
        ends = {one.worker: one.code for one in answers if isinstance(one, Ended)}
        assert ends == {0: 5, 1: 5, 2: 5}
        assert folder.exists()
    finally:
        server.close()


def no_workers_here() -> bool:
    """Whether this process's fork server has no children left."""
    children = psutil.Process().children(recursive=True)
    servers = [child for child in children if "fork_server" in " ".join(child.cmdline())]
    return not [child for server in servers for child in server.children()]


# --- memory -------------------------------------------------------------------------------

TEN_LAYERS = """\
model: {name: vgg11b, feat_mult: 0.0625, hidden: 64, dropout: 0.1}
loss: {name: predsim, dim_in_decoder: 128}
schedule: {epochs: 1000000}
data: {name: synthetic, train_images: 64, test_images: 32, batch_size: 32}
"""


def test_workers_share_their_memory(launcher: Start, tmp_path: Path) -> None:
    (tmp_path / "ten.yaml").write_text(TEN_LAYERS, encoding="utf-8")
    run = launcher("ten.yaml", "--run-dir", "run", "--stages", "10")
    run.wait_for("run/metrics.jsonl", '"epoch": 1,')
    workers = run.workers()
    private = [worker.memory_full_info().uss for worker in workers]
    resident = [worker.memory_info().rss for worker in workers]
    run.process.terminate()
    assert run.exit_status() == 130
    assert len(private) == 10
    assert max(private) < 100e6
    assert min(resident) > max(private)  # torch is there, and shared
