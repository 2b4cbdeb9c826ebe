"""The two halves of a proof, each in a process of its own.

    record     the whole network, unit after unit, as in single mode     ──▶ tapes, traces
               t1 t2 t3 ( test ) t4 t5 t6 ( test )
    retrain    one unit alone, from its tape                             ──▶ a trace
               t1 t2 t3          t4 t5 t6

A unit is a block, a group of blocks that learn together, or blocks that a residual connection
joins. Nothing that a test does may matter in training, so units that are retrained see none.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import torch

from pipeline.data.batches import load_batches
from pipeline.device.cuda_graphs import CudaGraphCapture
from pipeline.errors import PipelineError, one_line
from pipeline.kernels.memory_layout import as_it_arrives, is_channels_last
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_blocks, build_stage, prepare_process, stage_of
from pipeline.locality.trace import Fault, Step, Trace
from pipeline.network.from_config import network_specs
from pipeline.rehearsal.fingerprints import Sent, fingerprints
from pipeline.schedule.feed import Feed, Position, course_of
from pipeline.schedule.items import EvaluationBatch, TrainBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.config.sections import Config
    from pipeline.data.batches import Batches
    from pipeline.data.facts import DataFacts
    from pipeline.device.cuda_graphs import Tensors
    from pipeline.learning.stage import Stage
    from pipeline.locality.tape import Tape
    from pipeline.schedule.feed import Course
    from pipeline.schedule.items import Item


class TracedUnit:
    """A unit at work, of which a trace is kept."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.at_batch = 0
        self.fault: Fault | None = None
        """What has ended its work early."""
        self._initial, self._steps = fingerprints(stage.state()), list[Step]()
        self._tested = False

    def train(self, item: TrainBatch, tensors: Tensors) -> Tensors:
        """One step; gives what arrives at the next unit, nothing from the last one.

        Raises:
            ConfigError: where it changes what it has passed on.
        """
        self.at_batch = item.batch_id
        x, targets, *carried = tensors
        sent = Sent(targets, _as_delivered)
        self.stage.train(
            *(x, targets, *carried),
            batch_id=item.batch_id,
            lr=item.lr,
            send=sent.send,
            learner=item.learner,
        )
        self.stage.settle()
        state = fingerprints(self.stage.state())
        self._steps.append(Step(item.batch_id, self._tested, sent.digests, state))
        self._tested = False
        sent.check_unchanged(self.stage)
        return sent.tensors

    def evaluate(self, item: EvaluationBatch, tensors: Tensors) -> Tensors:
        """A batch of a test, as `train`."""
        x, targets, *carried = tensors
        sent: list[Tensor] = []
        self.stage.evaluate(
            *(x, targets, *carried),
            send=lambda passed, *onwards: sent.extend((passed, targets, *onwards)),
            batch_id=item.batch_id,
            learner=item.learner,
        )
        self._tested = True
        return tuple(map(_as_delivered, sent))

    def trace(self) -> Trace:
        """Of all that it has done."""
        final = fingerprints(self.stage.state())
        return Trace(self._initial, tuple(self._steps), final, self.fault)


def _as_delivered(tensor: Tensor) -> Tensor:
    """As it would lie in the memory of another process."""
    return tensor if is_channels_last(tensor) else as_it_arrives(tensor)


def record(
    config: Config,
    device: torch.device,
    steps: int,
    units: Sequence[Sequence[int]],
    tapes: Sequence[Tape],
    initial: Mapping[int, bytes],
) -> tuple[list[Trace], DataFacts]:
    """Train the whole network, and write a tape of what each unit receives.

    Args:
        steps: of training; in greedy training, where each block has to learn, it may take more.
        units: the blocks of each, by index; all blocks of the network.
        initial: what blocks begin with that another run has learned, as block files have it.

    Returns:
        The traces of all units, and what is known of the data now that they were read. What goes
        wrong in a unit is the fault of its trace, and ends all of them.
    """
    prepare_process(device, config.runtime.threads_per_stage)
    batches = load_batches(config.data, config.runtime.seed)
    specs = network_specs(config, batches.facts)
    blocks = build_blocks(config, specs, range(len(specs)), device)
    graphs = CudaGraphCapture(device)
    stages = [
        stage_of(config, batches.facts, [blocks[at] for at in unit], device, graphs)
        for unit in units
    ]
    traced = [_traced(stage, initial) for stage in stages]
    whole = course_of(config, specs, batches.steps_per_epoch, batches.evaluation_batches)
    for item in Feed(shortened(whole, steps), Position()):
        arrays = _arrays(batches, item)
        tensors = tuple(torch.from_numpy(array).clone().to(device) for array in arrays)
        _pass_through(item, tensors, list(zip(traced, tapes, strict=True)))
        if any(unit.fault for unit in traced):
            break
    return [unit.trace() for unit in traced], batches.facts


def _traced(stage: Stage, initial: Mapping[int, bytes]) -> TracedUnit:
    stage.begin_with({block: decode_block(data) for block, data in initial.items()})
    return TracedUnit(stage)


def _pass_through(item: Item, tensors: Tensors, units: Sequence[tuple[TracedUnit, Tape]]) -> None:
    """From unit to unit, as far as it goes. Markers ask for nothing here."""
    for unit, tape in units:
        if isinstance(item, TrainBatch):
            tape.add(item, tensors)
        try:
            if isinstance(item, TrainBatch):
                tensors = unit.train(item, tensors)
            elif isinstance(item, EvaluationBatch):
                tensors = unit.evaluate(item, tensors)
        except (Exception, SystemExit) as error:  # whatever a user's own code raises
            unit.fault = fault_of(error, unit)
            return
        if not tensors:
            return


def retrain(
    config: Config,
    facts: DataFacts,
    device: torch.device,
    blocks: Sequence[int],
    tape: Tape,
    initial: Mapping[int, bytes],
) -> Trace:
    """Train a unit alone, in a process that trains no other."""
    prepare_process(device, config.runtime.threads_per_stage)
    torch.default_generator.manual_seed(os.getpid())  # what it would draw belongs to the process
    unit = None
    try:
        unit = _traced(build_stage(config, facts, blocks, device), initial)
        for item, tensors in tape.read(device):
            unit.train(item, tensors)
    except (Exception, SystemExit) as error:  # whatever a user's own code raises
        if unit is None:
            return Trace(fault=fault_of(error))
        unit.fault = fault_of(error, unit)
    return unit.trace()


def fault_of(error: BaseException, unit: TracedUnit | None = None) -> Fault:
    """An error as data. `unit`: at work when it was raised."""
    text = one_line(error) if isinstance(error, Exception) else repr(error)
    known = isinstance(error, PipelineError)
    trail = "" if known else "".join(traceback.format_exception(error))
    if unit is None:
        return Fault(text, traceback=trail)
    at = unit.stage.at_work
    last = unit.stage.blocks[-1].spec.index
    return Fault(text, last if at is None else at, unit.at_batch, trail)


def shortened(course: Course, steps: int) -> Course:
    """Of the same network, `steps` long, with a test of one batch half way and in the end; in
    greedy training, for each block that learns."""
    half = ceil(steps / (2 * max(1, len(course.learners))))
    return replace(
        course,
        epochs=2,
        steps_per_epoch=half,
        evaluation_batches=1,
        eval_every_epochs=1,
        eval_before_training=False,
        checkpoint_every_steps=0,
        warmup_epochs=0,
        last_step=None if course.learners else steps,
    )


def _arrays(batches: Batches, item: Item) -> Iterator[NDArray[np.generic]]:
    """Those that the run itself would have for its first batches; none of a marker."""
    if isinstance(item, TrainBatch):
        epoch, index = divmod(item.batch_id - 1, batches.steps_per_epoch)
        yield from batches.train(epoch + 1, index)
    elif isinstance(item, EvaluationBatch):
        yield from batches.evaluation(item.batch_id - 1)
