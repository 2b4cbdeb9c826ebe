"""Tensor bytes on their way: in slots of a ring (`shared_memory.py`; `cuda_ipc.py`: on a CUDA
device), or as raw frames that follow a header.

Every tensor begins at a multiple of 256 bytes: CPU kernels may round differently on input that
is not aligned to 64, and cuBLAS chooses kernels by alignments up to 256. N processes would no
longer equal one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from pipeline.errors import ProtocolError
from pipeline.protocol.messages import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.timeline.spans import SpanRecorder

ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """A tensor on a CUDA device, as its driver addresses it."""

    address: int
    """Of its first byte."""
    stream: int
    """In whose order it may be read."""
    landed: Callable[[], None]
    """Returns when the stream has done what it was given."""


class Payload(Protocol):
    """A tensor about to travel, wherever it lives."""

    @property
    def spec(self) -> TensorSpec:
        """Its type and shape."""

    def copy_into(self, target: memoryview) -> None:
        """Copy its bytes to `target`, of exactly its size."""

    def view(self) -> memoryview:
        """Its bytes in host memory, which don't change any more."""

    @property
    def device(self) -> DeviceBytes | None:
        """Where it lies on a CUDA device."""


@dataclass(frozen=True, slots=True)
class ArrayPayload:
    """A numpy array about to travel."""

    array: NDArray[np.generic]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(str(self.array.dtype), tuple(self.array.shape))

    def copy_into(self, target: memoryview) -> None:
        np.frombuffer(target, dtype=self.array.dtype)[:] = self.array.reshape(-1)

    def view(self) -> memoryview:
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data

    @property
    def device(self) -> None:
        """None: it lies in host memory."""


@dataclass(frozen=True, slots=True)
class _TimedPayload:
    """A payload whose copying is recorded apart from the sending around it."""

    payload: Payload
    spans: SpanRecorder

    @property
    def spec(self) -> TensorSpec:
        return self.payload.spec

    def copy_into(self, target: memoryview) -> None:
        self.spans.now("copy")
        self.payload.copy_into(target)
        self.spans.now("send")

    def view(self) -> memoryview:
        self.spans.now("copy")
        found = self.payload.view()
        self.spans.now("send")
        return found

    @property
    def device(self) -> DeviceBytes | None:
        return self.payload.device


def timed(payloads: Sequence[Payload], spans: SpanRecorder) -> Sequence[Payload]:
    """The same payloads; while `spans` records, their copying is told to it."""
    return [_TimedPayload(payload, spans) for payload in payloads] if spans.is_on else payloads


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def aligned_copy(source: memoryview) -> memoryview:
    """A copy of `source` that begins at an aligned address; writable."""
    memory = np.empty(source.nbytes + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    target = memory[start : start + source.nbytes]
    target[:] = np.frombuffer(source, dtype=np.uint8)
    return target.data


def framed_parts(frames: Sequence[memoryview], specs: Sequence[TensorSpec]) -> list[memoryview]:
    """Tensors that came as raw frames, in aligned memory.

    Raises:
        ProtocolError: where the frames are others than were promised.
    """
    promised, came = [spec.nbytes for spec in specs], [frame.nbytes for frame in frames]
    if promised != came:
        raise ProtocolError(
            f"header promises tensors of {promised} bytes, frames of {came} bytes came"
        )
    return [aligned_copy(frame) for frame in frames]


def slot_parts(slot: memoryview, specs: Sequence[TensorSpec]) -> list[memoryview]:
    """Where each tensor lies in a slot.

    Raises:
        ProtocolError: where they don't fit.
    """
    starts = slot_starts(slot.nbytes, specs)
    return [slot[start : start + spec.nbytes] for start, spec in zip(starts, specs, strict=True)]


def slot_starts(slot_bytes: int, specs: Sequence[TensorSpec]) -> list[int]:
    """Bytes from the beginning of a slot to each tensor.

    Raises:
        ProtocolError: where they don't fit.
    """
    *starts, end = accumulate((aligned(spec.nbytes) for spec in specs), initial=0)
    if end > slot_bytes:
        raise ProtocolError(f"tensors of {end} bytes don't fit a slot of {slot_bytes}")
    return starts


def slot_start(index: int, slots: int, slot_bytes: int) -> int:
    """Bytes from the beginning of a ring to a slot.

    Raises:
        ProtocolError: where there is no such slot.
    """
    if not 0 <= index < slots:
        raise ProtocolError(f"slot {index} of a ring of {slots}")
    return index * slot_bytes


class Writer:
    """Writes into the receiver's slots; unless it says otherwise all is there at once, and nothing
    is held open. `way`: as headers call it."""

    way: ClassVar[str]
    lands_later: ClassVar[bool] = False
    """Whether `write` only begins."""

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Into a slot, each aligned; gives the frames that must follow the header."""
        raise NotImplementedError

    def land(self) -> None:
        """Returns when all that was written is there."""

    def free(self, index: int) -> None:
        """A slot was granted again: what was in it is not needed any more."""

    def check(self) -> None:
        """Raises what went wrong since, where something is written by a thread."""

    def close(self) -> None:
        """Let go of the receiver's memory."""


class FrameWriter(Writer):
    """Where the receiver's memory is out of reach: tensors follow the header."""

    way = "frames"

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Their bytes, which ZeroMQ holds until they are sent."""
        return [payload.view() for payload in payloads]
