"""How tensor bytes cross a link: through a ring of shared-memory slots, or as raw frames.
(`cuda_ipc.py`: through one on a CUDA device.)

The receiver makes the ring and hands out its slots as credits; the sender copies into the slot
it was given, and the receiver computes on the slot itself: one copy per hop. The memory is an
anonymous file of the receiver's (memfd) that the sender opens through /proc: it has no name, so
nothing stays behind however the processes end, and the size of /dev/shm does not matter.

Every tensor begins at a multiple of 256 bytes: CPU kernels may round differently on input that
is not aligned to 64, and cuBLAS chooses kernels by alignments up to 256. N processes would no
longer equal one.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import RingHandle, reason_of
from pipeline.protocol.messages import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

ALIGNMENT = 256
_NAME = "pipeline-ring"


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """A tensor on a CUDA device, as its driver is told of it."""

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
        """Its bytes in host memory, which nobody changes any more."""

    @property
    def device(self) -> DeviceBytes | None:
        """Where it lies on a CUDA device."""


@dataclass(frozen=True, slots=True)
class ArrayPayload:
    """A numpy array about to travel."""

    array: NDArray[np.generic]

    @property
    def spec(self) -> TensorSpec:
        """Its type and shape."""
        return TensorSpec(str(self.array.dtype), tuple(self.array.shape))

    def copy_into(self, target: memoryview) -> None:
        """Copy its bytes."""
        np.frombuffer(target, dtype=self.array.dtype)[:] = self.array.reshape(-1)

    def view(self) -> memoryview:
        """Its bytes."""
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data

    @property
    def device(self) -> None:
        """Nowhere."""


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


def host_identity() -> str:
    """The same for processes that may share memory; process ids are checked by inode."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{os.uname().nodename}"


def check_on_this_machine(host: str) -> None:
    """Raises OSError for a ring whose memory is another machine's."""
    if host != host_identity():
        raise OSError("the next stage is on another machine")


class Ring:
    """The receiver's end: makes the memory, reads slots."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        """Raises OSError where there is no such memory."""
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd")
        self._slots, self._slot_bytes = slots, aligned(slot_bytes)
        self._fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, slots * self._slot_bytes)
            self._memory = memoryview(mmap.mmap(self._fd, slots * self._slot_bytes))
        except OSError:
            self.close()
            raise

    def handle(self) -> RingHandle:
        """What a sender on this machine needs to open the ring."""
        return RingHandle(
            host=host_identity(),
            pid=os.getpid(),
            fd=self._fd,
            inode=os.fstat(self._fd).st_ino,
            slots=self._slots,
            slot_bytes=self._slot_bytes,
        )

    def slot(self, index: int) -> memoryview:
        """The bytes of a slot."""
        return _slot(self._memory, index, self._slots, self._slot_bytes)

    def close(self) -> None:
        """Give up the descriptor; the memory goes with the last view of it."""
        os.close(self._fd)


def make_ring(slots: int, slot_bytes: int) -> tuple[Ring | None, str]:
    """A ring; or none, and why: tensors travel as frames then."""
    try:
        return Ring(slots, slot_bytes), ""
    except OSError as error:
        return None, reason_of(error)


class RingWriter:
    """The sender's end: opens the receiver's memory, writes slots."""

    way: ClassVar[str] = "shared"
    lands_later: ClassVar[bool] = False

    def __init__(self, handle: RingHandle) -> None:
        """Takes the memory of all slots, which is used only from here on.

        Raises:
            OSError: where the ring can't be reached from this process, or there is not so much.
        """
        check_on_this_machine(handle.host)
        self._handle = handle
        path = f"/proc/{handle.pid}/fd/{handle.fd}"
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            raise OSError("the next stage's ring is no ring")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(fd).st_ino, os.fstat(fd).st_size
            if found != (handle.inode, handle.slots * handle.slot_bytes):
                raise OSError("the next stage is in another process namespace")
            # all of it now: a page that can't be had when it is first touched ends the process
            os.posix_fallocate(fd, 0, handle.slots * handle.slot_bytes)
            self._memory = memoryview(mmap.mmap(fd, handle.slots * handle.slot_bytes))
        finally:
            os.close(fd)

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Copy the payloads into a slot, each aligned; no frames follow."""
        slot = _slot(self._memory, index, self._handle.slots, self._handle.slot_bytes)
        parts = slot_parts(slot, [payload.spec for payload in payloads])
        for payload, part in zip(payloads, parts, strict=True):
            payload.copy_into(part)
        return []

    def land(self) -> None:
        """What was written is there."""

    def close(self) -> None:
        """The memory goes with this object."""


def _slot(memory: memoryview, index: int, slots: int, slot_bytes: int) -> memoryview:
    start = slot_start(index, slots, slot_bytes)
    return memory[start : start + slot_bytes]


def slot_start(index: int, slots: int, slot_bytes: int) -> int:
    """Bytes from the beginning of a ring to a slot.

    Raises:
        ProtocolError: where there is no such slot.
    """
    if not 0 <= index < slots:
        raise ProtocolError(f"slot {index} of a ring of {slots}")
    return index * slot_bytes
