"""How a worker reaches its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.door import Door
from pipeline.links import PATIENCE_S
from pipeline.sockets import Sockets
from pipeline.transport import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.invitation import Invitation
    from pipeline.links import Receiver, Sender
    from pipeline.messages import LinkAddress


class ZmqEndpoints:
    """Links over ZeroMQ, from the sockets of this process."""

    def __init__(self, invitation: Invitation) -> None:
        self._run, self._stage = invitation.run, invitation.stage
        self.door = Door(f"the link to stage {self._stage}")
        self.sockets = Sockets(self.door, invitation.keys)

    def listen(self, bind: str, slots: int, slot_bytes: int) -> tuple[Receiver, LinkAddress]:
        """The link from the stage before."""
        before = f"stage {self._stage - 1}" if self._stage else "the coordinator"
        receiver = ZmqReceiver(
            self.sockets,
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
            self.sockets,
            address,
            self._run,
            names=names,
            timeout_s=PATIENCE_S,
            cancelled=called_off,
        )
        return sender, sender.carrier
