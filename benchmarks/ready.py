"""How long until a pipeline trains, and what an idle worker costs: python -m benchmarks.ready

Starts ten stages on the CPU several times. The first batch counts as trained when the checkpoint
of step 1 is complete: every stage has then received, trained and reported it. Also times what
must answer at once: --help and an error in the config.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import psutil

from benchmarks.lib.machine import check_can_be_kept, told_in_a_line, write_result
from launch.machine.provenance import provenance

NAME = "ready"
STAGES = 10
_TIMEOUT_S = 120.0
_CONFIG = """
model: {name: vgg11b, feat_mult: 0.125, hidden: 128, dropout: 0.1}
loss: {name: predsim}
schedule: {epochs: 1}
data: {name: synthetic, batch_size: 16, train_images: 4096, test_images: 64}
runtime: {checkpoint_every_steps: 1, keep_checkpoints: 100}
"""
_LAUNCH = [sys.executable, "-m", "launch.cli"]


def first_batch(folder: Path) -> tuple[float, float]:
    """Seconds from the command to the first trained batch; largest private MB of a worker."""
    config = folder / "ready.yaml"
    config.write_text(_CONFIG, encoding="utf-8")
    run_dir = folder / "run"
    words = ["--gpus", "cpu", "--view", "quiet", "--run-dir", str(run_dir), str(config)]
    began = time.perf_counter()
    with subprocess.Popen([*_LAUNCH, *words]) as process:
        try:
            _wait_for(run_dir / "checkpoints" / "step-00000001" / "manifest.json", process)
            seconds = time.perf_counter() - began
            private = max(_private_megabytes(worker) for worker in _workers(process.pid))
        finally:
            process.terminate()
            process.wait(_TIMEOUT_S)
    return seconds, private


def answer_seconds(words: list[str]) -> float:
    """Seconds that a command takes which starts nothing."""
    began = time.perf_counter()
    subprocess.run([*_LAUNCH, *words], capture_output=True, check=False, timeout=_TIMEOUT_S)
    return time.perf_counter() - began


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _TIMEOUT_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the run ended, or took over {_TIMEOUT_S:g} s, before {path}")
        time.sleep(0.005)


def _workers(launcher: int) -> list[psutil.Process]:
    """The forkserver's children: processes of the launcher's children."""
    children = psutil.Process(launcher).children()
    return [worker for child in children for worker in child.children()]


def _private_megabytes(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss) / 1e6


def _extent_of_kept(result: dict[str, Any]) -> dict[str, int]:
    return {"runs": len(result["first_batch_s"])}


def _show(name: str, values: list[float]) -> None:
    print(f"{name:32} median {median(values):7.2f}   {min(values):.2f} … {max(values):.2f}")


@click.command()
@click.option(
    "--runs",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="How often each is measured.",
)
@click.option("--name", default=NAME, show_default=True, help="Of the file.")
@told_in_a_line
def main(runs: int, name: str) -> None:
    """Measure, print and keep benchmarks/results/ready.json."""
    check_can_be_kept(name, NAME, {"runs": runs}, _extent_of_kept, table=False)
    measured = []
    for _ in range(runs):
        with TemporaryDirectory() as folder:
            measured.append(first_batch(Path(folder)))
    bad = ["--set", "loss.beta=1.5", "configs/digits.yaml"]
    answers = {
        "help": [answer_seconds(["--help"]) for _ in range(runs)],
        "config_error": [answer_seconds(bad) for _ in range(runs)],
    }
    result: dict[str, Any] = {
        **provenance(
            f"python -m benchmarks.ready --runs {runs}" + f" --name {name}" * (name != NAME)
        ),
        "stages": STAGES,
        "first_batch_s": [round(seconds, 2) for seconds, _ in measured],
        "largest_private_mb": [round(private, 1) for _, private in measured],
        "answers_s": {name: [round(s, 3) for s in times] for name, times in answers.items()},
    }
    _show("first batch, s", result["first_batch_s"])
    _show("private memory of a worker, MB", result["largest_private_mb"])
    for answer, times in result["answers_s"].items():
        _show(f"{answer}, s", times)
    print(f"kept in {write_result(name, result)}")


if __name__ == "__main__":
    main()
