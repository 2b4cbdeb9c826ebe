"""Whether the memory of this machine can hold a run: what is certain not to fit is refused.

Certain is a lower bound: images that are kept in memory, weights, and what one block is given and
makes of a batch. Estimates of all that training takes (`cost.py`) only warn: they may be too large.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from launch.display.format import size_text
from launch.machine.gpus import gpu_memory
from pipeline.data.facts import whole_facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from launch.job import Job
    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost

_WEIGHT_BYTES = 4
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that are certain to be needed at once in one place: on "cpu" or a CUDA device.

    `batch`: what `block` is given and makes of a batch, the most of all blocks there.
    """

    place: str
    images: int
    weights: int
    batch: int
    block: BlockSpec
    batch_size: int

    @property
    def total(self) -> int:
        """Bytes that images, weights and a batch need together."""
        return self.images + self.weights + self.batch

    def problem(self, has: int) -> str:
        """The line that says why `has` bytes are too few, and what to do."""
        parts = {
            f"{size_text(self.images)} for the images": self.images,
            f"{size_text(self.weights)} for weights": self.weights,
            f"{size_text(self.batch)} for what block {self.block.index} ({self.block.name}) is "
            f"given and makes of a batch of {self.batch_size} images": self.batch,
        }
        largest = max(self.images, self.weights, self.batch)
        cures = {
            self.weights: "narrower layers (model.hidden, model.feat_mult) or more devices",
            self.images: "fewer images (data.train_images, data.train_limit) or a smaller "
            "data.size",
            self.batch: "a smaller data.batch_size or data.size",
        }
        return (
            f"memory: {self.place} has {size_text(has)} and needs at least "
            f"{size_text(self.total)}, {', '.join(text for text, part in parts.items() if part)}; "
            f"use {cures[largest]}"
        )


def too_large(
    config: Config,
    facts: DataFacts,
    specs: Sequence[BlockSpec],
    costs: Sequence[BlockCost],
    blocks: Mapping[str, Sequence[int]],
) -> str:
    """The first line on what this machine can't hold of training these `blocks` of each place, and
    of the images, which are on the CPU; empty where it may hold all, or where a place is not of
    this machine."""
    images = _image_bytes(config, facts)
    n = min(config.data.batch_size, max(facts.train_images, facts.test_images))
    number_bytes = 2 if config.runtime.precision == "bf16" else 4

    def batch_bytes(block: int) -> int:
        spec = specs[block]
        return n * (prod(spec.in_shape) + prod(spec.shape)) * number_bytes

    needed = []
    for place, own in blocks.items():
        largest = max(own, key=batch_bytes)
        parameters = sum(costs[block].parameters + costs[block].head_parameters for block in own)
        on_cpu = images if place == "cpu" else 0
        weights, batch = parameters * _WEIGHT_BYTES, batch_bytes(largest)
        needed.append(Need(place, on_cpu, weights, batch, specs[largest], n))
    if "cpu" not in blocks:
        needed.append(Need("cpu", images, 0, 0, specs[0], n))
    has = memory_of_places(need.place for need in needed)
    problems = (
        need.problem(has[need.place])
        for need in needed
        if need.place in has and need.total > has[need.place]
    )
    return next(problems, "")


def _image_bytes(config: Config, facts: DataFacts) -> int:
    """Of a user's own examples, and of `synthetic` images, which are all made before a limit takes
    some; others are files, and none of the published sets is too large for a machine of today."""
    if config.data.is_own:
        return (facts.train_images + facts.test_images) * facts.example_bytes
    if config.data.name != "synthetic":
        return 0
    facts = whole_facts(config.data)
    return (facts.train_images + facts.test_images) * prod(facts.shape)


def tight(job: Job) -> list[str]:
    """Warnings where an estimate, or for a dry run what is certain, is more than there is."""
    if job.known_speed is not None and job.known_speed.memory_bytes is not None:
        return []  # imagined devices: the prediction compares with their memory
    if job.too_large:
        return [f"{job.too_large}: here it could not be trained"]
    plan = job.plan.in_one_process() if job.single else job.plan
    estimates: dict[str, int] = {}
    for stage, cost in zip(plan.stages, plan.stage_costs(job.costs), strict=True):
        estimates[stage.device] = estimates.get(stage.device, 0) + cost.estimated_bytes
    has = memory_of_places(estimates)
    return [
        f"memory: training is estimated to need {size_text(needed)} on {place}, which has "
        f"{size_text(has[place])}: it may end for lack of memory; a smaller data.batch_size, or "
        "narrower layers, need less"
        for place, needed in estimates.items()
        if place in has and needed > has[place]
    ]


def memory_of_places(places: Iterable[str]) -> dict[str, int]:
    """Bytes of memory, with swap, that this process may use, and of each visible CUDA device, if
    one is among `places`: to ask the driver takes it up to seconds to begin."""
    has = {"cpu": host_memory()}
    if any(place.startswith("cuda") for place in places):
        has |= {f"cuda:{number}": size for number, size in enumerate(gpu_memory())}
    return has


def host_memory(cgroups: Path = _CGROUPS, meminfo: Path = Path("/proc/meminfo")) -> int:
    """RAM and swap in bytes, or what the control group of a container allows of them."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        swap = re.search(r"^SwapTotal: +([0-9]+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        swap = None
    swap_bytes = int(swap[1]) << 10 if swap else 0
    allowed, swapped = (_cgroup_limit(cgroups, f"memory.{kind}") for kind in ("max", "swap.max"))
    ram = pages if allowed is None else min(pages, allowed)
    return ram + (swap_bytes if swapped is None else min(swap_bytes, swapped))


def _cgroup_limit(cgroups: Path, name: str) -> int | None:
    """None where nothing is limited."""
    try:
        text = (cgroups / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
