"""Where a stage can be sent to, as it tells the stage before it by way of the coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ProtocolError

DEVICE_HANDLE_BYTES = 64
"""CU_IPC_HANDLE_SIZE of CUDA's driver interface."""


@dataclass(frozen=True, slots=True)
class RingHandle:
    """Where a shared-memory ring can be opened: descriptor `fd` of process `pid` on `host`."""

    host: str
    pid: int
    fd: int
    inode: int
    slots: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceRingHandle:
    """Where a ring on a CUDA device can be opened: the driver's own handle of its memory."""

    host: str
    memory: bytes
    slots: int
    slot_bytes: int

    def __post_init__(self) -> None:
        if len(self.memory) != DEVICE_HANDLE_BYTES:
            raise ProtocolError(
                f"handle of device memory of {len(self.memory)} bytes: it has {DEVICE_HANDLE_BYTES}"
            )


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where a stage can be sent to.

    `word`: the name by which it knows its sender, a secret of the two. `key`: the public CURVE key
    of the stage, None where links are not encrypted. `device_ring`: where the stage is on a CUDA
    device that can share memory.
    """

    endpoint: str
    ring: RingHandle | None
    word: str
    key: str | None = None
    device_ring: DeviceRingHandle | None = None
