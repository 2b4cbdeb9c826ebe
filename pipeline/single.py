"""All stages in one process, one after the other, without sockets: the single-GPU fallback, and
the oracle that the pipeline must equal bit for bit.

The same feed, stages and runners as the pipeline's; only what lies between the stages differs.
"""

from __future__ import annotations

import gc
import traceback
from collections import deque
from contextlib import closing
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import torch

from pipeline.device.cuda_graphs import CudaGraphCapture
from pipeline.device.cuda_streams import Incoming
from pipeline.device.device_clock import event_clock
from pipeline.device.meter import meter_of
from pipeline.errors import NonFiniteLossError, PipelineError, StageFailedError, one_line
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_stage, prepare_process
from pipeline.network.from_config import network_specs
from pipeline.rehearsal.fingerprints import initial_fingerprints
from pipeline.run.batch_reader import BatchReader
from pipeline.run.events import Note, StageProgress
from pipeline.run.run import Speedometer
from pipeline.timeline.spans import SpanRecorder
from pipeline.worker.stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.network.specs import BlockSpec
    from pipeline.planning.plan import StagePlan
    from pipeline.run.batch_reader import Arrays
    from pipeline.run.run import Run
    from pipeline.schedule.items import Item
    from pipeline.schedule.reports import PassReport, StageState


class _ToRecorder:
    """Passes on what one stage reports."""

    def __init__(self, stage: int, run: Run) -> None:
        self._stage, self._run = stage, run

    def report(self, report: PassReport) -> None:
        """To the metrics."""
        self._run.report(report)

    def remark(self, text: str) -> None:
        """To the person who watches."""
        self._run.observer(Note(f"stage {self._stage}: {text}"))

    def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
        """To those of the other stages."""
        self._run.recorder.snapshot(self._stage, state, files)


class SingleTrainer:
    """Trains a whole plan in this process, on the device of its first stage."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._device = torch.device(run.plan.stages[0].device)
        prepare_process(self._device, run.config.runtime.threads_per_stage)
        self._incoming = Incoming(self._device)
        self._queue: deque[tuple[int, Item, tuple[Tensor, ...]]] = deque()
        self._feed = run.timeline.feed if run.timeline else SpanRecorder()
        self._spans = [self._recorder() for _ in run.plan.stages]
        self._runners = self._built()

    def run(self) -> None:
        """Train to the end.

        Raises:
            InterruptedRunError: after the checkpoint of an interruption.
            StageFailedError: for whatever else goes wrong in a stage.
        """
        try:
            while (fault := self._trained()) is not None:
                self._begin_again(fault)
        finally:
            self._hand_over(None)
        self._run.check_whole()

    def _begin_again(self, fault: NonFiniteLossError) -> None:
        if self._run.timeline:
            self._run.timeline.cut_short(str(fault))
            self._hand_over(None)
        self._queue.clear()
        self._runners = []
        gc.collect()  # the old stages must be gone before the new ones are built
        self._run = self._run.rewound(fault.batch_id)
        step = self._run.start.position.step
        self._run.observer(Note(f"{fault}: back to step {step} {self._run.bad_batches}"))
        self._runners = self._built()

    def _trained(self) -> NonFiniteLossError | None:
        """Train to the end, or to a fault for which the run is to begin again."""
        try:
            self._train()
        except NonFiniteLossError as error:
            self._run.end_if_interrupted(str(error))
            policy = self._run.config.runtime.on_nonfinite
            if policy == "rollback":
                return error.with_traceback(None)  # which would keep the old stages
            cure = error.CURE if policy == "stop" else ""
            kept = self._run.keep_batch(error.batch_id)
            raise StageFailedError(f"{error}{cure}{kept}") from error
        return None

    def _train(self) -> None:
        run = self._run
        run.recorder.metrics.start_clock()
        speedometer, looked = Speedometer(run, monotonic()), monotonic()
        with closing(BatchReader(run, run.heed_interruption, run.observer)) as reading:
            for item in run.feed:
                self._hand_over(item)
                self._feed.take_up(item, "read")
                arrays = reading.arrays(item)
                if arrays is not None:
                    self._pass_through(item, arrays)
                run.recorder.tell_written()
                run.heed_interruption()
                if run.progress_interval_s and monotonic() - looked > run.progress_interval_s:
                    looked = monotonic()
                    step = self._runners[-1].last_batch_id
                    speedometer.tell(step, looked, [_progress(runner) for runner in self._runners])

    def _built(self) -> list[StageRunner]:
        graphs = CudaGraphCapture(self._device)
        specs = network_specs(self._run.config, self._run.batches.facts)
        return [self._runner(plan, graphs, specs) for plan in self._run.plan.stages]

    def _pass_through(self, item: Item, arrays: Arrays) -> None:
        self._feed.now("copy")
        tensors = tuple(self._incoming.bring(_aligned(array)) for array in arrays)
        self._pass_on(0, self._feed, item, tensors)
        self._feed.now("idle")
        while self._queue:
            stage, item, tensors = self._queue.popleft()
            if stage < len(self._runners):
                self._spans[stage].take_up(item, "compute")
                self._handle(self._runners[stage], item, tensors)

    def _pass_on(
        self, stage: int, spans: SpanRecorder, item: Item, tensors: tuple[Tensor, ...]
    ) -> None:
        """By a queue, so that each stage learns, and frees what it held, before the next begins:
        memory does not grow with depth."""
        if tensors:
            spans.now("send")
        self._queue.append((stage, item, tensors))

    def _handle(self, runner: StageRunner, item: Item, tensors: tuple[Tensor, ...]) -> None:
        try:
            runner.handle(item, tensors)
        except PipelineError:
            raise
        except Exception as error:  # told as a worker's would be
            at = f" at batch {runner.at_batch}" if runner.at_batch else ""
            block = runner.stage.at_work
            where = f"stage {runner.index}" + ("" if block is None else f", block {block}")
            summary = f"{where} failed{at}: {one_line(error)}"
            raise StageFailedError(summary, traceback.format_exc()) from error

    def _recorder(self) -> SpanRecorder:
        timeline = self._run.timeline
        if timeline is None:
            return SpanRecorder()
        return SpanRecorder(timeline.until, device=event_clock(self._device))

    def _hand_over(self, before: Item | None) -> None:
        """What the stages have recorded, once, where that ends before an item; None: with the
        run."""
        timeline = self._run.timeline
        if timeline is not None and self._feed.is_due(before):
            self._feed.stop()
            for stage, spans in enumerate(self._spans):
                timeline.add(stage, spans.taken())

    def _runner(
        self, plan: StagePlan, graphs: CudaGraphCapture, specs: Sequence[BlockSpec]
    ) -> StageRunner:
        run, start = self._run, self._run.start
        stage = build_stage(run.config, run.batches.facts, plan.blocks, self._device, graphs, specs)
        run.check_initial(initial_fingerprints(stage.blocks), f"stage {plan.stage}")
        runner = StageRunner(
            plan.stage,
            stage,
            partial(self._pass_on, plan.stage + 1, self._spans[plan.stage]),
            _ToRecorder(plan.stage, run),
            meter=meter_of(self._device),
            last_batch_id=start.position.step,
            check_until=run.bad_batches.check_until,
            spans=self._spans[plan.stage],
        )
        if start.files:
            stage.load({block: decode_block(bytes(start.files[block])) for block in plan.blocks})
            tallies = [tally for tally in start.tallies if tally.block in plan.blocks]
            runner.resume(run.feed.course.epoch_of(start.position.step), tallies)
        else:
            initial = {b: data for b, data in start.initial.files.items() if b in plan.blocks}
            stage.begin_with({block: decode_block(data) for block, data in initial.items()})
        return runner


def _aligned(array: NDArray[np.generic]) -> Tensor:
    """Of numbers that are computed with a copy that begins where torch begins its tensors: numpy's
    may begin anywhere, where kernels round otherwise than in the slots of a link."""
    tensor = torch.from_numpy(array)
    return tensor.clone() if tensor.is_floating_point() else tensor


def _progress(runner: StageRunner) -> StageProgress:
    tallies = runner.stage.training.glance()
    return StageProgress(
        runner.index, runner.last_batch_id, "working", runner.meter.look(), 0, tallies
    )
