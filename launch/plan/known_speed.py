"""What is known of a network's speed before it trains: measured, or assumed of a device."""

from __future__ import annotations

import os
import sys
from math import lcm
from typing import TYPE_CHECKING

from launch.job import KnownSpeed
from launch.milestones import misplaced
from launch.plan.cost_cache import known_timing, measure
from launch.plan.memory import tight
from launch.plan.replicas import NONE_CHOSEN
from pipeline.errors import ConfigError
from pipeline.planning.hosts import TO_COME, host_of
from pipeline.planning.plan_files import load_device
from pipeline.planning.prediction import assumed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launch.job import Job, Options
    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.cost import BlockCost


def find_speed(
    options: Options,
    config: Config,
    facts: DataFacts,
    specs: Sequence[BlockSpec],
    costs: tuple[BlockCost, ...],
    devices: Sequence[str],
) -> KnownSpeed | None:
    """Block times from `--assume FILE`, or as measured on devices of this kind, now (`--measure`)
    or earlier; None where there are none.

    Raises:
        ConfigError: for a file that is wrong, or options that don't go together.
    """
    if options.assume is not None:
        if not options.dry_run or options.measure:
            raise ConfigError(
                "--assume imagines a device: it goes with --dry-run, without --measure"
            )
        device, precision = load_device(options.assume), config.runtime.precision
        speed = device.speed(precision, str(options.assume))
        nbytes = facts.example_bytes + facts.target_bytes
        timing = assumed(costs, device, speed, config.data.batch_size, nbytes)
        source = f"assumed: {options.assume}, {precision}"
        return KnownSpeed(timing, source, device.memory_bytes)
    if options.measure:
        print(f"kept in {measure(config, facts, specs, devices, _tell)}", file=sys.stderr)
    if options.engine == "ray":
        return None  # nothing is known of other machines
    known = known_timing(config, specs, costs, devices)
    return KnownSpeed(known[0], f"measured: {known[1]}") if known else None


def cautions(job: Job) -> list[str]:
    """What a user should hear before it trains: that it will be slow, learn little, or end, what
    was found of a network of their own, and what it begins with."""
    rehearsed = job.rehearsal.notes if job.rehearsal else ()
    return [
        *rehearsed,
        *job.initial.notes,
        *_frozen_as_drawn(job.config),
        *_without_room(job),
        *_shares_seen(job),
        *_rounds(job),
        *_crowded_cores(job),
        *_feedback_that_cannot_align(job.config),
        *misplaced(job.config.schedule, job.milestones_for),
        *tight(job),
    ]


def _without_room(job: Job) -> list[str]:
    """Stages that no host has a CPU for."""
    late = [str(stage.stage) for stage in job.plan.stages if host_of(stage.device) == TO_COME]
    if not late:
        return []
    which = f"stages {', '.join(late)} wait" if late[1:] else f"stage {late[0]} waits"
    return [
        f"the hosts of the cluster lend CPUs for {job.plan.n_stages - len(late)} stages of "
        f"{job.config.runtime.threads_per_stage} threads each: {which} for a host that joins; "
        "use fewer --stages to begin at once"
    ]


def _rounds(job: Job) -> list[str]:
    """What replicas change."""
    replicas, every = job.config.parallel.replicas, job.config.runtime.checkpoint_every_steps
    if not replicas:
        return [NONE_CHOSEN] if job.auto_replicas else []
    named = ", ".join(f"block {block} of {n}" for block, n in sorted(replicas.items()))
    notes = [
        f"parallel.replicas: {named} batches a step, so these blocks learn otherwise than one "
        "process each would have them, by fewer steps"
    ]
    rounds = lcm(*replicas.values())
    if every % rounds:
        notes.append(
            f"runtime.checkpoint_every_steps {every}: checkpoints fall where a round of {rounds} "
            "batches is over, so up to that much later"
        )
    return notes


def _shares_seen(job: Job) -> list[str]:
    """What looks at several examples of a batch, and sees those of a share only."""
    config, parallel, members = job.config, job.config.parallel, job.config.parallel.members
    loss, compares = config.loss, parallel.similarity == "share"
    normalises = any(spec.normalises for spec in job.specs)
    looks = {
        "batch norm": normalises and parallel.batch_norm == "share",
        f"loss.name {loss.name}": loss.local in ("sim", "predsim") and compares,
        "loss.unsupervised sim": loss.unsupervised == "sim" and compares,
        "loss.rule Contrastive": loss.rule == "Contrastive",
    }
    if members == 1 or not any(looks.values()):
        return []
    named = " and ".join(name for name, sees in looks.items() if sees)
    n = config.data.batch_size
    return [
        f"parallel.members {members}: {named} see {-(-n // members)} examples, a share of the "
        f"batch of {n}, so this learns otherwise than one process without shares"
    ]


def _crowded_cores(job: Job) -> list[str]:
    """A CPU whose stages have more threads than it has cores: threads that wait for their like,
    which has no core, keep those busy that work."""
    stages = [stage for stage in job.plan.stages if stage.device == "cpu"]
    processes = min(1, len(stages)) if job.single else len(stages)
    threads, cores = job.config.runtime.threads_per_stage, len(os.sched_getaffinity(0))
    if threads == 1 or processes * threads <= cores:
        return []
    return [
        f"runtime.threads_per_stage: {processes} stage{'s' * (processes > 1)} of {threads} threads "
        f"on {cores} core{'s' * (cores > 1)} hold each other up, and may train many times slower, "
        "which no prediction counts; use fewer threads, or fewer stages"
    ]


def _frozen_as_drawn(config: Config) -> list[str]:
    """Blocks that never learn anything; a user's own may have learned elsewhere."""
    model = config.model
    if model.factory is not None or (model.init_from and model.init_from.blocks is None):
        return []
    taken = model.init_from.blocks or () if model.init_from else ()
    drawn = sorted({*model.freeze} - {*taken})
    if not drawn:
        return []
    which = ("blocks {} keep" if drawn[1:] else "block {} keeps").format(", ".join(map(str, drawn)))
    return [
        f"model.freeze: {which} for good the weights that were drawn, which have learned nothing: "
        "model.init_from takes those of a run"
    ]


def _feedback_that_cannot_align(config: Config) -> list[str]:
    """Feedback alignment needs weights that learn to fit the feedback; fixed ones never do."""
    if config.loss.feedback != "random":  # which only fixed classifiers have
        return []
    return [
        "loss.feedback random: a classifier that is never trained can't align with random feedback;"
        " after 4 epochs of 6,000 images 16.5 % errors were measured, 6.2 % with transpose, 7.4 %"
        " with sign, 5.9 % with loss.classifier trained"
    ]


def _tell(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr)
