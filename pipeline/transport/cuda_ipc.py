"""A ring of slots in the memory of a CUDA device, for senders in other processes: CUDA IPC.

    sender                                  receiver
    opens the memory once ◀── handle ───── allocates it once
    copies on a stream of its own
    waits for the copy, then: slot k ────▶  computes on slot k; credit k goes back when the
                                            device has done what reads it

The calls are those of CUDA's driver interface, which says what each does ("Memory Management").
PyTorch's own way to share tensors keeps a named file beside each, which a killed process leaves
behind, and counts references over sockets of its own.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.protocol.addresses import DEVICE_HANDLE_BYTES, DeviceRingHandle
from pipeline.system.machine import memory_identity
from pipeline.transport.payloads import Writer, aligned, slot_start, slot_starts
from pipeline.transport.shared_memory import check_can_be_opened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.protocol.messages import TensorSpec
    from pipeline.transport.payloads import Payload

_SUCCESS = 0
_ENABLE_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS: the memory may be another device's
_GRANULE = 2 << 20  # what the driver hands out as a whole, and shares as a whole


class _IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_byte * DEVICE_HANDLE_BYTES)]


class Driver:
    """CUDA's driver interface, on the device whose context the calling thread has made its own.

    Args:
        load: opens a shared library by name.

    Every call raises OSError with CUDA's own name of what went wrong.
    """

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        self._library = load("libcuda.so.1")

    def allocate(self, nbytes: int) -> int:
        """Address of new memory."""
        address = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value

    def free(self, address: int) -> None:
        """Of allocated memory that nobody has open: to free what is open is undefined."""
        self._do("cuMemFree_v2", ctypes.c_uint64(address))

    def handle(self, address: int) -> bytes:
        """What another process needs to open allocated memory."""
        handle = _IpcHandle()
        self._do("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle)

    def open(self, handle: bytes) -> int:
        """Address, in this process, of another's memory."""
        address = ctypes.c_uint64()
        passed = _IpcHandle.from_buffer_copy(handle)
        flags = ctypes.c_uint(_ENABLE_PEER_ACCESS)
        self._do("cuIpcOpenMemHandle_v2", ctypes.byref(address), passed, flags)
        return address.value

    def size(self, address: int) -> int:
        """Bytes of the allocation that begins at an address."""
        base, nbytes = ctypes.c_uint64(), ctypes.c_size_t()
        self._do(
            "cuMemGetAddressRange_v2",
            ctypes.byref(base),
            ctypes.byref(nbytes),
            ctypes.c_uint64(address),
        )
        return nbytes.value if base.value == address else 0

    def close(self, address: int) -> None:
        """Of what was opened."""
        self._do("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Begin to copy between addresses, in the order of a stream."""
        self._do(
            "cuMemcpyAsync",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(stream),
        )

    def _do(self, name: str, *arguments: Any) -> None:
        code = self._library[name](*arguments)
        if code != _SUCCESS:
            text = ctypes.c_char_p()
            self._library["cuGetErrorName"](ctypes.c_int(code), ctypes.byref(text))
            error = (text.value or b"CUDA error %d" % code).decode(errors="replace")
            raise OSError(f"{name}: {error}")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on a CUDA device. PyTorch and others read the interface's dictionary, version 3."""

    address: int
    nbytes: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self.nbytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }


class DeviceRing:
    """The receiver's end: its memory lasts as long as its process, through all attempts of a run,
    since to free what a sender has open is undefined."""

    def __init__(self, slots: int, slot_bytes: int, driver: Driver) -> None:
        """Raises OSError where the device has no such memory, or can't share it."""
        self.slots, self.slot_bytes = slots, aligned(slot_bytes)
        self._address = driver.allocate(-(-slots * self.slot_bytes // _GRANULE) * _GRANULE)
        try:
            self._memory = driver.handle(self._address)
        except OSError:
            driver.free(self._address)
            raise

    def handle(self) -> DeviceRingHandle:
        """What a sender on this machine needs to open the ring."""
        return DeviceRingHandle(memory_identity(), self._memory, self.slots, self.slot_bytes)

    def parts(self, slot: int, specs: Sequence[TensorSpec]) -> list[DeviceMemory]:
        """Where each tensor lies in a slot.

        Raises:
            ProtocolError: where there is no such slot, or they don't fit.
        """
        first = self._address + slot_start(slot, self.slots, self.slot_bytes)
        starts = slot_starts(self.slot_bytes, specs)
        return [
            DeviceMemory(first + start, spec.nbytes)
            for start, spec in zip(starts, specs, strict=True)
        ]


class DeviceRingWriter(Writer):
    """The sender's end: opens the receiver's memory, writes slots."""

    way = "device"
    lands_later = True

    def __init__(self, handle: DeviceRingHandle, driver: Driver) -> None:
        """Raises OSError where the ring can't be reached from this process and device."""
        check_can_be_opened(handle.host)
        self._handle, self._driver = handle, driver
        self._address = driver.open(handle.memory)
        self._under_way: list[tuple[Payload, Callable[[], None]]] = []
        try:
            if driver.size(self._address) < handle.slots * handle.slot_bytes:
                raise OSError("the next stage's ring is smaller than it says")
        except OSError:
            self.close()
            raise

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Begin to copy the payloads into a slot, each on its stream; no frames follow."""
        first = self._address + slot_start(index, self._handle.slots, self._handle.slot_bytes)
        starts = slot_starts(self._handle.slot_bytes, [payload.spec for payload in payloads])
        for payload, start in zip(payloads, starts, strict=True):
            place = payload.device
            assert place is not None, "what leaves a stage on a device lies there"
            nbytes = payload.spec.nbytes
            self._driver.copy(first + start, place.address, nbytes, place.stream)
            # the payload is held, so that its memory is not used again before it is copied
            self._under_way.append((payload, place.landed))
        return []

    def land(self) -> None:
        """Returns when all that was written is there."""
        under_way, self._under_way = self._under_way, []
        for _, landed in under_way:
            landed()

    def close(self) -> None:
        """Let go of the receiver's memory, once nothing is under way to it."""
        self.land()
        self._driver.close(self._address)
