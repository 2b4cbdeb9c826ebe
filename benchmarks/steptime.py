"""Where the time of a training step goes, by kind of work: python -m benchmarks.steptime

plain fp32   the method as one would write it at first (`rivals/plain.py`)
ours         single mode, in fp32 and in bf16

Each on one thread of the CPU, in a process of its own, in turn. `between` is what a step takes
beyond its kernels: Python, autograd and what PyTorch does until a kernel runs. How fast ours is
beside plain is measured step by step (`lib/turns.py`).
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from statistics import median, median_low
from typing import TYPE_CHECKING, Any

import click
import torch

from benchmarks.lib.command_line import SECONDS, provenance_now, with_usage_errors
from benchmarks.lib.contenders import NETWORKS, Contender, Task
from benchmarks.lib.kernels import CONVOLUTIONS, KINDS, PRODUCTS, KernelClock
from benchmarks.lib.laps import made_up_batches
from benchmarks.lib.report import Finding, Report
from benchmarks.lib.result_files import RESULTS, keep_so_far, make_writable, write_result
from benchmarks.lib.turns import WARM_UP, seconds_of, taken_in_turn, times_as_fast
from benchmarks.rivals.plain import PlainBlock, PlainTrainer
from launch.display.format import NOTHING, markdown
from pipeline.data.facts import data_facts
from pipeline.learning.build import prepare_process
from pipeline.network.from_config import network_specs
from pipeline.profiling.blocks import UnitTrainer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.lib.report import Result
    from benchmarks.lib.turns import Step
    from pipeline.config.sections import Config

BETWEEN = "between"
PLAIN = "plain fp32"
WAYS = {PLAIN: "fp32", "ours fp32": "fp32", "ours bf16": "bf16"}
CASES = {"mlp": ("pred", "predsim"), "vgg8b_quarter": ("pred", "predsim")}
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Timed:
    """A way to train a network from a loss, its milliseconds, and how fast it is beside plain."""

    network: str
    loss: str
    way: str
    step_ms: float
    kinds_ms: dict[str, float]
    times_plain: float | None = None

    def tree(self) -> dict[str, Any]:
        """Plain JSON values."""
        kinds = {kind: round(ms, 3) for kind, ms in self.kinds_ms.items()}
        return {
            "network": self.network, "loss": self.loss, "way": self.way,
            "step_ms": round(self.step_ms, 3), "kinds_ms": kinds, "times_plain": self.times_plain,
        }  # fmt: skip


def lap(network: str, loss: str, way: str, seconds: float) -> Timed:
    """In a process that was just started."""
    clock = KernelClock()
    return Timed(network, loss, way, *timed(step_of(network, loss, way, clock), clock, seconds))


def step_of(network: str, loss: str, way: str, clock: KernelClock | None = None) -> Step:
    """Which trains in that way, on images that lie ready."""
    config = Task(network, Contender("single", loss, WAYS[way]), None, 1, 0.0).config()
    return _plain(config, clock) if way == PLAIN else _ours(config)


def _ours(config: Config) -> Step:
    prepare_process(_CPU, 1)
    facts = data_facts(config.data)
    specs = network_specs(config, facts)
    return UnitTrainer(config, facts, specs, _CPU, specs).step


def _plain(config: Config, clock: KernelClock | None) -> Step:
    torch.set_num_threads(1)
    torch.manual_seed(config.runtime.seed)
    specs = network_specs(config, data_facts(config.data))
    plain = PlainTrainer([PlainBlock(spec) for spec in specs], config.optimizer.lr)
    if clock is not None:
        for optimizer in plain.optimizers:
            clock.watch(optimizer)
    (images, labels), *_ = made_up_batches(config, _CPU)
    return partial(plain.step, images, labels)


def timed(step: Step, clock: KernelClock, seconds: float) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step without the clock, and of each kind of work in it."""
    laps = [seconds_of(step) for _ in range(WARM_UP)]
    steps = max(WARM_UP, round(seconds / laps[-1]))
    step_ms = 1e3 * median(seconds_of(step) for _ in range(steps))
    with clock:
        for _ in range(steps):
            step()
    kinds = {kind: 1e3 * took for kind, took in clock.seconds(steps).items()}
    return step_ms, {**kinds, BETWEEN: max(0.0, step_ms - sum(kinds.values()))}


def measured(network: str, loss: str, rounds: int, seconds: float) -> list[Timed]:
    """All ways in turn, so many times; the medians. Then step by step, as long again."""
    laps = [[_apart(network, loss, way, seconds) for way in WAYS] for _ in range(rounds)]
    fast = _side_by_side(network, loss, rounds * len(WAYS) * seconds)
    return [_median(one_way, fast) for one_way in zip(*laps, strict=True)]


def _side_by_side(network: str, loss: str, seconds: float) -> dict[str, float]:
    """How many times as fast as plain each is."""
    makers = {way: partial(step_of, network, loss, way) for way in WAYS}
    return times_as_fast(taken_in_turn(makers, seconds), PLAIN)


def _apart(network: str, loss: str, way: str, seconds: float) -> Timed:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(lap, network, loss, way, seconds).result()


def _median(laps: Sequence[Timed], fast: Mapping[str, float]) -> Timed:
    """The lap whose step took the median time, as a whole: its parts belong together."""
    step_ms = median_low(one.step_ms for one in laps)
    lap = next(one for one in laps if one.step_ms == step_ms)
    return replace(lap, times_plain=round(fast[lap.way], 3))


def table(found: Sequence[Timed]) -> str:
    """Milliseconds of each kind, and what share of the step is arithmetic that must be."""
    texts = ("network", "loss", "way")
    columns = (*texts, "× plain", "step, ms", *KINDS, BETWEEN, "convolutions and products")
    rows = [
        [
            NETWORKS[one.network].title, one.loss, one.way,
            NOTHING if one.times_plain is None else f"{one.times_plain:.2f}",
            f"{one.step_ms:.1f}", *(f"{one.kinds_ms[kind]:.1f}" for kind in (*KINDS, BETWEEN)),
            f"{(one.kinds_ms[CONVOLUTIONS] + one.kinds_ms[PRODUCTS]) / one.step_ms:.0%}",
        ]
        for one in found
    ]  # fmt: skip
    return markdown(columns, rows, texts)


def findings(result: Result) -> list[Finding]:
    """How many times as fast as plain each way is, step by step."""
    return [
        Finding(f"{step['network']} {step['loss']}, {step['way']} / {PLAIN}",
                f"{step['times_plain']:.2f}")
        for step in result["steps"]
        if step.get("times_plain") and step["way"] != PLAIN
    ]  # fmt: skip


REPORT = Report(
    "Where a step's time goes",
    "Milliseconds of a training step of 128 images in one process of one thread, by kind of work. "
    "`between` is what a step takes beyond its kernels; 0.0 where these, timed one by one, took no "
    "less than the whole. `× plain`: steps of both in turn, the median of the quotients. A row is "
    "the round whose step took the median time; before commit 12772ef each column was a median by "
    "itself.",
    findings,
    lambda result: table([Timed(**step) for step in result["steps"]]),
)


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--seconds",
    default=4.0,
    type=SECONDS,
    help="How long each is timed, twice.  [default: 4]",
)
@with_usage_errors
def main(rounds: int, seconds: float) -> None:
    """Measure, print and keep benchmarks/results/steptime-….json."""
    make_writable(RESULTS)
    result = {**provenance_now(), "rounds": rounds, "steps": []}
    for network, losses in CASES.items():
        for loss in losses:
            result["steps"] += [one.tree() for one in measured(network, loss, rounds, seconds)]
            print(f"{network} {loss}: done", flush=True)
            keep_so_far("steptime", result)
    REPORT.show(result, write_result("steptime", result))


if __name__ == "__main__":
    main()
