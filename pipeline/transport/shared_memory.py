"""A ring of slots in shared memory, for senders in other processes of this machine.

The receiver makes the ring and hands out its slots as credits; the sender copies into the slot
it was given, and the receiver computes on the slot itself: one copy per hop. The memory is an
anonymous file of the receiver's (memfd) that the sender opens through /proc: it has no name, so
nothing stays behind however the processes end, and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from pipeline.protocol.addresses import RingHandle, reason_of
from pipeline.system.machine import is_on_this_machine, memory_identity
from pipeline.transport.payloads import Writer, aligned, slot_parts, slot_start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.transport.payloads import Payload

_NAME = "pipeline-ring"


def check_can_be_opened(host: str) -> None:
    """Raises OSError for a ring whose memory is that of another machine, or container."""
    if not is_on_this_machine(host):
        raise OSError("the next stage is on another machine")
    if host != memory_identity():
        raise OSError(
            "the next stage is in another container of this machine: neither sees the other's "
            "processes, and so its memory"
        )


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
            host=memory_identity(),
            pid=os.getpid(),
            fd=self._fd,
            inode=os.fstat(self._fd).st_ino,
            slots=self._slots,
            slot_bytes=self._slot_bytes,
        )

    def slot(self, index: int) -> memoryview:
        """The bytes of a slot."""
        start = slot_start(index, self._slots, self._slot_bytes)
        return self._memory[start : start + self._slot_bytes]

    def take(self) -> None:
        """Take the memory of all slots, which else is taken as it is touched.

        Raises:
            OSError: where there is not so much.
        """
        os.posix_fallocate(self._fd, 0, self._slots * self._slot_bytes)

    def close(self) -> None:
        """Give up the descriptor; the memory goes with the last view of it."""
        os.close(self._fd)


def make_ring(slots: int, slot_bytes: int) -> tuple[Ring | None, str]:
    """A ring; or none, and why: tensors travel as frames then."""
    try:
        return Ring(slots, slot_bytes), ""
    except OSError as error:
        return None, reason_of(error)


class RingWriter(Writer):
    """The sender's end: opens the receiver's memory, which goes with this object, writes slots."""

    way = "shared"

    def __init__(self, handle: RingHandle) -> None:
        """Takes the memory of all slots, which is used only from here on.

        Raises:
            OSError: where the ring can't be reached from this process, or there is not so much.
        """
        check_can_be_opened(handle.host)
        self._handle = handle
        fd = _opened(f"/proc/{handle.pid}/fd/{handle.fd}")
        try:
            found = os.fstat(fd).st_ino, os.fstat(fd).st_size
            if found != (handle.inode, handle.slots * handle.slot_bytes):
                raise OSError("the next stage's ring is another than it says")
            # all of it now: a page that can't be had when it is first touched ends the process
            os.posix_fallocate(fd, 0, handle.slots * handle.slot_bytes)
            self._memory = memoryview(mmap.mmap(fd, handle.slots * handle.slot_bytes))
        finally:
            os.close(fd)

    def write(self, index: int, payloads: Sequence[Payload]) -> list[memoryview]:
        """Copy the payloads into a slot, each aligned; no frames follow."""
        start = slot_start(index, self._handle.slots, self._handle.slot_bytes)
        slot = self._memory[start : start + self._handle.slot_bytes]
        parts = slot_parts(slot, [payload.spec for payload in payloads])
        for payload, part in zip(payloads, parts, strict=True):
            payload.copy_into(part)
        return []


def _opened(path: str) -> int:
    """The descriptor of a ring. Raises OSError that says in words why it can't be had."""
    try:
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            raise OSError("the next stage's ring is no ring")
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError("the process of the next stage is gone, or has closed its ring") from None
    except PermissionError:
        raise OSError("the system lets no other process open the next stage's memory") from None
