"""A soak: a tiny network trains for hours with a snapshot every few seconds, and is watched.

    python tests/chaos/soak.py --minutes 120        # from the root of a clone

Private memory, file descriptors and shared-memory segments of every process must stay flat. A
line per minute; in the end one JSON object with the figures, and exit status 1 if any grew.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a script finds `support`
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rather packages than tests of them
from support.processes import Launcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIGITS = """\
model: {name: mlp, hidden_layers: 3, hidden: 64, dropout: 0.2}
loss: {name: predsim}
schedule: {epochs: 10000000, milestones: [1]}
data: {name: digits, batch_size: 32, crop_padding: 1}
runtime: {checkpoint_every_steps: 100, heartbeat_timeout_s: 60}
"""
"""4 blocks in 3 stages; a snapshot every few seconds, a test every epoch of 45 steps."""
EVERY_S = 10.0
GROWTH_BYTES = 8 << 20
"""More private memory than this, from the first quarter to the last, is a leak."""


@dataclass(frozen=True)
class Sample:
    """A process at one time. `segments`: anonymous shared-memory files that it has open."""

    private_bytes: int
    descriptors: int
    segments: int
    threads: int


@dataclass(frozen=True)
class Figures:
    """Of one process: medians of the first and of the last quarter of its samples."""

    process: str
    samples: int
    first: Sample
    last: Sample

    @property
    def is_flat(self) -> bool:
        """Whether nothing grew."""
        more = self.last.private_bytes - self.first.private_bytes
        counts = [(s.descriptors, s.segments, s.threads) for s in (self.first, self.last)]
        return more <= GROWTH_BYTES and all(b <= a for a, b in zip(*counts, strict=True))


def sample(process: psutil.Process) -> Sample:
    """Look at a process."""
    links = Path(f"/proc/{process.pid}/fd")
    targets = []
    for link in links.iterdir():
        with suppress(OSError):  # closed meanwhile
            targets.append(os.readlink(link))
    segments = sum(target.startswith(("/memfd:", "/dev/shm/")) for target in targets)
    memory = process.memory_full_info().uss
    return Sample(memory, len(targets), segments, process.num_threads())


def figures(process: str, samples: Sequence[Sample]) -> Figures:
    """Compare the ends of a series; the first tenth is start-up."""
    steady = samples[len(samples) // 10 :]
    quarter = max(1, len(steady) // 4)
    return Figures(process, len(steady), _middle(steady[:quarter]), _middle(steady[-quarter:]))


def _middle(samples: Sequence[Sample]) -> Sample:
    columns = zip(*(asdict(one).values() for one in samples), strict=True)
    return Sample(*(int(median(column)) for column in columns))


def watch(run: Launcher, minutes: float) -> Iterator[dict[str, Sample]]:
    """What every process of the run is like, every few seconds."""
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        time.sleep(EVERY_S)
        if run.process.poll() is not None:
            raise click.ClickException(f"the run ended: {run.stderr}")
        with suppress(psutil.NoSuchProcess):
            yield {name: sample(process) for name, process in _named(run).items()}


def _named(run: Launcher) -> dict[str, psutil.Process]:
    workers = {f"stage {number}": worker for number, worker in enumerate(run.workers())}
    return {"launcher": run.process, **workers}


def soak(folder: Path, minutes: float) -> list[Figures]:
    """Train in `folder` for so long, then stop; the figures of every process."""
    (folder / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    run = Launcher(folder, folder, "digits.yaml", "--run-dir", "run")
    series: dict[str, list[Sample]] = {}
    try:
        run.wait_for("run/metrics.jsonl", "\n")
        for number, samples in enumerate(watch(run, minutes)):
            for name, one in samples.items():
                series.setdefault(name, []).append(one)
            if number % 6 == 0:
                _tell(folder, samples)
        run.press_ctrl_c()
        assert run.exit_status() == 130, run.stderr
    finally:
        run.end()
    return [figures(name, samples) for name, samples in series.items()]


def _tell(folder: Path, samples: dict[str, Sample]) -> None:
    epochs = (folder / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    each = (
        f"{name} {one.private_bytes >> 20} MiB, {one.descriptors} fds, {one.segments} segments"
        for name, one in samples.items()
    )
    print(f"{time.strftime('%H:%M:%S')}  epoch {epochs}  " + "  ".join(each), flush=True)


@click.command()
@click.option("--minutes", default=120.0, show_default=True, help="How long to train.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures here, too.")
def main(minutes: float, out: Path | None) -> None:
    """Train a tiny network for a long time; nothing may grow."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        found = soak(Path(folder), minutes)
    flat = all(one.is_flat for one in found)
    result: dict[str, Any] = {
        "minutes": minutes,
        "flat": flat,
        "processes": list(map(asdict, found)),
    }
    print(json.dumps(result, indent=1))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(0 if flat else 1)


if __name__ == "__main__":
    main()
