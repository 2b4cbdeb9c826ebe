"""What `--dry-run` says of speed where block times are known, measured or assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch.display.format import size_text
from launch.plan.dry_run import estimated_by_device, plain_table, say
from pipeline.network.specs import stage_units
from pipeline.planning.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from launch.job import Job, KnownSpeed
    from pipeline.planning.plan import Plan
    from pipeline.planning.prediction import Links, Prospect, StageWork, Timing

_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_GROWS = 1.01
"""Less than this from one count of devices to the next is no growth."""
_BINDS = 0.97
"""What is busy for this share of the time is the bound."""
_UNDIVIDED = "and no layer is divided among devices"
_GREEDY = (
    "No speed is predicted: in greedy training one block learns at a time, and each phase has a "
    "speed of its own."
)


def print_prediction(job: Job, known: KnownSpeed, console: Console) -> None:
    """Predicted images/s of the plan, by device; and how speed grows with devices."""
    if job.config.schedule.greedy:
        say(console, _GREEDY)
        return
    timing, plan = known.timing, job.plan
    replicated = any(stage.in_rounds for stage in plan.stages)
    if plan.members > 1 or (job.single and replicated):
        return  # what a share of a batch takes was not measured; nor do members that take turns
    if job.single:
        plan = plan.in_one_process()
        timing = timing.in_one_process() if plan.stages[0].device == "cpu" else timing
    found = timing.prospect(plan, job.config.runtime.max_in_flight)
    memory = estimated_by_device(plan, plan.stage_costs(job.costs))
    say(console, f"Predicted ({known.source}): {found.images_per_s:,.0f} images/s.")
    console.print()
    table = plain_table(("device", "stages"), ("busy", "memory"))
    for device, busy in found.device_busy.items():
        stages = [str(s.stage) for s in plan.stages if s.device == device]
        table.add_row(device, ", ".join(stages), f"{100 * busy:.0f} %", size_text(memory[device]))
    console.print(table)
    for device, needed in memory.items():
        if known.memory_bytes is not None and needed > known.memory_bytes:
            say(
                console,
                f"{device} needs {size_text(needed)} and has {size_text(known.memory_bytes)}: use "
                "more devices or stages, or a smaller data.batch_size, or place stages yourself "
                "with --plan",
            )
    if plan.stages[0].device != "cpu" and not (job.in_one_process or replicated):
        _print_growth(job, known, console)


def _print_growth(job: Job, known: KnownSpeed, console: Console) -> None:
    timing = known.timing

    def on(count: int) -> _Grown:
        devices, stages = [f"device {number}" for number in range(count)], job.plan.n_stages
        plan = make_plan(job.specs, job.costs, stages=stages, devices=devices, loads=timing.loads)
        return _Grown(count, plan, timing.prospect(plan, job.config.runtime.max_in_flight))

    grown = [on(count) for count in _COUNTS]
    n = job.plan.n_stages
    say(
        console,
        f"With {n} stage{'s' * (n > 1)}, divided and placed anew for each number of devices:",
    )
    console.print()
    headings = ("equal devices", "used", "images/s", "speed-up", "busy, on average", "most memory")
    table = plain_table((), headings)
    for one in grown:
        busy = sum(one.found.device_busy.values()) / one.devices
        speedup = one.speed / grown[0].speed
        cells = (f"{one.speed:,.0f}", f"{speedup:.2f}×", f"{100 * busy:.0f} %")
        needed = max(estimated_by_device(one.plan, one.plan.stage_costs(job.costs)).values())
        is_excess = known.memory_bytes is not None and needed > known.memory_bytes
        memory = f"{'too much: ' if is_excess else ''}{size_text(needed)}"
        table.add_row(str(one.devices), str(one.used), *cells, memory)
    console.print(table)
    say(console, _where_it_stops(job, timing, grown, on))


@dataclass(frozen=True, slots=True)
class _Grown:
    """What so many devices can do."""

    devices: int
    plan: Plan
    found: Prospect

    @property
    def speed(self) -> float:
        """Images/s that are predicted with so many devices."""
        return self.found.images_per_s

    @property
    def used(self) -> int:
        """Devices that have something to do."""
        return len({stage.device for stage in self.plan.stages})


def _where_it_stops(
    job: Job, timing: Timing, grown: Sequence[_Grown], on: Callable[[int], _Grown]
) -> str:
    best = max(one.speed for one in grown)
    last = next(n for n, one in enumerate(grown) if _GROWS * one.speed >= best)
    if last == len(grown) - 1:
        return f"Speed still grows at {grown[last].devices} devices."
    # between one count that was tried and the next: as few devices as bring all that they can
    few, enough = grown[last - 1] if last else grown[last], grown[last]
    while enough.devices - few.devices > 1:
        middle = on((few.devices + enough.devices) // 2)
        if _GROWS * middle.speed >= best:
            enough = middle
        else:
            few = middle
    why = _why(job, timing, grown[last + 1].plan, grown[last + 1].found)
    devices = f"device{'s' * (enough.used > 1)} bring{'s' * (enough.used == 1)}"
    return f"More than {enough.used} {devices} nothing: {why}."


def _why(job: Job, timing: Timing, plan: Plan, found: Prospect) -> str:
    """What a plan's speed is bound by."""
    works, batch_s = timing.works(plan), timing.batch_size / found.images_per_s
    slowest = max(range(len(works)), key=lambda stage: works[stage].total_s)
    if works[slowest].total_s >= _BINDS * batch_s:
        share = works[slowest].total_s / sum(work.total_s for work in works)
        blocks = plan.stages[slowest].blocks
        names = ", ".join(job.specs[block].name for block in blocks)
        parts = [unit for unit in stage_units(job.specs) if unit[0].index in blocks]
        cure = "which more --stages would divide" if len(parts) > 1 else _UNDIVIDED
        return f"stage {slowest} ({names}) alone is {100 * share:.0f} % of the work, {cure}"
    if timing.feed_s >= _BINDS * batch_s:
        return (
            f"the coordinator prepares a batch every {_ms(timing.feed_s)} ms, and no faster; "
            "faster storage or processors there would help"
        )
    carried = max(range(len(works)), key=lambda stage: works[stage].link_s)
    if works[carried].link_s >= _BINDS * batch_s:
        return (
            f"what stage {carried} sends keeps the link to the next one busy for "
            f"{_ms(works[carried].link_s)} ms with each batch; links with more bytes per second "
            "would help"
        )
    if max(found.device_busy.values()) >= _BINDS:
        return "no placement was found that shares the stages out more evenly"
    return _waiting(works, timing.links, batch_s)


def _waiting(works: Sequence[StageWork], links: Links, batch_s: float) -> str:
    longest = max(range(len(works)), key=lambda stage: works[stage].travel_s)
    leaves = f"a batch every {_ms(batch_s)} ms leaves the last stage"
    if not works[longest].travel_s:
        return f"stages wait for each other, {leaves}; a larger runtime.max_in_flight would help"
    latency = links.latency_s / works[longest].travel_s
    return (
        f"batches wait for links: from stage {longest} to the next one takes "
        f"{_ms(works[longest].travel_s)} ms, {100 * latency:.0f} % of it until the first byte is "
        f"there, {leaves}; a larger runtime.max_in_flight would help, or links "
        f"{'that answer sooner' if latency > 0.5 else 'with more bytes per second'}"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2g}"
