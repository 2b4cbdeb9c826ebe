"""Into which stages a run is divided, and on which hosts and devices they may run."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from launch.machine.gpus import devices
from launch.plan.replicas import REPLICAS, asked_for
from pipeline.config.sections import build_config, config_tree
from pipeline.errors import SINGLE, STAGES, ConfigError
from pipeline.planning.hosts import (
    Wanted,
    devices_of,
    on_hosts,
    planned_devices,
    this_machine,
)
from pipeline.planning.plan import make_plan, plan_members, with_replicas
from pipeline.planning.plan_files import load_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launch.job import KnownSpeed, Options
    from pipeline.config.sections import Config
    from pipeline.coordinator.engine import Engine
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost
    from pipeline.planning.hosts import Host
    from pipeline.planning.plan import Plan


def between_hosts(config: Config) -> Config:
    """With links that reach other hosts: files of sockets join nobody beyond one machine."""
    if config.runtime.transport != "ipc":
        return config
    return config.model_copy(
        update={"runtime": config.runtime.model_copy(update={"transport": "tcp"})}
    )


def hosts_for(options: Options, config: Config, cluster: Engine | None) -> tuple[Host, ...]:
    """Where stages may run."""
    if cluster is not None:
        return cluster.hosts(Wanted(options.gpus, config.runtime.threads_per_stage))
    return (this_machine(_devices(options)),)


def _devices(options: Options) -> tuple[str, ...]:
    if options.dry_run and options.gpus and not options.measure:
        found = devices(options.gpus, count=lambda: sys.maxsize)  # a plan for another machine
    else:
        found = devices(options.gpus)
    if options.assume is not None and options.gpus is None and found == ("cpu",):
        found = ("cuda:0",)  # one such device is imagined, on whatever machine
    return found[:1] if options.single else found


def check_divided(config: Config, options: Options) -> None:
    """Whether the network can be divided as the options ask.

    Raises:
        ConfigError: where every process holds all of it, or one process has to.
    """
    if config.parallel.members > 1:
        _check_members(config.parallel.members, options)
    elif config.loss.is_global:
        _check_one_process(config, options)
    if options.plan is not None and options.stages is not None:
        raise ConfigError("--plan says how many stages there are: leave --stages out")


def _check_members(members: int, options: Options) -> None:
    """Each process of a team holds the whole network."""
    why = f"parallel.members {members}: every process holds the whole network"
    if options.stages not in (None, 1):
        raise ConfigError(
            *(STAGES, f" {options.stages}: {why}, which can't be divided into stages as well; "),
            *("leave ", STAGES, " out, or use parallel.members 1"),
        )
    if options.plan is not None:
        raise ConfigError(f"--plan: {why}, and there is nothing to plan: leave --plan out")
    if options.replicas:
        raise ConfigError(
            *(REPLICAS, f": {why}, and no stage is slower than others: leave "),
            *(REPLICAS, " out, or use parallel.members 1"),
        )


def _check_one_process(config: Config, options: Options) -> None:
    why = (
        f"loss.name {config.loss.name} is global backprop: its gradient flows through all blocks, "
        "so they can't be divided into stages"
    )
    if options.stages not in (None, 1):
        raise ConfigError(
            *(STAGES, f" {options.stages}: {why}; leave ", STAGES, " out, add ", SINGLE)
        )
    if not options.single and not options.dry_run:
        raise ConfigError(f"{why}: train it with ", SINGLE)


def divided(
    options: Options,
    config: Config,
    specs: Sequence[BlockSpec],
    costs: Sequence[BlockCost],
    hosts: Sequence[Host],
    fed_from: str,
    known: KnownSpeed | None,
) -> tuple[Config, Plan]:
    """The plan, and the configuration with the replicas that the options ask for.

    Args:
        fed_from: the host of the coordinator, by name.
        known: of the blocks on these devices; None: the plan goes by their costs.

    Raises:
        ConfigError: for more stages than there are blocks or devices hold, a file that is no plan
            of this network, or replicas of stages that are not there.
    """
    if config.parallel.members > 1:
        plan = plan_members(specs, config.parallel.members, planned_devices(hosts))
        return config, on_hosts(replace(plan, fed_from=fed_from), costs, hosts)
    if options.plan is not None:  # single mode does all its stages in turn
        placed = devices_of(hosts)
        plan = replace(load_plan(options.plan, specs, placed), fed_from=fed_from)
        return _replicated(options, config, plan, known, costs, placed, hosts)
    placed = planned_devices(hosts)
    stages = 1 if config.loss.is_global else options.stages
    loads = known.timing.loads if known else None
    plan = make_plan(specs, costs, stages=stages, devices=placed, loads=loads)
    plan = replace(plan, fed_from=fed_from)
    config, plan = _replicated(options, config, plan, known, costs, placed, hosts)
    return config, on_hosts(plan, costs, hosts)


def _replicated(
    options: Options,
    config: Config,
    plan: Plan,
    known: KnownSpeed | None,
    costs: Sequence[BlockCost],
    devices: Sequence[str],
    hosts: Sequence[Host],
) -> tuple[Config, Plan]:
    """The configuration and the plan with the replicas that are asked for, in either."""
    if options.replicas:
        replicas = asked_for(options.replicas, config, plan, known, devices, hosts)
        tree = config_tree(config)
        tree["parallel"]["replicas"] = replicas
        config = build_config(tree, "--replicas")
    if not config.parallel.replicas:
        return config, plan
    loads = known.timing.loads if known else None
    return config, with_replicas(plan, config.parallel.replicas, costs, devices, loads)
