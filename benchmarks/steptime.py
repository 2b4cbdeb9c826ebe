"""Where the time of a training step goes, by kind of work: python -m benchmarks.steptime

plain fp32   the method as one would write it at first (benchmarks/plain.py)
ours         single mode, in fp32 and in bf16

Each on one thread of the CPU, in a process of its own, in turn. `between` is what a step takes
beyond its kernels: Python, autograd and what PyTorch does until a kernel runs.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import click
import torch

from benchmarks.contenders import NETWORKS, Contender, Task
from benchmarks.figures import draw_steptime
from benchmarks.kernels import CONVOLUTIONS, KINDS, PRODUCTS, KernelClock
from benchmarks.laps import made_up_batches
from benchmarks.machine import RESULTS, machine, write_result
from benchmarks.plain import PlainBlock, PlainTrainer
from benchmarks.tables import README, markdown, write_section
from launch.provenance import provenance
from pipeline.assembly import prepare_process
from pipeline.datasets import data_facts
from pipeline.measure import UnitTrainer
from pipeline.models import network_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.config import Config

    Step: TypeAlias = Callable[[], object]

NAME = "steptime"
BETWEEN = "between"
PLAIN = "plain fp32"
WAYS = {PLAIN: "fp32", "ours fp32": "fp32", "ours bf16": "bf16"}
CASES = {"mlp": ("pred", "predsim"), "vgg8b_quarter": ("pred", "predsim")}
WARM_UP = 3
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Timed:
    """A way to train a network from a loss, and its milliseconds."""

    network: str
    loss: str
    way: str
    step_ms: float
    kinds_ms: dict[str, float]

    def tree(self) -> dict[str, Any]:
        """Plain JSON values."""
        kinds = {kind: round(ms, 3) for kind, ms in self.kinds_ms.items()}
        return {
            "network": self.network, "loss": self.loss, "way": self.way,
            "step_ms": round(self.step_ms, 3), "kinds_ms": kinds,
        }  # fmt: skip


def lap(network: str, loss: str, way: str, seconds: float) -> Timed:
    """In a process that was just started."""
    config = Task(network, Contender("single", loss, WAYS[way]), None, 1, 0.0).config()
    clock = KernelClock()
    step = _plain(config, clock) if way == PLAIN else _ours(config)
    return Timed(network, loss, way, *timed(step, clock, seconds))


def _ours(config: Config) -> Step:
    prepare_process(_CPU, 1)
    facts = data_facts(config.data)
    return UnitTrainer(config, facts, network_specs(config, facts), _CPU).step


def _plain(config: Config, clock: KernelClock) -> Step:
    torch.set_num_threads(1)
    torch.manual_seed(config.runtime.seed)
    specs = network_specs(config, data_facts(config.data))
    plain = PlainTrainer([PlainBlock(spec) for spec in specs], config.optimizer.lr)
    for optimizer in plain.optimizers:
        clock.watch(optimizer)
    (images, labels), *_ = made_up_batches(config, _CPU)
    return partial(plain.step, images, labels)


def timed(step: Step, clock: KernelClock, seconds: float) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step without the clock, and of each kind of work in it."""
    laps = [_lap(step) for _ in range(WARM_UP)]
    steps = max(WARM_UP, round(seconds / laps[-1]))
    step_ms = 1e3 * median(_lap(step) for _ in range(steps))
    with clock:
        for _ in range(steps):
            step()
    kinds = {kind: 1e3 * took for kind, took in clock.seconds(steps).items()}
    return step_ms, {**kinds, BETWEEN: max(0.0, step_ms - sum(kinds.values()))}


def _lap(step: Step) -> float:
    began = perf_counter()
    step()
    return perf_counter() - began


def measured(network: str, loss: str, rounds: int, seconds: float) -> list[Timed]:
    """All ways in turn, so many times; the medians."""
    laps = [[_apart(network, loss, way, seconds) for way in WAYS] for _ in range(rounds)]
    return [_median(one_way) for one_way in zip(*laps, strict=True)]


def _apart(network: str, loss: str, way: str, seconds: float) -> Timed:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(lap, network, loss, way, seconds).result()


def _median(laps: Sequence[Timed]) -> Timed:
    kinds = {kind: median(one.kinds_ms[kind] for one in laps) for kind in (*KINDS, BETWEEN)}
    return replace(laps[0], step_ms=median(one.step_ms for one in laps), kinds_ms=kinds)


def table(found: Sequence[Timed]) -> str:
    """Milliseconds of each kind, and what share of the step is arithmetic that must be."""
    texts = ("network", "loss", "way")
    columns = (*texts, "step, ms", *KINDS, BETWEEN, "convolutions and products")
    rows = [
        [
            NETWORKS[one.network].title, one.loss, one.way, f"{one.step_ms:.1f}",
            *(f"{one.kinds_ms[kind]:.1f}" for kind in (*KINDS, BETWEEN)), f"{_share(one):.0%}",
        ]
        for one in found
    ]  # fmt: skip
    return markdown(columns, rows, texts)


def _share(one: Timed) -> float:
    return (one.kinds_ms[CONVOLUTIONS] + one.kinds_ms[PRODUCTS]) / one.step_ms


def report(result: Mapping[str, Any]) -> None:
    """The table, printed and written into README.md, and the picture."""
    found = [Timed(**tree) for tree in result["steps"]]
    print(table(found))
    where = f"`{result['command']}`, {machine(result, 'cpu')}, commit {result['commit']}"
    picture = f"![Milliseconds of a step by kind of work](figures/{NAME}.svg)"
    draw_steptime(result["steps"], (*KINDS, BETWEEN), NAME)
    write_section(README, NAME, f"{table(found)}\n{where}.\n\n{picture}")


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=4.0, show_default=True, help="How long each is timed, twice.")
@click.option("--report", "only_report", is_flag=True, help="Write the table again from the file.")
def main(rounds: int, seconds: float, only_report: bool) -> None:
    """Measure, print and keep benchmarks/results/steptime.json, the table in benchmarks/README.md
    and the figure."""
    if only_report:
        report(json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8")))
        return
    where = provenance(f"python -m benchmarks.steptime --rounds {rounds} --seconds {seconds:g}")
    steps: list[dict[str, Any]] = []
    for network, losses in CASES.items():
        for loss in losses:
            steps += [one.tree() for one in measured(network, loss, rounds, seconds)]
            print(f"{network} {loss}: done", flush=True)
            write_result(NAME, {**where, "steps": steps})
    report({**where, "steps": steps})


if __name__ == "__main__":
    main()
