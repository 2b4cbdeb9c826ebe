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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import psutil

from benchmarks.lib.command_line import provenance_now, with_usage_errors
from benchmarks.lib.report import Finding, Report, range_text
from benchmarks.lib.result_files import RESULTS, make_writable, write_result

if TYPE_CHECKING:
    from benchmarks.lib.report import Result

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


def findings(result: Result) -> list[Finding]:
    """All that is timed, and the memory of a worker."""
    memory = result["largest_private_mb"]
    answers = result["answers_s"]
    return [
        Finding(f"{result['stages']} stages: command to the first trained batch",
                range_text(result["first_batch_s"], " s")),
        Finding("private memory of the largest worker", f"{max(memory):.0f} MB at most"),
        Finding("`pipeline-launch --help`", range_text(answers["help"], " s")),
        Finding("an error in the config", range_text(answers["config_error"], " s")),
    ]  # fmt: skip


REPORT = Report(
    "Ready",
    "How soon a pipeline of ten stages trains on the CPU, and what a worker costs. Medians, in "
    "brackets how many and their spread.",
    findings,
)


@click.command()
@click.option(
    "--runs",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="How often each is measured.",
)
@with_usage_errors
def main(runs: int) -> None:
    """Measure, print and keep benchmarks/results/ready-….json."""
    make_writable(RESULTS)
    where = provenance_now()
    measured = []
    for _ in range(runs):
        with TemporaryDirectory() as folder:
            measured.append(first_batch(Path(folder)))
    answers = {
        "help": ["--help"],
        "config_error": ["--set", "loss.beta=1.5", "configs/digits.yaml"],
    }
    result = {
        **where,
        "stages": STAGES,
        "first_batch_s": [round(seconds, 2) for seconds, _ in measured],
        "largest_private_mb": [round(private, 1) for _, private in measured],
        "answers_s": {
            name: [round(answer_seconds(words), 3) for _ in range(runs)]
            for name, words in answers.items()
        },
    }
    REPORT.show(result, write_result("ready", result))


if __name__ == "__main__":
    main()
