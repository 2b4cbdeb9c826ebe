"""The address of a stage: where the stage before it connects to. The coordinator passes it on."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import ProtocolError

CARRIERS = {
    "frames": "frames",
    "shared": "shared memory",
    "device": "memory of the CUDA device",
    "stream": "a sealed stream",
    "plain-stream": "a stream without a seal",
}
"""How tensors may cross a link, as people call it: after the header, or in a slot of the receiver's
ring in shared memory, or of that on its CUDA device, or by a TCP connection into a slot."""
WAYS = ("frames", "shared", "device", "stream")
"""The same, as headers call it."""
MAX_REASON_CHARS = 200
STREAM_SECRET_BYTES = 32
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
class StreamAddress:
    """Where a stage takes the bytes of tensors over TCP.

    `secret`: by which its sender and it know each other, made for one link and attempt; it travels
    as the keys of the run protect it. `sealed`: whether the bytes are, by a key that is made of it.
    """

    endpoint: str
    secret: bytes = field(repr=False)
    sealed: bool

    def __post_init__(self) -> None:
        if len(self.secret) != STREAM_SECRET_BYTES:
            raise ProtocolError(
                f"secret of a stream of {len(self.secret)} bytes: it has {STREAM_SECRET_BYTES}"
            )


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where a stage listens, and how tensors can reach it.

    `word`: the name by which it knows its sender, a secret of the two. `key`: the public CURVE key
    of the stage, None where links are not encrypted. `device_ring`: where the stage is on a CUDA
    device that can share memory; `stream`: where it listens over TCP. `no_ring`, `no_device_ring`
    and `no_stream`: why there is none, in a few words.
    """

    endpoint: str
    ring: RingHandle | None
    word: str
    key: str | None = None
    device_ring: DeviceRingHandle | None = None
    no_ring: str = ""
    no_device_ring: str = ""
    stream: StreamAddress | None = None
    no_stream: str = ""

    def __post_init__(self) -> None:
        for reason in (self.no_ring, self.no_device_ring, self.no_stream):
            if len(reason) > MAX_REASON_CHARS or not reason.isprintable():
                raise ProtocolError(
                    f"reason {reason[:40]!r} of {len(reason)} characters: at most "
                    f"{MAX_REASON_CHARS} travel, all printable"
                )


@dataclass(frozen=True, slots=True)
class Carrier:
    """How tensors cross a link: `kind` of `CARRIERS`; `reason`: why a better one is out of reach,
    empty where none is."""

    kind: str
    reason: str = ""

    def __post_init__(self) -> None:
        if self.kind not in CARRIERS:
            raise ProtocolError(f"carrier {self.kind[:40]!r} is none of {', '.join(CARRIERS)}")

    def in_words(self) -> str:
        """For people: `shared memory (not memory of the CUDA device: …)`."""
        because = f" ({self.reason})" if self.reason else ""
        return f"{CARRIERS[self.kind]}{because}"


def reason_of(error: OSError) -> str:
    """Why there is no ring, as it may travel."""
    text = (None if error.filename else error.strerror) or str(error)
    return "".join(c if c.isprintable() else " " for c in text[:MAX_REASON_CHARS])
