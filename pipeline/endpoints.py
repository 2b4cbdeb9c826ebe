"""How a worker reaches its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.links import PATIENCE_S
from pipeline.transport import ZmqReceiver, ZmqSender, make_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.links import Receiver, Sender
    from pipeline.messages import LinkAddress


class ZmqEndpoints:
    """Links over ZeroMQ, from a context of this process."""

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

    def connect(self, address: LinkAddress, called_off: Callable[[], bool]) -> tuple[Sender, str]:
        """The link to the stage after, and what carries its tensors."""
        names = (f"stage {self._stage}", f"stage {self._stage + 1}")
        sender = ZmqSender(
            self.context,
            address,
            self._run,
            names=names,
            timeout_s=PATIENCE_S,
            cancelled=called_off,
        )
        return sender, sender.carrier
