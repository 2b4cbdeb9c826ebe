"""What `--dry-run` says of speed where block times are known, measured or assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.dry_run import memory_by_device, plain_table, say
from launch.wording import size_text
from pipeline.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from launch.foresight import Foresight
    from launch.job import Job
    from pipeline.plan import Plan
    from pipeline.timing import Prospect, Timing

_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_GROWS = 1.01
"""Less than this from one count of devices to the next is no growth."""
_BINDS = 0.97
"""What is busy for this share of the time is the bound."""


def print_forecast(job: Job, known: Foresight, console: Console) -> None:
    """Predicted images/s of the plan, by device; and how speed grows with devices."""
    timing = known.timing
    found = timing.prospect(job.plan, job.config.runtime.max_in_flight)
    memory = _memory(job)
    say(console, f"Predicted ({known.source}): {found.images_per_s:,.0f} images/s.")
    console.print()
    console.print(_device_table(job, found, memory))
    for sentence in _too_full(memory, known.memory_bytes):
        say(console, sentence)
    if job.plan.stages[0].device != "cpu":
        _print_growth(job, timing, console)


def _device_table(job: Job, found: Prospect, memory: Mapping[str, int]) -> Table:
    table = plain_table(("device", "stages"), ("busy", "memory"))
    for device, busy in found.device_busy.items():
        stages = [str(s.stage) for s in job.plan.stages if s.device == device]
        table.add_row(device, ", ".join(stages), f"{100 * busy:.0f} %", size_text(memory[device]))
    return table


def _memory(job: Job) -> dict[str, int]:
    stages = job.plan.stage_costs(job.costs)
    return memory_by_device(job.plan, stages)


def _too_full(memory: Mapping[str, int], limit: float | None) -> list[str]:
    if limit is None:
        return []
    return [
        f"{device} needs {size_text(needed)} and has {size_text(limit)}: use more devices or "
        "stages, or a smaller data.batch_size"
        for device, needed in memory.items()
        if needed > limit
    ]


def _print_growth(job: Job, timing: Timing, console: Console) -> None:
    plans = [_plan_on(job, timing, count) for count in _COUNTS]
    found = [timing.prospect(plan, job.config.runtime.max_in_flight) for plan in plans]
    console.print()
    console.print(_growth_table(plans, found))
    say(console, _where_it_stops(job, timing, plans, found))


def _plan_on(job: Job, timing: Timing, count: int) -> Plan:
    devices = [f"device {number}" for number in range(count)]
    return make_plan(job.specs, job.costs, stages=None, devices=devices, loads=timing.loads)


def _growth_table(plans: Sequence[Plan], found: Sequence[Prospect]) -> Table:
    headings = ("equal devices", "used", "images/s", "speed-up", "busy, on average")
    table = plain_table((), headings)
    for count, plan, one in zip(_COUNTS, plans, found, strict=True):
        used = _used(plan)
        busy = sum(one.device_busy.values()) / count
        speedup = one.images_per_s / found[0].images_per_s
        cells = (f"{one.images_per_s:,.0f}", f"{speedup:.2f}×", f"{100 * busy:.0f} %")
        table.add_row(str(count), str(used), *cells)
    return table


def _where_it_stops(
    job: Job, timing: Timing, plans: Sequence[Plan], found: Sequence[Prospect]
) -> str:
    speeds = [one.images_per_s for one in found]
    last = next(n for n, speed in enumerate(speeds) if _GROWS * speed >= max(speeds))
    if last == len(_COUNTS) - 1:
        return f"Speed still grows at {_COUNTS[last]} devices."
    why = _why(job, timing, plans[last + 1], found[last + 1])
    return f"More than {_used(plans[last])} devices bring nothing: {why}."


def _used(plan: Plan) -> int:
    return len({stage.device for stage in plan.stages})


def _why(job: Job, timing: Timing, plan: Plan, found: Prospect) -> str:
    """What a plan's speed is bound by."""
    works, batch_s = timing.works(plan), timing.batch_size / found.images_per_s
    slowest = max(range(len(works)), key=lambda stage: works[stage].total_s)
    if works[slowest].total_s >= _BINDS * batch_s:
        names = ", ".join(job.specs[block].name for block in plan.stages[slowest].blocks)
        share = works[slowest].total_s / sum(work.total_s for work in works)
        return (
            f"stage {slowest} ({names}) alone is {100 * share:.0f} % of the work, and no layer is "
            "divided among devices"
        )
    busiest = max(found.device_busy, key=lambda device: found.device_busy[device])
    if found.device_busy[busiest] >= _BINDS:
        return "the stages can't be shared out more evenly"
    longest = max(range(len(works)), key=lambda stage: works[stage].travel_s)
    return (
        f"batches wait for links: from stage {longest} to the next one takes "
        f"{1e3 * works[longest].travel_s:.2g} ms, a batch every {1e3 * batch_s:.2g} ms leaves the "
        "last stage; faster links or a larger runtime.max_in_flight would help"
    )
