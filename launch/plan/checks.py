"""Options -> a job: everything that can be checked before anything starts.

Without torch, unless the network is a user's own (`model.factory`), which has to be made.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from socket import create_connection
from typing import TYPE_CHECKING

from launch.job import Job
from launch.plan.division import between_hosts, check_divided, divided, hosts_for
from launch.plan.known_speed import find_speed
from launch.plan.memory import too_large
from launch.plan.user_code import awaited
from pipeline.config.config_file import load_config
from pipeline.data.facts import check_data, data_facts
from pipeline.errors import SINGLE, ConfigError, Option
from pipeline.network.from_config import network_specs
from pipeline.network.named_blocks import check_there
from pipeline.planning.cost import block_costs
from pipeline.planning.hosts import TO_COME, planned_devices
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

    from launch.job import Options
    from pipeline.config.sections import Config
    from pipeline.coordinator.engine import Engine
    from pipeline.data.facts import DataFacts
    from pipeline.data.own_data import OwnData
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost
    from pipeline.planning.hosts import Host
    from pipeline.planning.plan import Plan, StagePlan
    from pipeline.rehearsal.rehearsal import Rehearsal

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
        config = between_hosts(config)
    own_data = _own_data(config)
    if config.runtime.tensorboard:
        check_tensorboard()
    facts, code = data_facts(config.data, own_data), config.user_code
    with awaited(code, "planning"):
        specs = network_specs(config, facts)
    own = own_code(code.values())
    _check_examples(config, facts, specs)
    _check_blocks(config, specs)
    check_divided(config, options)
    costs = network_costs(config, specs)
    hosts = hosts_for(options, config, cluster)
    devices = planned_devices(hosts)
    if options.measure:
        for spec in specs:  # each is measured alone
            if why := too_large(config, facts, specs, costs, {devices[0]: (spec.index,)}):
                raise ConfigError(f"--measure: {why}")
    known = find_speed(options, config, facts, specs, costs, devices)
    fed_from = _host_of_launcher(hosts, cluster)
    config, plan = divided(options, config, specs, costs, hosts, fed_from, known)
    _check_system(config, options, plan, hosts, cluster)
    why = too_large(config, facts, specs, costs, plan.blocks_of_devices)
    if why and not options.dry_run:
        raise ConfigError(why)
    return Job(
        *(name, config, facts, specs, costs, plan, known, options.single, own),
        # trains a step: not where memory can't hold it
        rehearsal=None if why else _rehearsed(config, facts, specs),
        auto_replicas="auto" in options.replicas,
        too_large=why,
        own_data=own_data,
        initial=Initial() if why or options.resume else _initial(config, specs),
    )


def _check_trace(options: Options) -> None:
    if options.trace is not None and not 1 <= options.trace <= MOST_BATCHES:
        raise ConfigError(
            Option("trace"),
            f" {options.trace}: records the first batches of a run, 1 to {MOST_BATCHES}; use 50",
        )


def _own_data(config: Config) -> OwnData | None:
    """Data of a user's own, read to plan the run; None where it has others."""
    if not config.data.is_own:
        return None
    from pipeline.data.own_data import read_own  # numpy

    factory = config.data.factory
    with awaited({"data.factory": factory} if factory else {}, "reading data"):
        return read_own(config.data)


def _rehearsed(config: Config, facts: DataFacts, specs: Sequence[BlockSpec]) -> Rehearsal | None:
    """What is found out about a user's own network; None where it is a built-in one."""
    code = config.user_code
    if not code:
        return None
    with awaited(code, "trying the network"):
        from pipeline.rehearsal.rehearsal import rehearse  # torch, which it needs anyway

        return rehearse(config, facts, specs)


def _initial(config: Config, specs: Sequence[BlockSpec]) -> Initial:
    """What the blocks begin with that another run has learned."""
    if config.model.init_from is None:
        return Initial()
    from pipeline.trained.initial import initial_of  # torch

    with awaited(config.user_code, "making the network"):
        return initial_of(config, specs)


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


def _check_examples(config: Config, facts: DataFacts, specs: Sequence[BlockSpec]) -> None:
    """Whether the network takes the examples, and there are those that the configuration needs."""
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


def _check_blocks(config: Config, specs: Sequence[BlockSpec]) -> None:
    """Whether the configuration suits the blocks of the network, and names those that it has."""
    _check_normalised(config.data.batch_size, specs)
    if config.parallel.batch_norm == "batch":
        _check_norms_are_known(specs)
    check_there("optimizer.blocks", config.optimizer.blocks, specs)
    check_there("parallel.replicas", config.parallel.replicas, specs)


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


def _check_system(
    config: Config, options: Options, plan: Plan, hosts: Sequence[Host], cluster: Engine | None
) -> None:
    """Whether hosts have the ports and descriptors that the plan's processes need."""
    if options.single:
        return
    _check_ports(config, plan, hosts, cluster)
    _check_listening(config, plan, hosts, cluster)
    if not options.dry_run:
        check_enough(plan.n_stages, reserved=config.runtime.transport != "ipc")


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


def _host_of_launcher(hosts: Sequence[Host], cluster: Engine | None) -> str:
    """By name; by its address where it lends nothing to stages."""
    here = _hosts_here(hosts, cluster)
    return here[0] if here or cluster is None else str(cluster.address)


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


def _name(path: Path, options: Options) -> str:
    """What people call the run: after its config, or after its folder where that holds it."""
    if options.run_dir is not None and path == options.run_dir / CONFIG:
        return options.run_dir.resolve().name
    return path.stem
