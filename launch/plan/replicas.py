"""`--replicas`: which stages of a plan get how many processes, as replicas of their blocks."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, Option
from pipeline.planning.hosts import devices_of, local_name, on_hosts
from pipeline.planning.plan import with_replicas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launch.job import KnownSpeed
    from pipeline.config.sections import Config
    from pipeline.planning.hosts import Host
    from pipeline.planning.plan import Plan

REPLICAS = Option("replicas")
MOST = 64
_AUTO, _GAIN = "auto", 1.05
"""Less than this is not worth fewer steps."""
NONE_CHOSEN = (
    "--replicas auto: every stage keeps one process: one more would bring less than "
    f"{100 * (_GAIN - 1):.0f} %, as predicted, or there is no core or GPU left for it; "
    "--replicas STAGE:N has it all the same"
)


def asked_for(
    texts: Sequence[str],
    config: Config,
    plan: Plan,
    known: KnownSpeed | None,
    devices: Sequence[str],
    hosts: Sequence[Host],
) -> dict[int, int]:
    """The replicas of each block that has any, by its index.

    Args:
        texts: of the option.
        devices: on which processes are placed.
        hosts: which have these.

    Raises:
        ConfigError: where a text is no STAGE:N, there is no such stage, or nothing says which.
    """
    if _AUTO in texts:
        if len(texts) > 1:
            raise ConfigError(REPLICAS, " auto: chooses by itself: leave the others out")
        return _best(config, plan, known, devices, hosts)
    found: dict[int, int] = {}
    for text in texts:
        match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text)
        if match is None or not 2 <= int(match[2]) <= MOST:
            raise ConfigError(
                REPLICAS, f" {text}: expected STAGE:N, as 1:2, with N from 2 to {MOST}, or auto"
            )
        stage, number = int(match[1]), int(match[2])
        if stage >= plan.n_stages:
            raise ConfigError(
                REPLICAS,
                f" {text}: the plan has stages 0 to {plan.n_stages - 1}; name one of these",
            )
        found.update(dict.fromkeys(plan.stages[stage].blocks, number))
    return found


def _best(
    config: Config,
    plan: Plan,
    known: KnownSpeed | None,
    devices: Sequence[str],
    hosts: Sequence[Host],
) -> dict[int, int]:
    """Those with which the plan is predicted to be fastest, one stage and number after another, as
    long as each brings something; none where nothing does."""
    if known is None:
        raise ConfigError(
            REPLICAS,
            " auto: chooses by times of blocks: measure them with --measure, or say which stage, "
            "as 1:2",
        )
    timing, slots = known.timing, config.runtime.max_in_flight
    chosen: dict[int, int] = {}

    def speed(replicas: dict[int, int]) -> float:
        grown = with_replicas(plan, replicas, timing.costs, devices, timing.loads)
        return timing.prospect(on_hosts(grown, timing.costs, hosts), slots).images_per_s

    best = speed(chosen)
    most = max(0, _room(hosts) - plan.n_stages)
    while most > 0:
        tries = []
        for stage in plan.stages:
            number = chosen.get(stage.blocks[0], 1) + 1
            tried = {**chosen, **dict.fromkeys(stage.blocks, number)}
            tries.append((speed(tried), tried))
        found, tried = max(tries, key=lambda one: one[0])
        if found < best * _GAIN:
            break
        best, chosen, most = found, tried, most - 1
    return chosen


def _room(hosts: Sequence[Host]) -> int:
    """For how many processes: one for each GPU, or as many as CPUs lend cores for."""
    devices = devices_of(hosts)
    if any(local_name(device) != "cpu" for device in devices):
        return len(devices)
    cores = len(os.sched_getaffinity(0))
    return sum(cores if host.room is None else host.room for host in hosts)
