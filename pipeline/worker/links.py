"""The links of a stage: from the stage before it, and to the one after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.transport.interfaces import LINK_TIMEOUT_S
from pipeline.transport.payloads import timed
from pipeline.worker.tensors import DeviceQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from pipeline.device.meter import Meter
    from pipeline.protocol.addresses import Carrier
    from pipeline.protocol.messages import Connect, Setup
    from pipeline.schedule.items import Item
    from pipeline.timeline.spans import SpanRecorder
    from pipeline.transport.interfaces import Delivery, Endpoints, Sender
    from pipeline.worker.heartbeat import Activity


class StageLinks:
    """The links of a stage for one attempt of the run: it listens at `address` for the stage
    before it, and sends to the one after it, unless it is the last.

    All waits raise TimedOutError, and CalledOffError where the run begins again.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        setup: Setup,
        slot_bytes: int,
        device: torch.device,
        *,
        meter: Meter,
        activity: Activity,
        spans: SpanRecorder,
        called_off: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._endpoints, self._meter, self._activity = endpoints, meter, activity
        self._spans = spans
        self._called_off, self._tell, self.device = called_off, tell, DeviceQueue(device)
        self._receiver, self.address = endpoints.listen(setup.bind, setup.max_in_flight, slot_bytes)
        self._sender: Sender | None = None

    def connect(self, told: Connect) -> Carrier | None:
        """Let in the stage before this one, and connect to the one after it, if there is one. How
        tensors will travel to that."""
        self._receiver.admit(told.before)
        if told.address is None:
            return None
        self._sender, carrier = self._endpoints.connect(told.address, self._called_off, self._tell)
        return carrier

    @property
    def queued(self) -> int:
        """Items that have arrived and wait to be received."""
        return self._receiver.queued

    def receive(self) -> Delivery:
        """The next item. The stage before may wait for a slot that the device still reads, so
        nobody waits for the next item alone; nor for the device alone, which would then have
        nothing to do until it is handed the next batch."""
        releases, receiver = self.device.releases, self._receiver
        self._spans.now("input")
        releases.look()
        if releases.waiting and not receiver.queued:
            with self._activity.during("working"):
                releases.watch(lambda: bool(receiver.queued) or self._called_off())
        with self._activity.during("waiting"):
            return receiver.receive(LINK_TIMEOUT_S, self._called_off)

    def done_with(self, delivery: Delivery) -> None:
        """Its slot goes back once the device is through, and what was sent is on its way."""
        if self._sender is not None:
            self._sender.flush()
        self.device.releases.after(delivery.release)

    def forward(self, item: Item, tensors: tuple[Tensor, ...]) -> None:
        """Downstream; returns when the next stage has room for it. Only the wait for that is no
        work: a device that hangs shows in the copy."""
        if self._sender is None:
            return
        if tensors:
            self._spans.now("room")
            with self._meter.waiting(), self._activity.during("blocked"):
                self._sender.wait_for_room()
            self._spans.now("send")
        self._sender.send(item, timed(self.device.payloads(tensors), self._spans))

    def finish(self) -> None:
        """After the stop marker: returns when all that was sent has arrived."""
        if self._sender is not None:
            self._sender.finish()

    def close(self) -> None:
        """Where the attempt was called off."""
        self._receiver.close()
        if self._sender is not None:
            self._sender.close()
