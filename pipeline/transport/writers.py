"""How a sender gets tensors to the next stage: the best way that can be reached from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from pipeline.protocol.addresses import Carrier, reason_of
from pipeline.transport.cuda_ipc import DeviceRingWriter
from pipeline.transport.payloads import RingWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.protocol.addresses import LinkAddress
    from pipeline.transport.cuda_ipc import Driver
    from pipeline.transport.payloads import Payload


class Writer(Protocol):
    """Writes into the receiver's slots. `way`: as headers call it."""

    way: ClassVar[str]
    lands_later: ClassVar[bool]
    """Whether `write` only begins."""

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Into a slot, each aligned; gives the frames that must follow the header."""

    def land(self) -> None:
        """Returns when all that was written is there."""

    def close(self) -> None:
        """Let go of the receiver's memory."""


class FrameWriter:
    """Where the receiver's memory is out of reach: tensors follow the header."""

    way: ClassVar[str] = "frames"
    lands_later: ClassVar[bool] = False

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Their bytes, of which ZeroMQ takes care."""
        return [payload.view() for payload in payloads]

    def land(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing was opened."""


def open_writer(address: LinkAddress, driver: Driver | None) -> tuple[Writer, Carrier]:
    """The best writer for an address, and its carrier, with the reason where a better one is out
    of reach.

    Args:
        driver: of CUDA, where what is sent lies on one of its devices.
    """
    if driver is None:
        return _shared_writer(address)
    try:
        if address.device_ring is None:
            raise OSError(_because("the next stage shares none", address.no_device_ring))
        return DeviceRingWriter(address.device_ring, driver), Carrier("device")
    except OSError as error:
        writer, carrier = _shared_writer(address)
        no_device = f"not memory of the CUDA device: {error}"
        reasons = [carrier.reason, no_device] if carrier.reason else [no_device]
        return writer, Carrier(carrier.kind, "; ".join(reasons))


def _shared_writer(address: LinkAddress) -> tuple[Writer, Carrier]:
    if address.ring is None:
        reason = _because("the next stage has no shared memory", address.no_ring)
        return FrameWriter(), Carrier("frames", reason)
    try:
        return RingWriter(address.ring), Carrier("shared")
    except OSError as error:
        return FrameWriter(), Carrier("frames", reason_of(error))


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
