"""A sweep: every process of a run is killed, and stopped, at every moment of the run.

    python tests/chaos/sweep.py --step-ms 50        # from the root of a clone; a line per strike

A run of two workers is started anew for each strike: at each of its processes (the launcher, the
process that starts workers, each worker), with each of SIGKILL and SIGSTOP, at each moment of
that process's life, from its first to its last, a step apart. It must end with exit status 0 and
the weights that it would have had undisturbed; where the launcher was killed, after `--resume`.
A launcher that was stopped goes on after a while, nobody else does. Nothing may be left, and
nobody sees a traceback.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a script finds `support`
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rather packages than tests of them
from support.processes import Launcher, final_digests, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., Launcher]

DIGITS = """\
model: {name: mlp, hidden_layers: 2, hidden: 64, dropout: 0.2}
loss: {name: predsim}
schedule: {epochs: 3, milestones: [2]}
data: {name: digits, batch_size: 32, crop_padding: 1}
runtime: {checkpoint_every_steps: 20, max_restarts: 10, heartbeat_timeout_s: 1, start_timeout_s: 15}
"""
"""3 blocks in 2 stages; 3 epochs of 45 steps, a second or so of training undisturbed."""
TARGETS = ("launcher", "fork server", "stage 0", "stage 1")
SIGNALS = ("SIGKILL", "SIGSTOP")
LAUNCHER_STOPPED_S = 1.5
"""Longer than `heartbeat_timeout_s`."""
DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Strike:
    """What hits a process of a run, and how long after the start of that process."""

    target: str
    signal: str
    after_s: float

    def __str__(self) -> str:
        return f"{self.signal} of the {self.target} after {1000 * self.after_s:.0f} ms"


def strike(folder: Path, start: Start, blow: Strike) -> str | None:
    """One run in `folder`, struck once.

    Returns:
        None where it ended as it must, but for its weights; else "ended before".

    Raises:
        AssertionError: saying what went wrong.
    """
    (folder / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    run = start(*_COMMAND)
    found = until(lambda: _find(run, blow.target), f"the {blow.target}", DEADLINE_S)
    time.sleep(max(0.0, found.create_time() + blow.after_s - time.time()))
    if not _lives(found):
        assert run.exit_status(DEADLINE_S) == 0, run.stderr
        return "ended before"
    with suppress(psutil.NoSuchProcess):
        found.send_signal(signal.Signals[blow.signal])
    if blow.target == "launcher":
        run = _after_the_launcher(folder, run, start, blow)
    _ends_well(run, blow)
    return None


_COMMAND = ("digits.yaml", "--run-dir", "run", "--stages", "2")


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _find(run: Launcher, target: str) -> psutil.Process | None:
    if target == "launcher":
        return run.process
    if target == "fork server":
        return next(iter(run.fork_servers()), None)
    workers = run.workers()
    number = int(target.removeprefix("stage "))
    return workers[number] if number < len(workers) else None


def _after_the_launcher(folder: Path, run: Launcher, start: Start, blow: Strike) -> Launcher:
    """What its user does then."""
    if blow.signal == "SIGSTOP":
        with suppress(psutil.TimeoutExpired):
            run.process.wait(LAUNCHER_STOPPED_S)
        with suppress(psutil.NoSuchProcess):
            run.process.resume()
        return run
    run.exit_status(DEADLINE_S)
    until(lambda: not run.family(), f"the end of all processes after {blow}", 15.0)
    _no_traceback(run, blow)
    if not list((folder / "run").glob("checkpoints/step-*/manifest.json")):
        shutil.rmtree(folder / "run", ignore_errors=True)  # nothing to go on from
        return start(*_COMMAND)
    return start(*_COMMAND, "--resume")


def _ends_well(run: Launcher, blow: Strike) -> None:
    with suppress(psutil.TimeoutExpired):
        status = run.exit_status(DEADLINE_S)
        assert status == 0, f"{blow}: exit status {status}: {run.stdout[-2000:]}{run.stderr}"
        _no_traceback(run, blow)
        until(lambda: not run.family(), f"the end of all processes after {blow}", 15.0)
        return
    raise AssertionError(f"{blow}: it does not end: {run.stdout[-2000:]}{run.stderr}")


def _no_traceback(run: Launcher, blow: Strike) -> None:
    said = run.stdout + run.stderr
    assert "Traceback" not in said, f"{blow}: {said}"


def strikes(
    targets: tuple[str, ...], signals: tuple[str, ...], step_s: float, first_s: float = 0.0
) -> Iterator[Iterator[Strike]]:
    """For each target and signal, strikes one step after the other without end."""
    for target in targets:
        for name in signals:
            yield (Strike(target, name, first_s + step_s * number) for number in count())


def alone(folder: Path, work: Callable[[Path, Start], str | None]) -> str | None:
    """Do something with launchers that live in `folder`; what it leaves must be nothing."""
    temp = folder / "t"
    temp.mkdir(parents=True)
    started: list[Launcher] = []

    def start(*arguments: str | Path) -> Launcher:
        started.append(Launcher(folder, temp, *arguments))
        return started[-1]

    try:
        said = work(folder, start)
        until(lambda: not list(temp.iterdir()), f"no files in {list(temp.iterdir())}", 10.0)
        return said
    finally:
        for one in started:
            one.end()


def undisturbed(folder: Path, start: Start) -> None:
    """The run that nobody strikes."""
    (folder / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    assert start(*_COMMAND).exit_status(DEADLINE_S) == 0


def _one(temp: Path, calm: dict[int, str], blow: Strike) -> str | None:
    folder = temp / "one"
    try:
        said = alone(folder, lambda folder, start: strike(folder, start, blow))
        if said is None and final_digests(folder / "run") != calm:
            return f"{blow}: OTHER WEIGHTS"
    except AssertionError as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return said


@click.command()
@click.option("--step-ms", default=50, show_default=True, help="From one strike to the next.")
@click.option("--first-ms", default=0, show_default=True, help="The first moment of all.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, help="Only these.")
@click.option("--signal", "names", type=click.Choice(SIGNALS), multiple=True, help="Only these.")
def main(step_ms: int, first_ms: int, targets: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Sweep over a whole run; exit status 1 where a strike changed anything."""
    struck, faults = 0, list[str]()
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        temp = Path(folder)
        alone(temp / "calm", lambda folder, start: undisturbed(folder, start))
        calm = final_digests(temp / "calm" / "run")
        all_of_them = strikes(targets or TARGETS, names or SIGNALS, step_ms / 1e3, first_ms / 1e3)
        for blows in all_of_them:
            for blow in blows:
                said = _one(temp, calm, blow)
                if said == "ended before":
                    break
                struck += 1
                if said:
                    faults.append(said)
                print(f"{blow}: {said or 'equal'}", flush=True)
    print(f"{struck} strikes, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
