"""Options -> a job: everything that can be checked before anything starts.

Without torch, unless the network is a user's own (`model.factory`), which has to be made.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from socket import create_connection
from typing import TYPE_CHECKING

from launch.job import Job
from launch.machine.gpus import devices
from launch.plan.known_speed import find_speed
from launch.plan.memory import too_large
from launch.plan.replicas import asked_for
from launch.plan.user_code import awaited
from pipeline.config.config_file import load_config
from pipeline.config.sections import build_config, config_tree
from pipeline.data.facts import check_data, data_facts
from pipeline.errors import SINGLE, STAGES, ConfigError, Option
from pipeline.network.from_config import network_specs
from pipeline.network.named_blocks import check_there
from pipeline.planning.cost import block_costs
from pipeline.planning.hosts import (
    TO_COME,
    Wanted,
    devices_of,
    local_name,
    on_hosts,
    planned_devices,
    this_machine,
)
from pipeline.planning.plan import make_plan, plan_members, with_replicas
from pipeline.planning.plan_files import load_plan
from pipeline.run.event_files import check_tensorboard
from pipeline.storage.checkpoint import Initial
from pipeline.storage.checkpoint_writer import CONFIG
from pipeline.system.descriptors import check_enough
from pipeline.system.paths import expanded
from pipeline.system.sources import own_code
from pipeline.timeline.spans import MOST_BATCHES
from pipeline.transport.tcp_port import TcpPort, Where, endpoint_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from launch.job import KnownSpeed, Options
    from pipeline.config.sections import Config
    from pipeline.coordinator.engine import Engine
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost
    from pipeline.planning.hosts import Host
    from pipeline.planning.plan import Plan, StagePlan

_CONNECTS_S = 5.0
"""Longest time to connect to an address of this machine; beyond, a firewall is in the way."""


def check_engine(options: Options) -> None:
    """Raises ConfigError where the engine is not there, or is asked for what it can't do."""
    if options.engine == "local":
        if options.ray_address is not None or options.ray_insecure:
            raise ConfigError("--ray-address and --ray-insecure: are for --engine ray")
        return
    if find_spec("ray") is None:
        raise ConfigError(
            "--engine ray: needs Ray, which is not installed here: pip install "
            "'local-loss-pipeline[ray]'"
        )
    if options.single:
        raise ConfigError(SINGLE, " trains in this process: leave --engine ray out")
    if options.measure:
        raise ConfigError("--measure: measures this machine: leave --engine ray out")
    if "auto" in options.replicas and options.assume is None:
        raise ConfigError(
            "--replicas auto: chooses by times of blocks, and of other machines none are known: "
            "say which stage, as 1:2"
        )


def check_local(options: Options) -> None:
    """Raises ConfigError where a command that trains on this machine alone is to use another."""
    if options.engine != "local":
        raise ConfigError(
            f"--engine {options.engine}: this command trains on this machine alone: leave it out, "
            "or train one run after the other with pipeline-launch"
        )


def make_job(options: Options, cluster: Engine | None = None) -> Job:
    """Check everything that can be checked before anything starts.

    Args:
        cluster: that the run is planned for; None: this machine.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    # home folders in place of `~`; that of the run directory has been replaced before
    options = replace(
        options,
        config=options.config and expanded("CONFIG.yaml", options.config),
        plan=options.plan and expanded("--plan", options.plan),
        assume=options.assume and expanded("--assume", options.assume),
    )
    path = options.config
    if path is None:
        if not options.resume or options.run_dir is None:
            raise ConfigError("which config? give CONFIG.yaml, or --resume with --run-dir DIR")
        path = options.run_dir / CONFIG
    overrides = options.overrides
    if options.data_parallel is not None:
        overrides += (f"parallel.members={options.data_parallel}",)
    config = load_config(path, overrides)
    job = check_job(_name(path, options), config, options, cluster)
    return replace(job, milestones_for=_milestones_for(path, options.overrides))


def check_job(name: str, config: Config, options: Options, cluster: Engine | None = None) -> Job:
    """As `make_job`, of a configuration that is there already; `name`: what people call the run.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    _check_trace(options)
    if cluster is not None:
        config = _between_hosts(config)
    own_data = None
    if config.data.is_own:
        from pipeline.data.own_data import read_own  # numpy

        factory = config.data.factory
        with awaited({"data.factory": factory} if factory else {}, "reading data"):
            own_data = read_own(config.data)
    if config.runtime.tensorboard:
        check_tensorboard()
    facts = data_facts(config.data, own_data)
    code = config.user_code
    with awaited(code, "planning"):
        specs = network_specs(config, facts)
    own = own_code(code.values())
    check_data(config.data, facts, batch_norm=any(spec.normalises for spec in specs))
    patience = config.schedule.patience
    if patience is not None and not facts.test_images:
        raise ConfigError(
            f"schedule.patience {patience} goes by tests, and there are no examples to test on: "
            "keep some of the training set by data.validation, as 0.1"
        )
    if config.runtime.keep_best == "test" and not facts.test_images:
        raise ConfigError(
            "runtime.keep_best test: there are no examples to test on: use last, or keep some of "
            "the training set by data.validation, as 0.1"
        )
    _check_normalised(config.data.batch_size, specs)
    if config.parallel.batch_norm == "batch":
        _check_norms_are_known(specs)
    check_there("optimizer.blocks", config.optimizer.blocks, specs)
    backprop, members = config.loss.is_global, config.parallel.members
    if members > 1:
        _check_members(members, options)
    elif backprop:
        _check_one_process(config, options)
    costs = network_costs(config, specs)
    hosts = _hosts(options, config, cluster)
    devices = planned_devices(hosts)
    if options.measure:
        for spec in specs:  # each is measured alone
            alone = {devices[0]: (spec.index,)}
            if why := too_large(config, facts, specs, costs, alone):
                raise ConfigError(f"--measure: {why}")
    known = find_speed(options, config, facts, specs, costs, devices)
    stages = 1 if backprop else options.stages
    if members > 1:
        plan = on_hosts(plan_members(specs, members, devices), costs, hosts)
    elif options.plan is None:
        loads = known.timing.loads if known else None
        plan = make_plan(specs, costs, stages=stages, devices=devices, loads=loads)
        config, plan = _replicated(options, config, plan, known, costs, devices, hosts)
        plan = on_hosts(plan, costs, hosts)
    elif options.stages is not None:
        raise ConfigError("--plan says how many stages there are: leave --stages out")
    else:
        # single mode does all stages in turn
        plan = load_plan(options.plan, specs, devices_of(hosts))
        config, plan = _replicated(options, config, plan, known, costs, devices_of(hosts), hosts)
    check_there("parallel.replicas", config.parallel.replicas, specs)
    if not options.single:
        _check_ports(config, plan, hosts, cluster)
        _check_listening(config, plan, hosts, cluster)
    if not (options.single or options.dry_run):
        check_enough(plan.n_stages, reserved=config.runtime.transport != "ipc")
    blocks: dict[str, tuple[int, ...]] = {}
    for stage in plan.stages:
        blocks[stage.device] = (*blocks.get(stage.device, ()), *stage.blocks)
    why = too_large(config, facts, specs, costs, blocks)
    if why and not options.dry_run:
        raise ConfigError(why)
    # that trains a step: not where memory can't hold it
    with awaited(code, "trying the network"):
        rehearsal = None
        if code and not why:
            from pipeline.rehearsal.rehearsal import rehearse  # torch, which it needs anyway

            rehearsal = rehearse(config, facts, specs)
    initial = None
    if config.model.init_from is not None and not (why or options.resume):
        from pipeline.trained.initial import initial_of  # torch

        with awaited(code, "making the network"):
            initial = initial_of(config, specs)
    return Job(
        *(name, config, facts, specs, costs, plan, known, options.single, own, rehearsal, why),
        own_data=own_data,
        initial=initial or Initial(),
    )


def _check_trace(options: Options) -> None:
    if options.trace is not None and not 1 <= options.trace <= MOST_BATCHES:
        raise ConfigError(
            Option("trace"),
            f" {options.trace}: records the first batches of a run, 1 to {MOST_BATCHES}; use 50",
        )


def _milestones_for(path: Path, overrides: tuple[str, ...]) -> int | None:
    """As `Job.milestones_for`."""
    of_epochs = [text for text in overrides if text.startswith("schedule.epochs=")]
    if not of_epochs or any(text.startswith("schedule.milestones=") for text in overrides):
        return None
    try:
        others = tuple(text for text in overrides if text not in of_epochs)
        return load_config(path, others).schedule.epochs
    except ConfigError:  # only with these epochs is it right, or it came through a pipe
        return None


def _check_normalised(batch_size: int, specs: Sequence[BlockSpec]) -> None:
    """One image has a variance where its feature maps have several pixels."""
    for spec in specs:
        if batch_size == 1 and spec.batch_norm and prod(spec.shape[1:]) == 1:
            raise ConfigError(
                f"data.batch_size 1: block {spec.index} ({spec.name}) gives a number per feature, "
                "and batch normalisation needs several; use data.batch_size 2 or more, or "
                "model.batch_norm false"
            )


def _check_norms_are_known(specs: Sequence[BlockSpec]) -> None:
    """A batch norm of a user's own could not be made to see the whole batch."""
    for spec in specs:
        for made, where in ((spec.custom, "block"), (spec.rule, "the rule of block")):
            for kind in made.unusual_norms if made else ():
                raise ConfigError(
                    f"parallel.batch_norm batch: {where} {spec.index} has a {kind}, which may have "
                    "a way of its own: use a batch norm of torch.nn, or parallel.batch_norm share"
                )


def _check_ports(config: Config, plan: Plan, hosts: Sequence[Host], cluster: Engine | None) -> None:
    """Raises ConfigError where a host has fewer ports than it listens at."""
    ends = config.runtime.ports
    if config.runtime.transport == "ipc" or ends is None:
        return
    there = Where.of(endpoint_at("auto", ends)).ports
    assert there is not None, "they are given"
    ours = _hosts_here(hosts, cluster)
    for name in dict.fromkeys((*ours, *(stage.host for stage in plan.stages))):
        stages = [stage for stage in plan.stages if stage.host == name]
        if name == TO_COME:  # which may be several: one of them takes a stage at least
            stages = [max(stages, key=lambda stage: stage.members)]
        needed = _ports_of(stages) + (name in ours)
        if needed > len(there):
            numbers = ", ".join(str(stage.stage) for stage in stages)
            raise ConfigError(
                f"runtime.ports {ends}: {len(there)} ports, and {_named(name)} needs {needed} for "
                f"stage{'s' * (len(stages) > 1)} {numbers}: two for each, two more for each other "
                "member of its team, and one for the launcher; give more of them"
            )


def _named(host: str) -> str:
    return f"host {host}" if host else "this machine"


def _ports_of(stages: Sequence[StagePlan]) -> int:
    """A link and a stream from the stage before, and from others of a team."""
    return 2 * sum(stage.members for stage in stages)


def _hosts_here(hosts: Sequence[Host], cluster: Engine | None) -> list[str]:
    """The hosts that are this machine, by name: the launcher is there, too."""
    return [host.name for host in hosts if cluster is None or host.address == cluster.address]


def _check_listening(
    config: Config, plan: Plan, hosts: Sequence[Host], cluster: Engine | None
) -> None:
    """Sockets are opened when the run directory is there; whether they can be, and others can
    connect to them (not so at a network's broadcast address), is found out now, on this machine.

    Raises:
        ConfigError: where it can't, or where not enough ports are free.
    """
    address, ports = config.runtime.bind_address, config.runtime.ports
    if config.runtime.transport == "ipc":
        return
    if address == "auto" and cluster is not None and cluster.address is not None:
        address = cluster.address
    here = _hosts_here(hosts, cluster)
    where = Where.of(endpoint_at(address, ports or "*"))
    try:
        with ExitStack() as trials:
            needed = 1 + _ports_of([stage for stage in plan.stages if stage.host in here])
            for _ in range(needed if ports else 1):
                trial = trials.enter_context(closing(TcpPort(where)))
            create_connection((where.host, trial.number), _CONNECTS_S).close()
    except OSError as error:
        raise ConfigError(
            f"runtime.bind_address {address}: {error.strerror or error}; give an address of this "
            "machine (`ip address` lists them), one that begins with fe80 with its interface, as "
            "fe80::1%eth0"
        ) from None


def network_costs(config: Config, specs: Sequence[BlockSpec]) -> tuple[BlockCost, ...]:
    """What each block of the configured network costs."""
    return block_costs(
        specs,
        batch_size=config.data.batch_size,
        element_bytes=2 if config.runtime.precision == "bf16" else 4,
        optimizer_name=config.optimizer.name,
        backprop=config.loss.is_global,
        clips=config.optimizer.clip_norm is not None,
        recompute=config.runtime.recompute,
        parts=config.optimizer.accumulate,
        wire_bytes=2 if config.runtime.wire_dtype == "bf16" else None,
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
        room = _room(hosts)
        replicas = asked_for(options.replicas, config, plan, known, devices, room)
        tree = config_tree(config)
        tree["parallel"]["replicas"] = replicas
        config = build_config(tree, "--replicas")
    if not config.parallel.replicas:
        return config, plan
    loads = known.timing.loads if known else None
    return config, with_replicas(plan, config.parallel.replicas, costs, devices, loads)


def _room(hosts: Sequence[Host]) -> int:
    """For how many processes: one for each GPU, or as many as CPUs lend cores for."""
    devices = devices_of(hosts)
    if any(local_name(device) != "cpu" for device in devices):
        return len(devices)
    cores = len(os.sched_getaffinity(0))
    return sum(cores if host.room is None else host.room for host in hosts)


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


def _name(path: Path, options: Options) -> str:
    """What people call the run: after its config, or after its folder where that holds it."""
    if options.run_dir is not None and path == options.run_dir / CONFIG:
        return options.run_dir.resolve().name
    return path.stem


def _between_hosts(config: Config) -> Config:
    """Files of sockets join nobody beyond one machine."""
    if config.runtime.transport != "ipc":
        return config
    return config.model_copy(
        update={"runtime": config.runtime.model_copy(update={"transport": "tcp"})}
    )


def _hosts(options: Options, config: Config, cluster: Engine | None) -> tuple[Host, ...]:
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
