"""What `--dry-run` prints: the plan, and the speed and memory to expect from it.

Estimates from shapes alone: nothing is started, no device is touched, but for `--measure`, and no
data set is read, but for a user's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table

from launch.display.format import count_text, size_text
from pipeline.planning.cost import (
    arithmetic_ratio,
    checkpoint_bytes,
    estimated_bytes,
    weights_bytes,
)
from pipeline.planning.hosts import local_name
from pipeline.planning.placement import busiest
from pipeline.planning.plan import (
    StageCost,
    speedup_bound_consecutive,
    speedup_bound_free,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost
    from pipeline.planning.plan import Plan, StagePlan

_DEVICE_COUNTS = (1, 2, 4, 10)
_NUMBERS = ("layer\nparams", "head\nparams", "multiply-\nadds", "sent per\nbatch", "memory")
_NOTE = (
    "Multiply-adds: all that training does for one image; of a team, each process's part of it. "
    "Memory: an estimate of weights, "
    "gradients, optimizer state and what a step holds at its peak on a CPU, without a device's "
    "context, library workspaces and link buffers."
)
_GREEDY = (
    "Greedy training: one block learns at a time, those before it only pass on. The memory above "
    "is that of training all blocks at once: only the block that learns needs gradients, "
    "optimizer state and held activations."
)
_FROZEN = (
    "They compute as in a test: one forward pass, without gradients, heads and optimizer state."
)
_GREEDY_STAGES = (
    "Stages spread the memory and bring no speed-up; a link carries batches only in the phases of "
    "blocks further down."
)
_ROUNDED = (
    "runtime.wire_dtype bf16 changes results: activations between blocks that learn apart are "
    "rounded to bfloat16, in training and tests, on links and within a process alike."
)
_FORMS = {
    "uint8": "a byte per pixel and colour",
    "float32": "four bytes for a number",
    "int64": "eight bytes for a token",
}
_MACS_SCALES = {"G": 10**9, "M": 10**6, "k": 10**3}
_MACS_FROM = {"G": 10**11, "M": 10**7, "k": 10**4}
"""All multiply-adds are written in the largest unit whose number here the slowest stage has."""


def dry_run_report(
    config: Config,
    facts: DataFacts,
    specs: Sequence[BlockSpec],
    costs: Sequence[BlockCost],
    plan: Plan,
    console: Console,
    *,
    single: bool = False,
) -> None:
    """Print the plan's stages, the arithmetic of the loss and the bounds of the speed-up.

    `single`: one process will do all of it, whatever stages the plan has: without links or bounds.
    """
    backprop = config.loss.is_global
    plan = plan.in_one_process() if single else plan
    stages, images = plan.stage_costs(costs), config.data.batch_size
    console.print(_stage_table(specs, plan, stages, images, facts.target_bytes))
    received = plan.received_bytes(costs, images, facts.example_bytes, facts.target_bytes)
    if plan.members > 1:
        say(console, f"{_team(config, plan, costs)} {_NOTE}")
        say(console, _disk(config, costs))
        return
    links = (
        f"Stage 0 is sent {size_text(received[0])} with each, {_FORMS[facts.dtype]}; targets, "
        f"{facts.target_bytes} bytes an image, travel on every link and are counted. "
    )
    say(console, f"Batches of {images} images. {'' if single or backprop else links}{_NOTE}")
    if config.runtime.wire_dtype == "bf16" and not backprop:
        say(console, _ROUNDED)
    say(console, _disk(config, costs))
    if frozen := [str(spec.index) for spec in specs if spec.frozen]:
        say(console, f"Frozen (model.freeze): blocks {', '.join(frozen)}. {_FROZEN}")
    ratio = arithmetic_ratio(costs)
    if ratio is not None and not config.schedule.greedy:
        say(
            console,
            f"Arithmetic: {config.loss.name} does {ratio:.2f} times the "
            "multiply-adds of global backprop on the same layers (3 forward passes).",
        )
    if backprop:
        say(
            console,
            "Global backprop needs all blocks in one process (--single): "
            f"{size_text(estimated_bytes(costs))} there, and no speed-up from stages.",
        )
        return
    if config.schedule.greedy:
        say(console, _GREEDY if single else f"{_GREEDY} {_GREEDY_STAGES}")
        return
    if not single and _macs_of(stages):  # those of a user's own modules may not be known
        _print_bounds(specs, plan, stages, console)


def _team(config: Config, plan: Plan, costs: Sequence[BlockCost]) -> str:
    """What members of a team do, as sentences."""
    found = 4 * sum(cost.parameters + cost.head_parameters for cost in costs)
    waits = ""
    if whole := config.parallel.sees_batch:
        waits = f"For {' and '.join(whole)} they wait for each other within each block. "
    return (
        f"Data-parallel (parallel.members {plan.members}): each process holds the whole network, "
        "learns from a share of every batch and does that share of its multiply-adds; with each "
        f"batch it sends every other up to {size_text(found)} of gradients, block by block, while "
        f"it computes the next. {waits}No speed is predicted for that."
    )


def _disk(config: Config, costs: Sequence[BlockCost]) -> str:
    """How much room a run takes, as a sentence."""
    runtime, one = config.runtime, checkpoint_bytes(costs, config.optimizer.name)
    most, best = (runtime.keep_checkpoints + 1) * one, ""
    if runtime.keep_best and runtime.best_form == "weights":
        weights = weights_bytes(costs)
        # one is there while another is written
        most += 2 * weights
        best = f", and the best, with weights only, of {size_text(weights)}"
    elif runtime.keep_best == "last":
        best = "; the newest is the best, too"  # under a second name, which takes no room
    elif runtime.keep_best:
        most, best = most + one, ", and the best"
    return (
        f"Disk: up to about {size_text(most)}, in checkpoints of {size_text(one)}: the "
        f"{runtime.keep_checkpoints} newest, one that is being written{best}."
    )


def say(console: Console, sentence: str) -> None:
    """A paragraph of its own; brackets in it are no markup."""
    console.print()
    console.print(sentence, markup=False, highlight=False)


def _stage_table(
    specs: Sequence[BlockSpec],
    plan: Plan,
    stages: Sequence[StageCost],
    batch_size: int,
    target_bytes: int,
) -> Table:
    table = plain_table(("stage", "device", "blocks"), _NUMBERS)
    unit = _macs_unit(stages)
    stages = [
        replace(stage, sent_bytes=stage.sent_bytes + target_bytes) if stage.sent_bytes else stage
        for stage in stages
    ]
    for planned, cost in zip(plan.stages, stages, strict=True):
        names = "\n".join(_names(specs, planned))
        cells = _cells(cost, unit, batch_size)
        table.add_row(str(planned.stage), planned.device, names, *cells)
    table.add_row("total", "", "", *_cells(_total(plan, stages), unit, batch_size))
    return table


def plain_table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    """Headings and their alignment; a cell folds rather than lose digits in a narrow terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in words:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _cells(cost: StageCost, unit: str, batch_size: int) -> tuple[str, ...]:
    return (
        count_text(cost.parameters),
        count_text(cost.head_parameters),
        _macs(cost.train_macs, unit),
        size_text(cost.sent_bytes * batch_size) if cost.sent_bytes else "–",
        size_text(cost.estimated_bytes),
    )


def _total(plan: Plan, stages: Sequence[StageCost]) -> StageCost:
    """Of all processes; members of a team have the same parameters, and one of them sends."""
    apart = [cost for planned, cost in zip(plan.stages, stages, strict=True) if not planned.member]
    return StageCost(
        parameters=sum(cost.parameters for cost in apart),
        head_parameters=sum(cost.head_parameters for cost in apart),
        train_macs=_macs_of(stages),
        sent_bytes=sum(cost.sent_bytes for cost in apart),
        estimated_bytes=sum(cost.estimated_bytes for cost in stages),
    )


def _macs_of(stages: Sequence[StageCost]) -> int:
    return sum(cost.train_macs for cost in stages)


def _print_bounds(
    specs: Sequence[BlockSpec], plan: Plan, stages: Sequence[StageCost], console: Console
) -> None:
    slowest = max(plan.stages, key=lambda planned: stages[planned.stage].train_macs)
    unit, names = _macs_unit(stages), ", ".join(_names(specs, slowest))
    macs = _macs(stages[slowest.stage].train_macs, unit)
    say(
        console,
        f"Speed: bound by stage {slowest.stage} ({names}): {macs} multiply-adds of "
        f"{_macs(_macs_of(stages), unit)}.",
    )
    say(console, _placement_sentence(plan, stages))
    console.print()
    table = plain_table((), ("equal devices", "speed-up, consecutive", "speed-up, free placement"))
    for count in _DEVICE_COUNTS:
        consecutive = speedup_bound_consecutive(stages, count)
        free = speedup_bound_free(stages, count)
        table.add_row(str(count), f"{consecutive:.2f}×", f"{free:.2f}×")
    console.print(table)


def _placement_sentence(plan: Plan, stages: Sequence[StageCost]) -> str:
    names = [planned.device for planned in plan.stages]
    devices = list(dict.fromkeys(names))
    if {local_name(name) for name in devices} == {"cpu"}:
        return "On the CPU, read 'device' below as the cores that one stage has to itself."
    loads = [stage.train_macs for stage in stages]
    peak = busiest(loads, [devices.index(name) for name in names])
    memory = estimated_by_device(plan, stages)
    fullest = max(devices, key=lambda name: memory[name])
    return (
        f"This plan, on {len(devices)} of the devices: by its multiply-adds at most "
        f"{sum(loads) / peak:.2f}× the speed of one; the most memory is on {fullest}: "
        f"{size_text(memory[fullest])}."
    )


def estimated_by_device(plan: Plan, stages: Sequence[StageCost]) -> dict[str, int]:
    """Bytes that training needs on each device of the plan."""
    memory = {planned.device: 0 for planned in plan.stages}
    for planned, stage in zip(plan.stages, stages, strict=True):
        memory[planned.device] += stage.estimated_bytes
    return memory


def _names(specs: Sequence[BlockSpec], planned: StagePlan) -> list[str]:
    return [specs[block].name for block in planned.blocks]


def _macs_unit(stages: Sequence[StageCost]) -> str:
    """One unit for the whole report, so that its numbers can be compared at a glance."""
    largest = max(stage.train_macs for stage in stages)
    return next((unit for unit, least in _MACS_FROM.items() if largest >= least), "")


def _macs(number: int, unit: str) -> str:
    scaled = number / _MACS_SCALES.get(unit, 1)
    return f"{scaled:.0f} {unit}".rstrip() if scaled >= 10 or not unit else f"{scaled:.2g} {unit}"
