"""A seeded storm over a run: workers killed, stopped and delayed, and once the launcher killed.

    python tests/chaos/storm.py --seeds 1-20        # from the root of a clone; a line per storm

Whatever it hits, the run must end with the weights and the metrics that it would have had
undisturbed, and leave nothing behind.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a script finds `support`
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rather packages than tests of them
from support.processes import Launcher, epochs, final_digests, until

if TYPE_CHECKING:
    from collections.abc import Callable

DIGITS = """\
model: {name: mlp, hidden_layers: 3, hidden: 64, dropout: 0.2}
loss: {name: predsim}
schedule: {epochs: 12, milestones: [6]}
data: {name: digits, batch_size: 32, crop_padding: 1}
runtime: {checkpoint_every_steps: 10, max_restarts: 1000, heartbeat_timeout_s: 1}
"""
"""4 blocks in 3 stages; 12 epochs of 45 steps, a few seconds undisturbed."""
ACTIONS = ("kill", "kill", "kill two", "stop", "delay", "delay")
DELAY_S = 0.4
DEADLINE_S = 150.0


@dataclass
class Storm:
    """One run of `DIGITS` in `folder`, and what has hit it.

    Args:
        launcher: starts `pipeline-launch` there with the arguments given.
    """

    seed: int
    folder: Path
    launcher: Callable[..., Launcher]
    hits: list[str] = field(default_factory=list)
    transport: str = "ipc"

    def rage(self) -> None:
        """Returns when the run has ended by itself, with exit status 0."""
        draws = random.Random(self.seed)
        (self.folder / "digits.yaml").write_text(DIGITS, encoding="utf-8")
        run = self.launcher("digits.yaml", "--run-dir", "run", *self._over())
        launcher_dies_after = draws.randint(0, 3)
        give_up = time.monotonic() + DEADLINE_S
        while not self._ends_within(run, draws.uniform(0.5, 2.5)):
            assert time.monotonic() < give_up, f"seed {self.seed}: {self.hits} {run.stderr}"
            if len(self.hits) >= launcher_dies_after and "kill launcher" not in self.hits:
                run = self._kill_launcher(run)
            else:
                self._hit(run, draws)
        assert run.exit_status() == 0, f"seed {self.seed}: {self.hits} {run.stderr}"
        log = (self.folder / "run" / "run.log").read_text(encoding="utf-8")
        assert "turned away" not in log, f"seed {self.seed}: one of ours was turned away: {log}"

    def _ends_within(self, run: Launcher, seconds: float) -> bool:
        with suppress(psutil.TimeoutExpired):
            run.process.wait(seconds)
            return True
        return False

    def _hit(self, run: Launcher, draws: random.Random) -> None:
        action = draws.choice(ACTIONS)
        workers = run.workers()
        draws.shuffle(workers)
        for worker in workers[: 2 if action == "kill two" else 1]:
            with suppress(psutil.NoSuchProcess):
                _strike(worker, action)
                self.hits.append(action)

    def _kill_launcher(self, run: Launcher) -> Launcher:
        self.hits.append("kill launcher")
        run.process.kill()
        run.exit_status()
        until(lambda: not run.family(), "the end of an orphaned run", 10.0)
        resumed = [] if self._never_trained() else ["--resume"]
        if not resumed:
            shutil.rmtree(self.folder / "run", ignore_errors=True)
        return self.launcher("digits.yaml", "--run-dir", "run", *resumed, *self._over())

    def _over(self) -> tuple[str, str]:
        return "--set", f"runtime.transport={self.transport}"

    def _never_trained(self) -> bool:
        return not (self.folder / "run" / "config.yaml").exists()


def _strike(worker: psutil.Process, action: str) -> None:
    if action.startswith("kill"):
        worker.kill()
        return
    worker.suspend()
    if action == "delay":
        time.sleep(DELAY_S)
        worker.resume()


def outcome(run_dir: Path) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """SHA-256 of the final block files, and the metrics without what depends on time."""
    return final_digests(run_dir), epochs(run_dir)


def undisturbed(folder: Path, launcher: Callable[..., Launcher]) -> None:
    """The same run without a storm."""
    (folder / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    assert launcher("digits.yaml", "--run-dir", "run").exit_status() == 0


@click.command()
@click.option("--seeds", default="1-20", help="As 1-20 or 7.")
@click.option("--transport", default="ipc", show_default=True, help="ipc, tcp or tcp-plain.")
def main(seeds: str, transport: str) -> None:
    """Run storms one after another; exit status 1 at the first that changes anything."""
    first, _, last = seeds.partition("-")
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as temp:
        calm = _alone(Path(temp) / "calm", undisturbed)
        for seed in range(int(first), int(last or first) + 1):
            storm_folder = Path(temp) / f"storm-{seed}"
            hits: list[str] = []

            def rage(folder: Path, launcher: Any, seed: int = seed, hits: Any = hits) -> None:
                Storm(seed, folder, launcher, hits, transport).rage()

            equal = _alone(storm_folder, rage) == calm
            print(f"seed {seed}: {'equal' if equal else 'DIFFERENT'} after {', '.join(hits)}")
            if not equal:
                sys.exit(1)


def _alone(
    folder: Path, work: Callable[[Path, Callable[..., Launcher]], None]
) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """Do something with launchers that live in `folder`; what it leaves must be nothing."""
    temp = folder / "t"
    temp.mkdir(parents=True)
    work(folder, lambda *arguments: Launcher(folder, temp, *arguments))
    until(lambda: not list(temp.iterdir()), f"an empty folder: {list(temp.iterdir())}", 10.0)
    found = outcome(folder / "run")
    shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
