"""Stage k: receive, train, send; obey markers; say how it goes; begin again when told.

link in ──▶ StageRunner ──▶ link out          control ⇄ coordinator
"""

from __future__ import annotations

import gc
import os
import time
from math import prod
from typing import TYPE_CHECKING

import torch

from pipeline.config.sections import build_config
from pipeline.device.cuda_streams import Incoming, Releases, marks_of, side_stream
from pipeline.device.meter import Meter, meter_of
from pipeline.errors import CalledOffError, ProtocolError
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_stage, prepare_process
from pipeline.protocol.life_cycle import LifeCycle, Phase
from pipeline.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    Complete,
    Connect,
    Connected,
    Hello,
    ProgressNow,
    Ready,
    Remark,
    Report,
    Setup,
)
from pipeline.rehearsal.fingerprints import initial_fingerprints
from pipeline.schedule.items import EvaluationBatch, PassedBatch, TrainBatch
from pipeline.system.sources import own_code, running_code
from pipeline.transport.cuda_ipc import Driver
from pipeline.transport.interfaces import LINK_TIMEOUT_S
from pipeline.transport.payloads import ALIGNMENT
from pipeline.worker.kept_snapshots import KeptStates
from pipeline.worker.stage_runner import StageRunner
from pipeline.worker.tensors import arrived_tensor, payloads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from pipeline.network.specs import BlockSpec
    from pipeline.protocol.addresses import LinkAddress
    from pipeline.protocol.credentials import Invitation
    from pipeline.protocol.messages import WorkerMessage
    from pipeline.schedule.items import Item
    from pipeline.schedule.reports import Fingerprint, PassReport, StageState
    from pipeline.transport.interfaces import (
        ControlClient,
        Delivery,
        Endpoints,
        Receiver,
        Said,
        Sender,
    )
    from pipeline.worker.heartbeat import Activity


class Worker:
    """One stage's life, from hello to bye.

    Whenever another stage has been lost, the coordinator sends a new `Setup`: the worker drops
    what it is doing and begins again from the state that it is told, mostly one of its own.
    """

    def __init__(
        self,
        invitation: Invitation,
        control: ControlClient,
        endpoints: Endpoints,
        activity: Activity,
    ) -> None:
        self._stage, self._run, self._control = invitation.stage, invitation.run, control
        self._endpoints, self._activity, self._factory = endpoints, activity, invitation.factory
        self._life = LifeCycle(invitation.stage)
        self._meter = Meter()
        self._kept = KeptStates()
        self._initial: tuple[Fingerprint, ...] = ()
        self._again: tuple[Setup, tuple[memoryview, ...]] | None = None
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self.runner: StageRunner | None = None
        self.on_nonfinite = "stop"
        self.attempt = invitation.attempt
        """How often the run has begun again."""

    def live(self) -> None:
        """Returns after the stop marker; raises what went wrong."""
        self._say(Hello(self._run, PROTOCOL_VERSION, os.getpid(), running_code()))
        while not self._arrived_at_the_end():
            self._let_go()
        self._tell(self._endpoints.rejections.summary())
        self._say(Bye())

    def _arrived_at_the_end(self) -> bool:
        """One attempt, from a state to the stop marker; false where the run begins again."""
        try:
            setup = self._await_setup()
            self.runner = self._build(setup)
            self._join(setup)
            self._serve(self.runner, setup.progress_interval_s)
            self._finish()
        except CalledOffError:
            return False
        return True

    def _let_go(self) -> None:
        """Of the attempt that was called off: its stage must be gone before another is built."""
        for link in (self._receiver, self._sender):
            if link is not None:
                link.close()
        self._receiver = self._sender = self.runner = None
        self._activity.phase = "starting"
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _serve(self, runner: StageRunner, progress_interval_s: float) -> None:
        assert self._receiver, "serving begins with links"
        last_look = time.monotonic()
        while not runner.stopped:
            self._release(self._receiver)
            with self._activity.during("waiting"):
                delivery = self._receiver.receive(LINK_TIMEOUT_S, self._called_off)
            self._check_wanted()
            self._handle(runner, delivery)
            self._tell(self._endpoints.rejections.news())
            if progress_interval_s and time.monotonic() - last_look > progress_interval_s:
                last_look = time.monotonic()
                self._say_progress(runner, self._receiver.queued)

    def _finish(self) -> None:
        """Wait until what was sent last has arrived: it would be lost with the process."""
        with self._activity.during("blocked"):
            if self._sender is not None:
                self._sender.finish()
            while not self._kept.all_complete:
                self._take(self._control.receive(LINK_TIMEOUT_S))
                self._check_wanted()

    def _release(self, receiver: Receiver) -> None:
        """Give back the slots that the device has read. The stage before may wait for one, so
        nobody waits for the next batch alone; nor for the device alone, which would then have
        nothing to do until it is handed the next batch."""
        self._releases.look()
        if self._releases.waiting and not receiver.queued:
            with self._activity.during("working"):
                self._releases.watch(lambda: bool(receiver.queued) or self._called_off())

    # the runner's outlet

    def forward(self, item: Item, tensors: tuple[Tensor, ...]) -> None:
        """Downstream; returns when the next stage has room for it. Only the wait for that is no
        work: a device that hangs shows in the copy."""
        if self._sender is None:
            return
        if tensors:
            with self._meter.waiting(), self._activity.during("blocked"):
                self._sender.wait_for_room()
        self._sender.send(item, payloads(tensors, self._outgoing))

    def report(self, report: PassReport) -> None:
        """Counters of a pass, to the coordinator."""
        self._say(Report(report))

    def remark(self, text: str) -> None:
        """For the person who watches, by way of the coordinator."""
        self._say(Remark(text))

    def _tell(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.remark(text)

    def snapshot(self, state: StageState, files: Sequence[bytes]) -> None:
        """State at a marker, to the coordinator; its bytes leave in the background. They are
        kept here, too, in case the run has to go back to them."""
        self._kept.add(state.step, files)
        self._say(state, files)

    def _say(self, message: WorkerMessage, attached: Sequence[bytes | memoryview] = ()) -> None:
        self._life.on(message)
        self._control.send(message, attached)

    def _await_setup(self) -> Setup:
        """What to be; block files that came with it are kept."""
        while self._again is None:
            self._take(self._control.receive(LINK_TIMEOUT_S))
        (setup, attached), self._again = self._again, None
        self.attempt = setup.attempt
        if setup.resumed and not setup.kept:
            self._kept.add(setup.last_batch_id, attached)
        self._kept.drop_after(setup.last_batch_id)
        return setup

    def _await_connect(self) -> LinkAddress | None:
        said = self._control.receive(LINK_TIMEOUT_S)
        self._take(said)
        if not isinstance(said.message, Connect):
            raise CalledOffError("the run begins again")
        return said.message.address

    def _check_wanted(self) -> None:
        if self._called_off():
            raise CalledOffError("the run begins again")

    def _called_off(self) -> bool:
        """Whether the run begins again; looks at what the coordinator has said meanwhile."""
        while self._again is None and self._control.waiting and self._life.phase is Phase.RUNNING:
            self._take(self._control.receive(0.0))
        return self._again is not None

    def _take(self, said: Said) -> None:
        self._life.on(said.message)
        if isinstance(said.message, Complete):
            self._kept.drop_before(said.message.step)
        elif isinstance(said.message, Setup):
            self._again = said.message, said.attached

    def _build(self, setup: Setup) -> StageRunner:
        config = build_config(setup.config, "the coordinator's config")
        self._check_factory(config.model.factory)
        self.on_nonfinite = config.runtime.on_nonfinite
        self._device = torch.device(setup.device)
        prepare_process(self._device, config.runtime.threads_per_stage)
        self._prepare_links()
        stage = build_stage(config, setup.facts, setup.blocks, self._device)
        self._initial = initial_fingerprints(stage.blocks)
        self._meter, last = meter_of(self._device), setup.last_batch_id
        runner = StageRunner(
            self._stage,
            stage,
            self,
            meter=self._meter,
            last_batch_id=last,
            check_until=setup.check_until,
        )
        if setup.resumed:
            files = zip(setup.blocks, self._kept.at(last), strict=True)
            stage.load({block: decode_block(bytes(data)) for block, data in files})
            runner.resume(setup.epoch, setup.tallies)
        self._slot_bytes = _slot_bytes(stage.blocks[0].spec, config.data.batch_size)
        return runner

    def _prepare_links(self) -> None:
        """For tensors that lie on the device."""
        self._incoming, self._outgoing = Incoming(self._device), side_stream(self._device)
        self._releases = Releases(marks_of(self._device))
        if self._device.type == "cuda":
            self._endpoints.use_cuda(Driver())

    def _check_factory(self, named: str | None) -> None:
        """What is to be imported must have been said when the process started: a message can't
        name code to be run (invariant 10)."""
        if named != self._factory:
            raise ProtocolError(
                f"stage {self._stage}: told to use model.factory {named}, started with "
                f"{self._factory}"
            )

    def _join(self, setup: Setup) -> None:
        bind, slots = setup.bind, setup.max_in_flight
        self._receiver, mine = self._endpoints.listen(bind, slots, self._slot_bytes)
        self._say(Ready(setup.attempt, mine, own_code(self._factory), self._initial))
        address, carrier = self._await_connect(), None
        if address is not None:
            self._sender, carrier = self._endpoints.connect(address, self._called_off)
        self._say(Connected(carrier))

    def _handle(self, runner: StageRunner, delivery: Delivery) -> None:
        with self._activity.during("working"):
            tensors = tuple(arrived_tensor(tensor, self._incoming) for tensor in delivery.tensors)
            if tensors:
                # labels travel on from here after the slot may have been filled again
                tensors = (tensors[0], tensors[1].clone())
            runner.handle(delivery.item, tensors, in_slot=delivery.on_device)
            if self._sender is not None:
                self._sender.flush()
            self._releases.after(delivery.release)
        self._activity.handled += 1
        if isinstance(delivery.item, TrainBatch | EvaluationBatch | PassedBatch):
            self._activity.batch_id = runner.last_batch_id

    def _say_progress(self, runner: StageRunner, queued: int) -> None:
        tallies = runner.stage.training.glance()
        self._say(ProgressNow(runner.last_batch_id, self._meter.look(), queued, tallies))


def _slot_bytes(first: BlockSpec, batch_size: int) -> int:
    """Room for the largest batch that arrives: float32 inputs (or uint8 images), int64 labels."""
    item = 1 if first.index == 0 else 4
    return batch_size * (prod(first.in_shape) * item + 8) + 2 * ALIGNMENT
