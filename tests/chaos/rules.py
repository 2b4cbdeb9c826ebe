"""Runs by local rules in real processes: divided, killed and resumed, they must end alike.

    python tests/chaos/rules.py --seed 1             # from the root of a clone; a line per rule

Every config of `configs/rules/`, and rules of the tests that use every hook, in fp32 and bf16, on
few images. Each is trained

    single          in one process, the oracle
    2 stages        undisturbed
    all stages      undisturbed, as many as there can be
    killed          all stages; a worker gets SIGKILL while it trains, and is replaced
    resumed         all stages, stopped by a signal; then another number of stages goes on

and every checkpoint must have the same block files, by SHA-256, and every epoch the same metrics.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import click
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a script finds `support`
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rather packages than tests of them
from support import REPOSITORY
from support.processes import digests, epochs, launch, nothing_ignored, one_fork_server, until

from pipeline.run.run import Run
from pipeline.schedule.items import TrainBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERY_HOOK = """\
model: {MODEL}
loss: {{rule: "support.rules:{RULE}", options: {{noise: 0.2}}}}
schedule: {{epochs: 3, milestones: [1, 2]}}
data: {{name: digits, batch_size: 32, crop_padding: 1}}
"""
MODELS = {
    "mlp": "{name: mlp, hidden_layers: 3, hidden: 24, dropout: 0.2}",
    "maps": "{name: vgg, layers: [6, M, 8], hidden_layers: 1, hidden: 16, dropout: 0.1}",
}
FEW = (
    "data.train_limit=160",
    "data.test_limit=64",
    "schedule.epochs=3",
    "runtime.checkpoint_every_steps=2",
    "runtime.keep_checkpoints=99",
)
STEPS = 15
"""Of a run, in 3 epochs."""


@dataclass(frozen=True, slots=True)
class Case:
    """A rule in a precision. `text`: of its config."""

    name: str
    precision: str
    text: str

    def train(self, run_dir: Path, *more: str, **how: Any) -> None:
        """A run from its begin to its end. `more`: keys that are changed."""
        status = self._launched(run_dir, *more, **how)
        assert status == 0, f"exit status {status}"

    def train_killed(self, run_dir: Path, draws: Random) -> str:
        """In all stages, of which one is killed; says which, and when."""
        struck: list[str] = []
        step = draws.randint(4, STEPS - 2)

        def kill(run: Run) -> None:
            workers = _workers()
            stage = draws.randrange(len(workers))
            workers[stage].kill()
            struck.append(f"stage {stage} of {len(workers)} killed before batch {step} was fed")

        with _at_batch(step, kill):
            self.train(run_dir)
        log = (run_dir / "run.log").read_text(encoding="utf-8")
        assert "was killed by SIGKILL: replaced" in log, f"the kill came too late: {log}"
        return struck[0]

    def train_resumed(self, run_dir: Path, draws: Random) -> str:
        """In all stages, stopped, then in fewer; says in how many, and when."""
        stages: list[int] = []
        step = draws.randint(3, STEPS - 2)

        def stop(run: Run) -> None:
            stages.append(len(_workers()))
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: run.feed.interrupted, "an interruption")

        with _at_batch(step, stop), nothing_ignored():
            status = self._launched(run_dir)
        assert status == 128 + signal.SIGINT, f"exit status {status} of a run that was stopped"
        others = draws.randrange(1, stages[0])
        status = launch(None, run_dir, resume=True, stages=others)
        assert status == 0, f"exit status {status} of a run that was resumed"
        return f"stopped after step {step} in {stages[0]} stages, resumed in {others}"

    def _launched(self, run_dir: Path, *more: str, **how: Any) -> int:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        config = run_dir.parent / "rule.yaml"
        config.write_text(self.text, encoding="utf-8")
        changed = [*FEW, f"runtime.precision={self.precision}"]
        if "milestones" in self.text:
            changed.append("schedule.milestones=[1, 2]")
        return launch(config, run_dir, overrides=(*changed, *more), **how)


def cases() -> Iterator[Case]:
    """Every shipped rule's config, and rules that use every hook."""
    texts = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((REPOSITORY / "configs" / "rules").glob("*.yaml"))
    }
    for rule, model in (("EveryHook", "mlp"), ("EveryHook", "maps"), ("WithDropout", "mlp")):
        texts[f"{rule}, {model}"] = EVERY_HOOK.format(RULE=rule, MODEL=MODELS[model])
    for name, text in texts.items():
        yield from (Case(name, precision, text) for precision in ("fp32", "bf16"))


@contextmanager
def _at_batch(step: int, act: Callable[[Run], None]) -> Iterator[None]:
    """Do something once, right before a training batch is fed by this process."""
    arrays, acted = Run.arrays, list[int]()

    def acting(run: Run, item: Any) -> Any:
        if isinstance(item, TrainBatch) and item.batch_id == step and not acted:
            acted.append(step)
            act(run)
        return arrays(run, item)

    with patch.object(Run, "arrays", acting):
        yield


def _workers() -> list[psutil.Process]:
    """Of this process, in the order of their start: children of the one that starts them."""
    here = psutil.Process()
    found = [each for each in here.children(recursive=True) if each.ppid() != here.pid]
    return sorted(found, key=lambda process: process.pid)


def difference(found: Path, single: Path) -> str:
    """Where a run differs from that in one process; empty where it does not."""
    files, expected = digests(found), digests(single)
    if missing := expected.keys() - files.keys():
        return f"NO CHECKPOINT of step {min(missing)}"
    for step, blocks in sorted(expected.items()):
        if odd := [block for block in blocks if files[step][block] != blocks[block]]:
            return f"OTHER BYTES of blocks {odd} at step {step}"
    return "" if epochs(found) == epochs(single) else "OTHER METRICS"


def proved(case: Case, folder: Path, seed: int) -> tuple[bool, str]:
    """Whether a case ends alike in every way, and what was done to it."""
    draws = Random(f"{seed} {case.name} {case.precision}")
    single = folder / "single" / "run"
    case.train(single, single=True)
    ways: dict[str, Callable[[Path], str | None]] = {
        "2 stages": lambda run_dir: case.train(run_dir, stages=2),
        "all stages": lambda run_dir: case.train(run_dir),
        "killed": lambda run_dir: case.train_killed(run_dir, draws),
        "resumed": lambda run_dir: case.train_resumed(run_dir, draws),
    }
    told, faults = list[str](), list[str]()
    for name, way in ways.items():
        try:
            told += filter(None, [way(folder / name / "run")])
            fault = difference(folder / name / "run", single)
        except AssertionError as error:
            fault = str(error)
        faults += [f"{name}: {fault}"] * bool(fault)
    if faults:
        return False, "; ".join(faults)
    files = digests(single)
    return True, f"equal, {len(files)} checkpoints of {len(files[STEPS])} blocks; {'; '.join(told)}"


@click.command()
@click.option("--seed", default=1, show_default=True, help="Of what is struck, and when.")
@click.option("--only", "names", multiple=True, help="Rules whose names hold this.")
def main(seed: int, names: tuple[str, ...]) -> None:
    """Train by every rule in every way; exit status 1 where one ends otherwise."""
    failed = 0
    chosen = [case for case in cases() if not names or any(name in case.name for name in names)]
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as temp, one_fork_server():
        for case in chosen:
            folder = Path(temp) / "case"
            equal, what = proved(case, folder, seed)
            failed += not equal
            print(f"{case.name}, {case.precision}: {what}", flush=True)
            shutil.rmtree(folder)
    print(f"{len(chosen)} cases, of which {failed} ended otherwise")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
