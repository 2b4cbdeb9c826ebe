"""What snapshots cost, and how soon a killed worker is replaced: python -m benchmarks.recovery

Snapshots: MNIST's network learns made-up images, in rounds of a run with a snapshot about every
30 s, one with only the last, and one with more than anybody needs. All do the same steps, of which
the same are timed; a ratio is that of neighbours in a round, and every other round goes backwards:

    epochs      1 2 3 4 | 5 6 7 …                         … last |
    every 30 s          |             S            S             | S
    none                |                                        | S

Recovery: ten stages train, and one worker after another is killed, at random moments. Clocks run
from the kill until run.log says that it is lost; that all are back; and that an epoch, of 4 steps,
has left the last stage: no sooner than the first item that is trained again, which is asked for.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import psutil

from benchmarks.lib.command_line import SECONDS, provenance_now, with_usage_errors
from benchmarks.lib.report import Finding, Report, range_text
from benchmarks.lib.result_files import RESULTS, make_writable, write_result
from pipeline.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.lib.report import Result

ASKED_RATIO, ASKED_S = 0.97, 3.0
"""Least speed with the usual snapshots, that without being 1; most seconds until a killed worker's
successor trains."""

EPOCH_S = 2.5
"""About how long an epoch is to last: the grain of what is timed, and of snapshots."""
WARM_UP = 4
BATCH = 128
NEVER, NONE = 1 << 20, "none"
PROBE_STEPS, PROBE_EPOCHS = 5, 20
TIMED_STAGES = 3
TIMED: dict[str, Any] = {
    "model": {"name": "mlp", "hidden_layers": 3, "hidden": 1024, "dropout": 0.1},
    "loss": {"name": "predsim"},
    "data": {"name": "synthetic", "channels": 1, "size": 28, "batch_size": BATCH,
             "crop_padding": 2, "test_images": BATCH},
}  # fmt: skip
"""As configs/mnist_mlp.yaml."""

KILLED_STAGES = 10
KILLED: dict[str, Any] = {
    "model": {"name": "mlp", "hidden_layers": 10, "hidden": 256, "dropout": 0.1},
    "loss": {"name": "predsim"},
    "schedule": {"epochs": 1_000_000},
    "data": {"name": "synthetic", "channels": 1, "size": 28, "batch_size": 32,
             "train_images": 128, "test_images": 32},
    "runtime": {"checkpoint_every_steps": 100, "eval_every_epochs": 0, "max_restarts": 1_000_000},
}  # fmt: skip
"""One hidden layer per stage; epochs of 4 steps."""
CALM_S = (1.5, 3.5)  # between the recovery from a kill and the next

_TIMEOUT_S, _LOOK_S = 300.0, 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """A launcher at work in a run directory of its own."""

    process: subprocess.Popen[bytes]
    folder: Path

    def lines(self, name: str) -> Iterator[str]:
        """Every line of a growing file, as soon as it is whole.

        Raises:
            SystemExit: where there is no other and the run has ended, or seems to hang.
        """
        path, read, heard_at = self.folder / name, 0, time.monotonic()
        while True:
            over = self.process.poll() is not None or time.monotonic() > heard_at + _TIMEOUT_S
            data = path.read_bytes()[read:] if path.exists() else b""
            if new := data[: data.rfind(b"\n") + 1]:
                read, heard_at = read + len(new), time.monotonic()
                yield from new.decode().splitlines()
            elif over:
                raise SystemExit(f"the run ended, or was silent for {_TIMEOUT_S:g} s: {path}")
            else:
                time.sleep(_LOOK_S)

    def workers(self) -> list[psutil.Process]:
        """The forkserver's children, who are children of the launcher's, in order of age."""
        children = psutil.Process(self.process.pid).children()
        found = [worker for child in children for worker in child.children()]
        alive = [worker for worker in found if worker.status() != psutil.STATUS_ZOMBIE]
        return sorted(alive, key=lambda worker: worker.pid)


@contextmanager
def started(disk: Path, config: Mapping[str, Any], stages: int) -> Iterator[Run]:
    """A run that is ended, and dropped, at the end of the `with` block."""
    with TemporaryDirectory(prefix="recovery-", dir=disk) as name:
        folder = Path(name)
        (folder / "run.yaml").write_text(json.dumps(config), encoding="utf-8")
        words = ["--gpus", "cpu", "--stages", str(stages), "--view", "quiet", "--run-dir"]
        command = [sys.executable, "-m", "launch.cli", *words, name, f"{name}/run.yaml"]
        with (folder / "stderr").open("wb") as errors:
            process = subprocess.Popen(command, stderr=errors)
        try:
            yield Run(process, folder)
        except SystemExit:
            print((folder / "stderr").read_text(encoding="utf-8"), file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Kill:
    """Seconds from the kill of a stage's worker until it was noticed, all were back, and had
    trained; `said_s` is what the run itself says that they took to be back."""

    stage: int
    said_s: float
    noticed_s: float
    back_s: float
    trained_s: float


@dataclass(frozen=True, slots=True)
class Timed:
    """The part of a run that is timed; `snapshots` were taken in it, and are on the disk."""

    images_per_s: float
    seconds: float
    snapshots: int

    def __str__(self) -> str:
        return f"{self.images_per_s:.0f} images/s, {self.snapshots} snapshots"


def timed_config(steps: int, epochs: int, every: int | None) -> dict[str, Any]:
    """`epochs` of `steps` each, with a snapshot at the end of every so many, or of the last."""
    return {
        **TIMED,
        "schedule": {"epochs": epochs},
        "data": {**TIMED["data"], "train_images": steps * BATCH},
        "runtime": {"checkpoint_every_steps": steps * (every or NEVER), "eval_every_epochs": 0},
    }


def in_epochs(seconds: float) -> int:
    """How many epochs take about so long."""
    return max(1, round(seconds / EPOCH_S))


def snapshots_in(log: str, steps: range) -> int:
    """How many snapshots of these steps a run.log tells to be on the disk."""
    return sum(int(step) in steps for step in re.findall(r"checkpoint step-(\d+)", log))


def timed_run(disk: Path, config: Mapping[str, Any], label: str) -> Timed:
    """Train to the end; what comes after the epochs to warm up is timed."""
    epochs, images = config["schedule"]["epochs"], config["data"]["train_images"]
    with started(disk, config, TIMED_STAGES) as run:
        lines = run.lines(METRICS_FILE)
        with click.progressbar(range(epochs), label=label) as bar:
            timed = [json.loads(next(lines)) for _ in bar][WARM_UP:]
        if run.process.wait(_TIMEOUT_S):
            raise SystemExit(f"the run ended with status {run.process.returncode}")
        log = (run.folder / "run.log").read_text(encoding="utf-8")
    seconds, steps = sum(epoch["seconds"] for epoch in timed), images // BATCH
    snapshots = snapshots_in(log, range(WARM_UP * steps, epochs * steps))
    return Timed(round(len(timed) * images / seconds, 1), round(seconds, 2), snapshots)


def cost_of_snapshots(
    disk: Path, pairs: int, epochs: int, kinds: Mapping[str, int | None]
) -> dict[str, Any]:
    """Time so many rounds; `kinds` has the epochs between snapshots by name, `NONE` without."""
    probe = timed_run(disk, timed_config(PROBE_STEPS, PROBE_EPOCHS, None), "how fast is it here?")
    steps = max(1, round(EPOCH_S * probe.images_per_s / BATCH))
    configs = {name: timed_config(steps, epochs, every) for name, every in kinds.items()}
    runs: dict[str, list[Timed]] = {name: [] for name in kinds}
    for pair in range(pairs):
        for name in list(kinds)[:: -1 if pair % 2 else 1]:
            label = f"{pair + 1} of {pairs}, snapshots: {name:10}"
            runs[name].append(timed_run(disk, configs[name], label))
            print(f"  {runs[name][-1]}", flush=True)
    tree = {name: [asdict(run) for run in timed] for name, timed in runs.items()}
    return {"configs": configs, "runs": tree, "ratios": ratios(runs)}


def ratios(runs: Mapping[str, Sequence[Timed]]) -> dict[str, list[float]]:
    """Of the speeds with snapshots to that without, round by round."""
    without = [run.images_per_s for run in runs[NONE]]
    return {
        name: [
            round(run.images_per_s / other, 4) for run, other in zip(timed, without, strict=True)
        ]
        for name, timed in runs.items()
        if name != NONE
    }


def kills(disk: Path, count: int, seed: int) -> list[Kill]:
    """Kill so many workers of one run, one after another."""
    draws = Random(seed)
    with started(disk, KILLED, KILLED_STAGES) as run:
        log = run.lines("run.log")
        _next_with(" checkpoint ", log)
        with click.progressbar(range(count), label=f"{count} kills, {KILLED_STAGES} stages") as bar:
            return [_kill_one(run, log, draws) for _ in bar]


def _kill_one(run: Run, log: Iterator[str], draws: Random) -> Kill:
    time.sleep(draws.uniform(*CALM_S))
    victim = draws.choice(run.workers())
    began = time.perf_counter()
    victim.kill()
    lost, noticed_s = _next_with(": replaced; ", log), time.perf_counter() - began
    said, back_s = _next_with(" training again after ", log), time.perf_counter() - began
    _next_with(" epoch ", log)  # of the new attempt: the old one is not heard any more
    times = (noticed_s, back_s, time.perf_counter() - began)
    stage, said_s = re.findall(r"stage (\d+)", lost)[0], re.findall(r"([\d.]+) s$", said)[0]
    return Kill(int(stage), float(said_s), *(round(seconds, 3) for seconds in times))


def _next_with(text: str, lines: Iterator[str]) -> str:
    until = time.monotonic() + _TIMEOUT_S
    for line in lines:
        if text in line:
            return line
        if time.monotonic() > until:
            break
    raise SystemExit(f"run.log has not said {text!r} for {_TIMEOUT_S:g} s")


def findings(result: Result) -> list[Finding]:
    """All clocks of the kills, and the speeds with snapshots beside that without."""
    killed = result["recovery"]["kills"]
    clocks = {
        "a worker killed: until the loss was noticed": "noticed_s",
        "until all workers were back": "back_s",
        "until four more steps were trained": "trained_s",
    }
    told = [Finding(what, range_text([kill[clock] for kill in killed], " s"))
            for what, clock in clocks.items()]  # fmt: skip
    slowest_s = max(kill["trained_s"] for kill in killed)
    told[-1] = told[-1]._replace(asked=f"≤ {ASKED_S:g} s", met=slowest_s <= ASKED_S)
    for number, (kind, ratios) in enumerate(result["snapshots"]["ratios"].items()):
        told.append(Finding(f"speed with a snapshot {kind} / without", range_text(ratios)))
        if not number:
            met = median(ratios) >= ASKED_RATIO
            told[-1] = told[-1]._replace(asked=f"≥ {ASKED_RATIO}", met=met)
    return told


REPORT = Report(
    "Snapshots and recovery",
    "One of ten workers after another is killed; the clock is that of who kills. Speeds with "
    "snapshots are beside that without in the same round. Medians, in brackets how many and their "
    "spread.",
    findings,
)


@click.command()
@click.option("--pairs", default=3, show_default=True, type=click.IntRange(1), help="Rounds.")
@click.option("--seconds", default=90.0, type=SECONDS, help="Each is timed.  [default: 90]")
@click.option("--every", default=30.0, type=SECONDS, help="Between snapshots.  [default: 30]")
@click.option("--harsh", default=5.0, type=SECONDS, help="Another one.  [default: 5]")
@click.option("--kills", "count", default=10, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=1, show_default=True, help="Decides whom to kill, and when.")
@click.option("--disk", default="runs", show_default=True, type=click.Path(path_type=Path))
@with_usage_errors
def main(
    pairs: int, seconds: float, every: float, harsh: float, count: int, seed: int, disk: Path
) -> None:
    """Measure, print and keep benchmarks/results/recovery-….json; the runs lie in DISK
    meanwhile."""
    for folder in (RESULTS, disk):
        make_writable(folder)
    where = provenance_now()
    found = kills(disk, count, seed)
    kinds = {f"every {every:g} s": in_epochs(every), NONE: None}
    kinds[f"every {harsh:g} s"] = in_epochs(harsh)
    epochs = WARM_UP + in_epochs(max(seconds, every))
    cost = cost_of_snapshots(disk, pairs, epochs, kinds)
    recovery = {"config": KILLED, "kills": [asdict(kill) for kill in found]}
    result = {**where, "snapshots": cost, "recovery": recovery}
    REPORT.show(result, write_result("recovery", result))


if __name__ == "__main__":
    main()
