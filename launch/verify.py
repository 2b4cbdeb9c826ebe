"""pipeline-verify: do N processes equal one, bit for bit? For any config, step by step.

Trains a few steps in single mode and as a pipeline, with a snapshot after every step, and
compares a fingerprint of every tensor: weights, heads, statistics and optimizer state.

With --locality: does each block, alone in a new process, become what it has become among others?
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import click

from launch.command import PathType, command, run_command
from launch.completion import complete_setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from launch.job import Job
    from pipeline.coordinator.engine import Engine
    from pipeline.errors import Option
    from pipeline.storage.checkpoint import RunState


_STEPS, _STEPS_OF_EACH = 20, 10


@dataclass(slots=True)
class DigestStore:
    """Keeps the fingerprint of every tensor of every snapshot, by (step, block, tensor)."""

    digests: dict[tuple[int, int, str], str] = field(default_factory=dict)

    def write(self, state: RunState) -> Path:
        """Digest a snapshot instead of writing it."""
        from pipeline.learning.block_file import decode_block
        from pipeline.rehearsal.fingerprints import fingerprints

        step = state.position.step
        states = {block: decode_block(bytes(data)) for block, data in state.files.items()}
        for found in fingerprints(states):
            self.digests[step, found.block, found.tensor] = found.digest
        return Path(f"step-{step:08d}")


def first_difference(
    one: Mapping[tuple[int, int, str], str], other: Mapping[tuple[int, int, str], str]
) -> tuple[int, int, str] | None:
    """The earliest (step, block, tensor) whose digests differ or which only one side has."""
    differing = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
    return min(differing, default=None)


def digests_of(job: Job, steps: int, engine: Engine | None) -> dict[tuple[int, int, str], str]:
    """Train `steps` steps of a job; engine None is single mode."""
    from launch.engines.interrupts import interrupts_noted
    from launch.training import carry_out, make_run
    from pipeline.data.batches import load_batches
    from pipeline.errors import InterruptedRunError
    from pipeline.run.events import ignore
    from pipeline.schedule.feed import course_of
    from pipeline.storage.background_writer import BackgroundWriter
    from pipeline.storage.folder import Folder

    store = DigestStore()
    batches = load_batches(job.config.data, job.config.runtime.seed, own=job.own_data)
    course = course_of(job.config, job.specs, batches.steps_per_epoch, batches.evaluation_batches)
    if course.learners:  # each of them must learn in these few steps
        share = min(course.steps_per_epoch, ceil(steps / len(course.learners)))
        course = replace(course, epochs=1, steps_per_epoch=share, milestones=(), warmup_epochs=0)
    course = replace(course, checkpoint_every_steps=1, last_step=steps)
    writer = BackgroundWriter(store, every=True)
    with _folder() as path, Folder.open(path) as folder, interrupts_noted() as interrupted:
        run = make_run(job, folder, job.beginning, batches, course, writer, ignore)
        try:
            carry_out(replace(run, interrupted=interrupted), engine)
        except InterruptedRunError:  # with nothing to go on from
            raise KeyboardInterrupt from None
        if interrupted():  # too late to end this run, not to leave out the next
            raise KeyboardInterrupt
    return store.digests


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder; it stays where a batch was left in it for inspection."""
    folder = Path(mkdtemp(prefix="pipeline-verify-"))
    try:
        yield folder
    finally:
        if not any(folder.glob("batch-*")):
            rmtree(folder, ignore_errors=True)


def verify(job: Job, steps: int) -> int:
    """Print whether single mode and the pipeline agree; 0 if they do, 1 if not."""
    from launch.run_job import engine_for

    with engine_for(single=False) as engine:
        pipeline = digests_of(job, steps, engine)
    single = digests_of(job, steps, None)
    difference = first_difference(single, pipeline)
    stages, tensors = job.plan.n_stages, len({key[1:] for key in single})
    if difference is None:
        done = max(step for step, _, _ in single)
        print(f"equal: single mode and {stages} stages, {tensors} tensors, each of {done} steps")
        return 0
    step, block, name = difference
    print(f"different: block {block}, tensor {name}, first at step {step} ({stages} stages)")
    return 1


def verify_locality(job: Job, steps: int) -> int:
    """Print whether each block learns from nothing but what arrives; 0 if they do, 1 if not."""
    from launch.display.format import size_text
    from pipeline.locality.proof import ask, carry_out, judge, tape_bytes

    config, specs, facts = job.config, job.specs, job.facts
    with _folder() as folder:
        device = job.plan.stages[0].device
        initial = job.initial.files
        ask(config, facts, specs, device=device, steps=steps, folder=folder, initial=initial)
        size = size_text(tape_bytes(config, facts, specs, steps))
        print(f"recording what arrives at {len(specs)} blocks: {size} in {folder}", flush=True)
        carry_out([folder])
        found = judge(config, specs, folder)
    for line in found.findings:
        print(line)
    if found.findings:
        print('not local: see "Proof of locality" in docs/rules.md')
        return 1
    print(
        f"local: {found.blocks} blocks retrained alone from {found.batches} batches, bit for bit "
        "equal"
    )
    return 0


@command
@click.argument("config", metavar="CONFIG.yaml", type=PathType())
@click.option("--stages", type=int, metavar="N", help="Stages of the pipeline to compare with.")
@click.option("--gpus", metavar="SPEC", help="Devices, as for pipeline-launch.")
@click.option(
    "--locality",
    is_flag=True,
    help="Check instead that each block learns from nothing but what arrives at it: retrain each "
    "one alone, in a new process, from what it received.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="K",
    help="How many training steps to compare.  [default: 20; 10 with --locality]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_setting,
    help="Override a value.",
)
def main(
    config: Path,
    stages: int | None,
    gpus: str | None,
    locality: bool,
    steps: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Check that training CONFIG in N processes equals one process, bit for bit, or, with
    --locality, that each block learns only from what arrives at it.

    \b
    Exit status: 0 equal, or local; 1 different (block, tensor and step are printed), or a failed
    run; 2 wrong usage or config; 130 interrupted.
    """

    def body() -> int:
        from launch.display.streams import wait_for_no_reader
        from launch.job import Options
        from launch.plan.checks import make_job
        from pipeline.errors import SINGLE, ConfigError, as_option, worded

        def word(option: Option) -> str:
            return f"pipeline-launch {as_option(option)}" if option == SINGLE else as_option(option)

        wait_for_no_reader()
        options = Options(config, stages=stages, gpus=gpus, overrides=overrides, single=locality)
        if not locality:
            with worded(word):
                job = make_job(options)
            return verify(job, steps or _STEPS)
        if stages is not None:
            raise ConfigError("--locality trains each block in a process of its own: no --stages")
        return verify_locality(make_job(options), steps or _STEPS_OF_EACH)

    run_command(body)


if __name__ == "__main__":
    main()
