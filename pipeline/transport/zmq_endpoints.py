"""How a worker reaches its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.protocol.addresses import reason_of
from pipeline.transport.cuda_ipc import DeviceRing, Driver
from pipeline.transport.interfaces import LINK_TIMEOUT_S
from pipeline.transport.rejections import Rejections
from pipeline.transport.sockets import Sockets
from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.protocol.addresses import Carrier, LinkAddress
    from pipeline.protocol.credentials import Invitation, KeyPair
    from pipeline.transport.interfaces import Receiver, Sender


class ZmqEndpoints:
    """Links over ZeroMQ, from the sockets of this process.

    `keys`: of its host, where the invitation says that the coordinator has some.
    """

    def __init__(self, invitation: Invitation, keys: KeyPair | None = None) -> None:
        self._run, self._stage = invitation.run, invitation.stage
        self.rejections = Rejections(f"the link to stage {self._stage}")
        self.sockets = Sockets(self.rejections, keys)
        self._driver: Driver | None = None
        self._device_ring: DeviceRing | None = None
        self._no_device_ring = ""

    def use_cuda(self, driver: Driver) -> None:
        self._driver = driver

    def listen(
        self, bind: str, slots: int, slot_bytes: int, peer: str = ""
    ) -> tuple[Receiver, LinkAddress]:
        ring = None if peer else self._shared_device_memory(slots, slot_bytes)
        before = peer or (f"stage {self._stage - 1}" if self._stage else "the coordinator")
        receiver = ZmqReceiver(
            self.sockets,
            bind,
            self._run,
            names=(f"stage {self._stage}", before),
            slots=slots,
            slot_bytes=slot_bytes,
            device_ring=ring,
            no_device_ring=self._no_device_ring,
        )
        return receiver, receiver.address

    def connect(
        self,
        address: LinkAddress,
        called_off: Callable[[], bool],
        tell: Callable[[str], None],
        peer: str = "",
    ) -> tuple[Sender, Carrier]:
        names = (f"stage {self._stage}", peer or f"stage {self._stage + 1}")
        sender = ZmqSender(
            self.sockets,
            address,
            self._run,
            names=names,
            timeout_s=LINK_TIMEOUT_S,
            cancelled=called_off,
            driver=None if peer else self._driver,
            tell=tell,
        )
        return sender, sender.carrier

    def _shared_device_memory(self, slots: int, slot_bytes: int) -> DeviceRing | None:
        """One ring for all attempts of the run; none before the first stage, which is fed from
        host memory, nor where the driver has refused once: the sender will say why."""
        if self._driver is None:
            self._no_device_ring = "it is on no CUDA device"
        elif self._stage > 0 and not (self._device_ring or self._no_device_ring):
            try:
                self._device_ring = DeviceRing(slots, slot_bytes, self._driver)
            except OSError as error:
                self._no_device_ring = reason_of(error)
        return self._device_ring
