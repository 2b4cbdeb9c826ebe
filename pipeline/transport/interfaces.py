"""Interfaces of links and of control, which transports implement.

The two ends of a link are two types: a stage cannot send upstream by accident. Every wait has a
time-out, and its error says who waited for whom, for what, how long (invariant 9).
`zmq_link.py` and `zmq_control.py` have those between processes, `in_memory.py` those within one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.protocol.addresses import Carrier, LinkAddress
    from pipeline.protocol.messages import Message, TensorSpec
    from pipeline.schedule.items import Item
    from pipeline.transport.cuda_ipc import DeviceMemory, Driver
    from pipeline.transport.payloads import Payload
    from pipeline.transport.rejections import Rejections


LINK_TIMEOUT_S = 3600.0
"""The watchdog ends a stalled run long before; this ends the wait of a process left alone."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A received tensor, in host memory or on a CUDA device: its bytes are aligned, and valid until
    the delivery is released."""

    spec: TensorSpec
    data: memoryview | DeviceMemory


@dataclass(frozen=True, slots=True)
class Delivery:
    """An item and its tensors. `release` gives the sender its credit back: a batch's, a marker used
    up none."""

    item: Item
    tensors: tuple[Arrived, ...]
    release: Callable[[], None]

    @property
    def on_device(self) -> bool:
        """Whether its tensors lie in a slot of a ring on a CUDA device, as later ones will."""
        return any(not isinstance(tensor.data, memoryview) for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Said:
    """A control message of one stage, with its attached frames."""

    stage: int
    message: Message
    attached: tuple[memoryview, ...] = ()


class Sender(Protocol):
    """The upstream end of a link: what it sends goes downstream."""

    def wait_for_room(self) -> None:
        """Returns when a batch may be sent. Raises TimedOutError, CalledOffError."""

    def send(self, item: Item, payloads: Sequence[Payload] = ()) -> None:
        """Send in order; a batch waits for room. Raises TimedOutError, CalledOffError."""

    def flush(self) -> None:
        """Returns when the batch that was sent last is on its way: a device may copy it while
        others go on."""

    def finish(self) -> None:
        """After the stop marker: returns when all has arrived. Raises as `send` does."""

    def close(self) -> None:
        """Close the socket; what has not arrived yet may be lost."""


class Receiver(Protocol):
    """The downstream end of a link: it can only receive, and grant credits."""

    @property
    def queued(self) -> int:
        """Items that have arrived and wait to be received."""

    def admit(self, key: str | None) -> None:
        """Let in who holds that public key, and nobody else; None where links have no keys."""

    def let_in(self, timeout_s: float, called_off: Callable[[], bool] = lambda: False) -> None:
        """Returns when the sender is in, and has its credits; else it comes in with the first
        `receive`. Raises as that does."""

    def receive(self, timeout_s: float, called_off: Callable[[], bool] = lambda: False) -> Delivery:
        """The next item. Raises TimedOutError; CalledOffError where `called_off` says so."""

    def close(self) -> None:
        """Close the socket; what has not been received yet is lost."""


class Endpoints(Protocol):
    """How a worker reaches its neighbours; `zmq_endpoints.py` has the real one."""

    @property
    def rejections(self) -> Rejections:
        """Of what does not belong to the run."""

    def use_cuda(self, driver: Driver) -> None:
        """What is sent and received from now on lies on the driver's device."""

    def listen(
        self, bind: str, slots: int, slot_bytes: int, peer: str = ""
    ) -> tuple[Receiver, LinkAddress]:
        """The link from the stage before, or from a `peer` that is none."""

    def connect(
        self,
        address: LinkAddress,
        called_off: Callable[[], bool],
        tell: Callable[[str], None],
        peer: str = "",
    ) -> tuple[Sender, Carrier]:
        """The link to the stage after, or to a `peer`, and what carries its tensors. `tell`: hears
        of what the person who watches should know."""


class ControlClient(Protocol):
    """A stage's end of the control connection."""

    def send(self, message: Message, attached: Sequence[bytes | memoryview] = ()) -> None:
        """Queue a message to the coordinator; does not wait. `attached`: frames that follow it."""

    @property
    def waiting(self) -> bool:
        """Whether the coordinator has said something that was not received yet."""

    def receive(self, timeout_s: float) -> Said:
        """From the coordinator. Raises TimedOutError."""


class ControlServer(Protocol):
    """The coordinator's end of every stage's control connection."""

    @property
    def rejections(self) -> Rejections:
        """Of what does not belong to the run."""

    def send(
        self, stage: int, message: Message, attached: Sequence[bytes | memoryview] = ()
    ) -> None:
        """Queue a message to one stage; does not wait. One to a stage that has left is lost."""

    def receive(self, timeout_s: float) -> Said | None:
        """What any stage said, None after `timeout_s` of silence."""

    def expect(self, stage: int, attempt: int) -> None:
        """From now on the process started for `attempt` speaks for the stage, and no other."""

    def key_before(self, stage: int) -> str | None:
        """The public key of who sends to the stage: that of the stage before it, or of the
        coordinator; None where there are none."""

    @property
    def absent(self) -> frozenset[int]:
        """Stages of which a connection has not been heard yet."""
