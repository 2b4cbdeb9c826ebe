"""All stages in one process, one after the other, without sockets: the single-GPU fallback, and
the oracle that the pipeline must equal bit for bit.

The same feed, stages and runners as the pipeline's; only what lies between the stages differs.
Members of a team, each of which holds the network, take turns in threads.
"""

from __future__ import annotations

import gc
import traceback
from collections import deque
from concurrent.futures import wait
from contextlib import closing, nullcontext
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import torch

from pipeline.device.cuda_graphs import CudaGraphCapture
from pipeline.device.cuda_streams import Incoming
from pipeline.device.device_clock import event_clock
from pipeline.device.meter import meter_of
from pipeline.errors import (
    CalledOffError,
    NonFiniteLossError,
    PipelineError,
    StageFailedError,
    one_line,
)
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_stage, prepare_process
from pipeline.learning.exchange import Turns
from pipeline.network.from_config import network_specs
from pipeline.rehearsal.fingerprints import initial_fingerprints
from pipeline.run.batch_reader import BatchReader
from pipeline.run.events import Note, StageProgress
from pipeline.run.run import Speedometer
from pipeline.system.daemon_pool import DaemonPool
from pipeline.timeline.spans import SpanRecorder
from pipeline.worker.stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.network.specs import BlockSpec
    from pipeline.planning.plan import StagePlan
    from pipeline.run.batch_reader import Arrays
    from pipeline.run.run import Run
    from pipeline.schedule.items import Item
    from pipeline.schedule.reports import PassReport, StageState
    from pipeline.worker.stage_runner import Upstream

    Forward: TypeAlias = Callable[[Item, tuple[Tensor, ...]], None]


class _ToRecorder:
    """Passes on what one stage reports."""

    def __init__(self, stage: int, run: Run) -> None:
        self._stage, self._run = stage, run

    def report(self, report: PassReport) -> None:
        """Pass on a stage's report of an epoch, for the metrics."""
        self._run.report(report)

    def remark(self, text: str) -> None:
        """To the person who watches."""
        self._run.observer(Note(f"{self._run.plan.name(self._stage)}: {text}"))

    def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
        """To those of the other stages."""
        self._run.recorder.snapshot(self._stage, state, files)


class _Later:
    """Keeps what a member reports in its own thread until the main thread passes it on."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._said: list[Callable[[], None]] = []

    def report(self, report: PassReport) -> None:
        """Keep a stage's report of an epoch until it may be passed on."""
        self._said.append(partial(self._upstream.report, report))

    def remark(self, text: str) -> None:
        """To the person who watches."""
        self._said.append(partial(self._upstream.remark, text))

    def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
        """To those of the other members."""
        self._said.append(partial(self._upstream.snapshot, state, files))

    def pass_on(self) -> None:
        """All that was said since."""
        said, self._said = self._said, []
        for say in said:
            say()


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
        self._turns: Turns | None = None
        self._rounds: dict[tuple[int, ...], Turns] = {}
        """Of replicas, by their blocks: these need no threads, since what one waits for comes
        earlier in the queue."""
        self._said: list[_Later] = []
        members = run.plan.members if run.plan.members > 1 else 0
        self._threads = [DaemonPool(1, f"member {member}") for member in range(members)]
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
            for thread in self._threads:
                thread.shutdown()
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
        if self._run.plan.members > 1:
            self._turns, self._said = Turns(self._run.plan.members), []
        self._rounds = {
            plan.blocks: Turns(plan.members) for plan in self._run.plan.stages if plan.in_rounds
        }
        return [self._runner(plan, graphs, specs) for plan in self._run.plan.stages]

    def _pass_through(self, item: Item, arrays: Arrays) -> None:
        self._feed.now("copy")
        tensors = tuple(self._incoming.bring(_aligned(array)) for array in arrays)
        if self._turns is not None:
            self._take_turns(self._turns, item, tensors)
            return
        self._pass_on(0, self._feed, item, tensors)
        self._feed.now("idle")
        while self._queue:
            stage, item, tensors = self._queue.popleft()
            if stage < len(self._runners):
                self._spans[stage].take_up(item, "compute")
                turns = self._rounds.get(self._run.plan.stages[stage].blocks, nullcontext())
                with turns:
                    self._handle(self._runners[stage], item, tensors)

    def _pass_on(
        self, stage: int, spans: SpanRecorder, item: Item, tensors: tuple[Tensor, ...]
    ) -> None:
        """By a queue, so that each stage learns, and frees what it held, before the next begins:
        memory does not grow with depth."""
        if tensors:
            spans.now("send")
        self._queue.append((stage, item, tensors))

    def _take_turns(self, turns: Turns, item: Item, tensors: tuple[Tensor, ...]) -> None:
        """All members handle an item, each in its own thread."""

        def handle(runner: StageRunner) -> None:
            torch.set_num_threads(self._run.config.runtime.threads_per_stage)
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            # backward passes in this thread, too: one for all would wait for itself
            with turns, torch.autograd.set_multithreading_enabled(False):
                self._spans[runner.index].take_up(item, "compute")
                try:
                    self._handle(runner, item, tensors)
                except BaseException:
                    turns.call_off()
                    raise

        jobs = [
            thread.submit(handle, runner)
            for thread, runner in zip(self._threads, self._runners, strict=True)
        ]
        wait(jobs)
        for said in self._said:
            said.pass_on()
        errors = [error for job in jobs if (error := job.exception())]
        errors.sort(key=lambda error: isinstance(error, CalledOffError))
        if errors:
            raise errors[0]

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
        exchange = member = None
        upstream: Upstream = _ToRecorder(plan.stage, run)
        forward: Forward = partial(self._pass_on, plan.stage + 1, self._spans[plan.stage])
        if plan.in_rounds:
            exchange, member = self._rounds[plan.blocks].exchange(plan.member), plan.member
        elif self._turns is not None:
            exchange, member = self._turns.exchange(plan.member), plan.member
            upstream, forward = _Later(upstream), _nowhere
            self._said.append(upstream)
        stage = build_stage(
            *(run.config, run.batches.facts, plan.blocks, self._device, graphs, specs, exchange),
            in_rounds=plan.in_rounds,
        )
        run.check_initial(initial_fingerprints(stage.blocks), run.plan.name(plan.stage))
        runner = StageRunner(
            plan.stage,
            stage,
            forward,
            upstream,
            meter=meter_of(self._device),
            member=member,
            rounds=plan.members if plan.in_rounds else 1,
            last_batch_id=start.position.step,
            check_until=run.bad_batches.check_until,
            spans=self._spans[plan.stage],
        )
        if start.files:
            stage.load({block: decode_block(bytes(start.files[block])) for block in plan.blocks})
            tallies = start.tallies_of(plan.blocks, plan.place)
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


def _nowhere(item: Item, tensors: tuple[Tensor, ...]) -> None:
    """Members are all given the item itself."""


def _progress(runner: StageRunner) -> StageProgress:
    tallies = runner.stage.training.glance()
    return StageProgress(
        runner.index, runner.last_batch_id, "working", runner.meter.look(), 0, tallies
    )
