"""Stage k as a process: receive, train, send; obey markers; say how it goes.

link in ──▶ StageRunner ──▶ link out          control ⇄ coordinator
                                              heartbeat thread ──▶ coordinator
"""

from __future__ import annotations

import json
import os
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from threading import Event, Thread, get_ident
from typing import TYPE_CHECKING, TypeVar

import torch

from pipeline.assembly import build_stage, prepare_process
from pipeline.blockfile import decode_block
from pipeline.config import build_config
from pipeline.errors import ProtocolError, one_line
from pipeline.inband import EvaluationBatch, PassedBatch, TrainBatch
from pipeline.messages import (
    PROTOCOL_VERSION,
    Bye,
    Connect,
    Connected,
    Failure,
    Heartbeat,
    Hello,
    ProgressNow,
    Ready,
    Report,
    Setup,
    State,
)
from pipeline.meter import Meter, peak_reader
from pipeline.protocol import LifeCycle
from pipeline.runner import StageRunner
from pipeline.tensors import TensorPayload, arrived_tensor
from pipeline.transport import (
    ZmqControlClient,
    ZmqReceiver,
    ZmqSender,
    close_context,
    make_context,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from pipeline.inband import Item
    from pipeline.links import ControlClient, Delivery, Receiver, Sender
    from pipeline.messages import LinkAddress, WorkerMessage
    from pipeline.records import PassReport, StageSnapshot
    from pipeline.specs import BlockSpec

HEARTBEAT_INTERVAL_S = 0.5
PATIENCE_S = 3600.0  # the coordinator ends a stalled run long before; this ends an orphan's wait

ControlMessage = TypeVar("ControlMessage", Setup, Connect)


@dataclass(slots=True)
class Activity:
    """What the worker is doing; written by its main thread, read by the heartbeat's.

    `phase`: starting; waiting (for input); working; blocked (the next stage has no room).
    """

    handled: int = 0
    batch_id: int = 0
    phase: str = "starting"

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Be in `phase` for a while."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


class Endpoints:
    """How a worker reaches its neighbours; replaced by in-memory links in tests."""

    def __init__(self, run: str, stage: int) -> None:
        self.context = make_context()
        self._run, self._stage = run, stage

    def listen(self, bind: str, slots: int, slot_bytes: int) -> tuple[Receiver, LinkAddress]:
        """The link from the stage before."""
        before = f"stage {self._stage - 1}" if self._stage else "the coordinator"
        receiver = ZmqReceiver(
            self.context,
            bind,
            self._run,
            names=(f"stage {self._stage}", before),
            slots=slots,
            slot_bytes=slot_bytes,
        )
        return receiver, receiver.address

    def connect(self, address: LinkAddress) -> tuple[Sender, str]:
        """The link to the stage after, and what carries its tensors."""
        names = (f"stage {self._stage}", f"stage {self._stage + 1}")
        sender = ZmqSender(self.context, address, self._run, names=names, timeout_s=PATIENCE_S)
        return sender, sender.carrier


class Worker:
    """One stage's life, from hello to bye."""

    def __init__(
        self,
        stage: int,
        run: str,
        control: ControlClient,
        endpoints: Endpoints,
        activity: Activity,
        factory: str | None = None,
    ) -> None:
        self._stage, self._run, self._control = stage, run, control
        self._endpoints, self._activity, self._factory = endpoints, activity, factory
        self._life = LifeCycle(stage)
        self._meter = Meter()
        self._sender: Sender | None = None
        self.runner: StageRunner | None = None

    def live(self) -> None:
        """Returns after the stop marker; raises what went wrong."""
        self._say(Hello(self._run, PROTOCOL_VERSION, os.getpid()))
        setup = self._hear(Setup)
        self.runner = self._build(setup)
        receiver = self._join(setup)
        last_look = time.monotonic()
        while not self.runner.stopped:
            with self._activity.during("waiting"):
                delivery = receiver.receive(PATIENCE_S)
            self._handle(self.runner, delivery)
            if (
                setup.progress_interval_s
                and time.monotonic() - last_look > setup.progress_interval_s
            ):
                last_look = time.monotonic()
                self._say_progress(self.runner, receiver.queued)
        self._say(Bye())

    # the runner's outlet

    def forward(self, item: Item, tensors: tuple[Tensor, ...]) -> None:
        """Downstream; returns when the next stage has room for it."""
        if self._sender is not None:
            with self._meter.waiting(), self._activity.during("blocked"):
                self._sender.send(item, [TensorPayload(tensor) for tensor in tensors])

    def report(self, report: PassReport) -> None:
        """Counters of a pass, to the coordinator."""
        self._say(Report(report))

    def snapshot(self, snapshot: StageSnapshot) -> None:
        """State at a marker, to the coordinator; its bytes leave in the background."""
        state = State(
            snapshot.step,
            snapshot.epoch,
            snapshot.epoch_reported,
            snapshot.blocks,
            snapshot.tallies,
        )
        self._say(state, snapshot.files)

    def _say(self, message: WorkerMessage, attached: Sequence[bytes | memoryview] = ()) -> None:
        self._life.on(message)
        self._control.send(message, attached)

    def _hear(self, kind: type[ControlMessage]) -> ControlMessage:
        said = self._control.receive(PATIENCE_S)
        self._life.on(said.message)
        if not isinstance(said.message, kind):
            raise ProtocolError(f"stage {self._stage}: expected {kind.__name__}")
        self._attached = said.attached
        return said.message

    def _build(self, setup: Setup) -> StageRunner:
        config = build_config(json.loads(setup.config), "the coordinator's config")
        self._check_factory(config.model.factory)
        self._device = torch.device(setup.device)
        prepare_process(self._device, config.runtime.threads_per_stage)
        stage = build_stage(config, setup.facts, setup.blocks, self._device)
        self._meter = Meter(peak_bytes=peak_reader(self._device))
        runner = StageRunner(
            self._stage, stage, self, meter=self._meter, last_batch_id=setup.last_batch_id
        )
        if setup.resumed:
            files = zip(setup.blocks, self._attached, strict=True)
            stage.load({block: decode_block(bytes(data)) for block, data in files})
            runner.resume(setup.epoch, setup.tallies)
        self._slot_bytes = _slot_bytes(stage.blocks[0].spec, config.data.batch_size)
        return runner

    def _check_factory(self, named: str | None) -> None:
        """What is to be imported must have been said when the process started: a message can't
        name code to be run (invariant 10)."""
        if named != self._factory:
            raise ProtocolError(
                f"stage {self._stage}: told to use model.factory {named}, started with "
                f"{self._factory}"
            )

    def _join(self, setup: Setup) -> Receiver:
        receiver, address = self._endpoints.listen(
            setup.bind, setup.max_in_flight, self._slot_bytes
        )
        self._say(Ready(address))
        connect = self._hear(Connect)
        carrier = "none"
        if connect.address is not None:
            self._sender, carrier = self._endpoints.connect(connect.address)
        self._say(Connected(carrier))
        return receiver

    def _handle(self, runner: StageRunner, delivery: Delivery) -> None:
        with self._activity.during("working"):
            tensors = tuple(arrived_tensor(tensor, self._device) for tensor in delivery.tensors)
            if tensors:
                # labels travel on from here after the slot may have been filled again
                tensors = (tensors[0], tensors[1].clone())
            runner.handle(delivery.item, tensors)
            delivery.release()
        self._activity.handled += 1
        if isinstance(delivery.item, TrainBatch | EvaluationBatch | PassedBatch):
            self._activity.batch_id = runner.last_batch_id

    def _say_progress(self, runner: StageRunner, queued: int) -> None:
        tallies = runner.stage.training.read()
        self._say(ProgressNow(runner.last_batch_id, self._meter.look(), queued, tallies))


def run_worker(
    stage: int,
    run: str,
    control_endpoint: str,
    launcher_gone: Callable[[], bool],
    factory: str | None = None,
) -> int:
    """The whole process of a stage: 0 after a stop marker, 1 after an error, which is reported.

    Args:
        factory: the `model.factory` that may be imported, if any.
    """
    endpoints, activity, done = Endpoints(run, stage), Activity(), Event()
    control = ZmqControlClient(endpoints.context, control_endpoint, stage)
    cpu_clock = time.pthread_getcpuclockid(get_ident())
    heart = Thread(
        target=_beat,
        args=(endpoints, control_endpoint, stage, activity, done, launcher_gone, cpu_clock),
        daemon=True,
    )
    heart.start()
    worker = Worker(stage, run, control, endpoints, activity, factory)
    try:
        worker.live()
    except Exception as error:  # the process boundary: errors cross it as data
        control.send(_failure(error, worker))
        return 1
    finally:
        done.set()
        heart.join()
        close_context(endpoints.context)
    return 0


def _beat(
    endpoints: Endpoints,
    control_endpoint: str,
    stage: int,
    activity: Activity,
    done: Event,
    launcher_gone: Callable[[], bool],
    cpu_clock: int,
) -> None:
    """Say that the process lives; end it where nobody is left to care."""
    socket = ZmqControlClient(endpoints.context, control_endpoint, stage, role="heartbeat")
    while not done.wait(HEARTBEAT_INTERVAL_S):
        if launcher_gone():
            os._exit(1)  # the main thread may hang; the kernel frees the ring
        cpu_s = time.clock_gettime(cpu_clock)
        socket.send(Heartbeat(activity.handled, activity.batch_id, activity.phase, cpu_s))
    socket.close()


def _failure(error: Exception, worker: Worker) -> Failure:
    runner = worker.runner
    return Failure(
        summary=one_line(error),
        block=runner.stage.at_work if runner else None,
        batch_id=runner.last_batch_id + 1 if runner else 0,
        traceback="".join(traceback.format_exception(error))[-20_000:],
    )


def _slot_bytes(first: BlockSpec, batch_size: int) -> int:
    """Room for the largest batch that arrives: float32 inputs (or uint8 images), int64 labels."""
    item = 1 if first.index == 0 else 4
    return batch_size * (prod(first.in_shape) * item + 8) + 2 * 64
