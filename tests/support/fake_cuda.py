"""Replaces CUDA's driver library: memory of the device is memory of this process."""

from __future__ import annotations

import ctypes
from typing import Any

INVALID_CONTEXT = 201
_ALIGNMENT = 256  # as real memory of a device has


class FakeCuda:
    """Functions by name, as `ctypes.CDLL` has them. `failing`: names of those that refuse."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.calls: list[str] = []
        self._memory: dict[int, Any] = {}
        self._functions = {
            "cuMemAlloc_v2": self._allocate,
            "cuMemFree_v2": self._free,
            "cuIpcGetMemHandle": self._handle,
            "cuIpcOpenMemHandle_v2": self._open,
            "cuMemGetAddressRange_v2": self._range,
            "cuIpcCloseMemHandle": self._close,
            "cuMemcpyAsync": self._copy,
        }

    def load(self, name: str) -> FakeCuda:
        assert name == "libcuda.so.1"
        return self

    def __getitem__(self, name: str) -> Any:
        if name == "cuGetErrorName":
            return self._name
        self.calls.append(name)
        return self._functions[name] if name not in self.failing else self._refuse

    def _refuse(self, *arguments: Any) -> int:
        return INVALID_CONTEXT

    def _name(self, code: Any, text: Any) -> int:
        text._obj.value = b"CUDA_ERROR_INVALID_CONTEXT" if code.value == INVALID_CONTEXT else None
        return 0

    def _allocate(self, address: Any, nbytes: Any) -> int:
        memory = ctypes.create_string_buffer(nbytes.value + _ALIGNMENT)
        first = -(-ctypes.addressof(memory) // _ALIGNMENT) * _ALIGNMENT
        address._obj.value = first
        self._memory[first] = memory
        return 0

    def _free(self, address: Any) -> int:
        del self._memory[address.value]
        return 0

    @property
    def allocated(self) -> int:
        """Pieces of memory that have not been freed."""
        return len(self._memory)

    def _handle(self, handle: Any, address: Any) -> int:
        ctypes.memmove(ctypes.addressof(handle._obj), address.value.to_bytes(64, "little"), 64)
        return 0

    def _open(self, address: Any, handle: Any, flags: Any) -> int:
        assert flags.value == 1
        address._obj.value = int.from_bytes(bytes(handle), "little")
        return 0

    def _range(self, base: Any, nbytes: Any, address: Any) -> int:
        base._obj.value, nbytes._obj.value = (
            address.value,
            len(self._memory[address.value]) - _ALIGNMENT,
        )
        return 0

    def _close(self, address: Any) -> int:
        assert address.value in self._memory
        return 0

    def _copy(self, target: Any, source: Any, nbytes: Any, stream: Any) -> int:
        ctypes.memmove(target.value, source.value, nbytes.value)
        return 0
