"""Who races in benchmarks.throughput: from what the command line said to contenders, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.lib.contenders import Contender, Task
from launch.machine.gpus import devices

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS = {"cpu": ("mlp", "vgg8b_quarter"), "cuda": ("vgg8b", "vgg11b_3x")}
MICRO_BATCHES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    networks: tuple[str, ...]
    precisions: tuple[str, ...]
    losses: tuple[str, ...]
    stages: tuple[int, ...]
    rounds: int
    seconds: float
    gpus: str | None
    threads: int
    changes: tuple[str, ...]
    disk: Path

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return devices(self.gpus)[0].partition(":")[0]

    @property
    def rival_stages(self) -> list[int]:
        """Of 1F1B: at least 2, and on GPUs one for each process, since nccl refuses to share."""
        most = len(devices(self.gpus)) if self.device == "cuda" else max(self.stages)
        return [stages for stages in self.stages if 1 < stages <= most]

    @property
    def cores(self) -> list[int]:
        """On a CPU, what one process may use instead of several with a core each; and all."""
        if self.device == "cuda":
            return []
        most = len(os.sched_getaffinity(0)) // self.threads
        found = {n for n in (*self.rival_stages, most) if 1 < n <= most}
        return sorted(found)

    def task(self, network: str, contender: Contender) -> Task:
        """What a contender is told."""
        return Task(network, contender, self.gpus, self.threads, self.seconds, self.changes)


def contenders(options: Options) -> list[Contender]:
    """All of a round, in order. The plain baseline is fp32, whatever it is compared with."""
    found: list[Contender] = []
    for precision in options.precisions:
        for loss in options.losses:
            found.append(Contender("single", loss, precision))
            if options.device == "cuda":  # on the CPU it gains nothing
                found.append(Contender("single", loss, precision, compiled=True))
            found += [Contender("pipeline", loss, precision, n) for n in options.stages]
        found += [Contender("products", loss, precision) for loss in options.losses]
        found.append(Contender("single", "glob", precision))
        found += [Contender("single", "glob", precision, cores=n) for n in options.cores]
        found += [
            Contender("1f1b", "glob", precision, stages, parts)
            for stages in options.rival_stages
            for parts in MICRO_BATCHES
        ]
    return [*found, *(Contender("plain", loss, "fp32") for loss in options.losses)]


def check(options: Options) -> None:
    """Asked before anything is measured.

    Raises:
        ConfigError: where contenders can't do what they are told.
    """
    for network in options.networks:
        for contender in contenders(options):
            options.task(network, contender).check()
