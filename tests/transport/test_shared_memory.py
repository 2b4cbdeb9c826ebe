"""A ring of shared memory: what is written is what is read, and nothing stays behind."""

from __future__ import annotations

import errno
import gc
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.links import address

from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import Carrier, LinkAddress
from pipeline.system.machine import memory_identity
from pipeline.transport.payloads import ALIGNMENT, ArrayPayload, slot_parts
from pipeline.transport.shared_memory import Ring, RingWriter, make_ring
from pipeline.transport.zmq_link import open_writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.transport.payloads import Payload


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring(slots=3, slot_bytes=1000)
    yield ring
    ring.close()


def test_what_is_written_is_what_is_read(ring: Ring) -> None:
    writer = RingWriter(ring.handle())
    written: list[list[Payload]] = [
        [ArrayPayload(np.full((7, 3), slot, np.uint8)), ArrayPayload(np.arange(7) + slot)]
        for slot in range(3)
    ]
    for slot, payloads in enumerate(written):
        writer.write(slot, payloads)
    for slot, payloads in enumerate(written):
        parts = slot_parts(ring.slot(slot), [payload.spec for payload in payloads])
        assert [bytes(part) for part in parts] == [bytes(payload.view()) for payload in payloads]
        assert [address(part) % ALIGNMENT for part in parts] == [0, 0]


def test_slots_are_rounded_up_to_the_alignment(ring: Ring) -> None:
    assert ring.handle().slot_bytes == 1024
    slots = [ring.slot(index) for index in range(3)]
    assert [address(slot) - address(slots[0]) for slot in slots] == [0, 1024, 2048]


@pytest.mark.parametrize("index", [-1, 3])
def test_slots_outside_the_ring_are_refused(ring: Ring, index: int) -> None:
    with pytest.raises(ProtocolError, match=f"slot {index} of a ring of 3"):
        ring.slot(index)
    with pytest.raises(ProtocolError, match=f"slot {index} of a ring of 3"):
        RingWriter(ring.handle()).write(index, [])


def test_too_much_for_a_slot_is_refused_and_leaves_the_next_alone(ring: Ring) -> None:
    writer = RingWriter(ring.handle())
    with pytest.raises(ProtocolError, match="1280 bytes don't fit a slot of 1024"):
        writer.write(0, [ArrayPayload(np.ones(1025, np.uint8))])
    writer.write(0, [ArrayPayload(np.ones(1024, np.uint8))])
    assert not any(ring.slot(1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host": "elsewhere"}, "the next stage is on another machine"),
        ({"inode": 1}, "the next stage's ring is another than it says"),
        ({"fd": 10**6}, "is gone, or has closed its ring"),
        ({"fd": -1}, "is gone, or has closed its ring"),
        ({"pid": 2**40}, "is gone, or has closed its ring"),
        ({"slots": 4}, "the next stage's ring is another than it says"),
        ({"slots": 0}, "the next stage's ring is another than it says"),
        ({"slot_bytes": 2**62}, "the next stage's ring is another than it says"),
    ],
)
def test_ring_that_is_not_the_one_is_not_opened(
    ring: Ring, changes: dict[str, Any], says: str
) -> None:
    before = open_descriptors()
    with pytest.raises(OSError, match=says):
        RingWriter(replace(ring.handle(), **changes))
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("call", "number", "why"),
    [
        ("os.ftruncate", errno.EFBIG, "File too large"),
        ("mmap.mmap", errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_ring_that_the_system_refuses_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, why: str
) -> None:
    def refuses(*given: Any) -> None:
        raise OSError(number, os.strerror(number))

    before = open_descriptors()
    monkeypatch.setattr(f"pipeline.transport.shared_memory.{call}", refuses)
    ring, reason = make_ring(slots=2, slot_bytes=4096)
    assert (ring, reason) == (None, why)
    assert open_descriptors() == before


def test_all_slots_are_there_once_a_sender_has_opened_the_ring() -> None:
    """What nobody opens, since a device's memory is better, takes no memory."""
    ring = Ring(slots=2, slot_bytes=1 << 20)
    handle = ring.handle()
    assert os.fstat(handle.fd).st_blocks == 0
    RingWriter(handle)
    assert os.fstat(handle.fd).st_blocks * 512 == 2 << 20
    ring.close()


def test_a_ring_for_which_there_is_no_memory_is_not_used(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(fd: int, start: int, nbytes: int) -> None:
        assert (start, nbytes) == (0, 3 * 1024)
        raise OSError(28, "No space left on device")

    before = open_descriptors()
    monkeypatch.setattr("pipeline.transport.shared_memory.os.posix_fallocate", refuses)
    address = LinkAddress("ipc://x", ring.handle(), "word")
    assert open_writer(address, None)[1] == Carrier("frames", "No space left on device")
    assert open_descriptors() == before


def test_a_file_that_is_no_ring_is_not_opened(ring: Ring) -> None:
    """An address can't make a sender write into whatever its receiver has open."""
    fd = os.memfd_create("something else")
    os.ftruncate(fd, 1024)
    handle = replace(ring.handle(), fd=fd, inode=os.fstat(fd).st_ino, slots=1, slot_bytes=1024)
    with pytest.raises(OSError, match="is no ring"):
        RingWriter(handle)
    os.close(fd)


def test_ring_of_a_receiver_that_is_gone_is_not_opened() -> None:
    ring = Ring(slots=1, slot_bytes=64)
    handle = ring.handle()
    ring.close()
    with pytest.raises(OSError, match="is gone, or has closed its ring"):
        RingWriter(handle)


def test_writer_outlives_the_receiver() -> None:
    ring = Ring(slots=1, slot_bytes=ALIGNMENT)
    writer = RingWriter(ring.handle())
    ring.close()
    writer.write(0, [ArrayPayload(np.ones(ALIGNMENT, np.uint8))])
    assert bytes(ring.slot(0)) == b"\x01" * ALIGNMENT


def test_memory_of_another_container_of_the_machine_is_not_opened(ring: Ring) -> None:
    """Where another process may have the same number."""
    machine, *namespaces = memory_identity().split(" ")
    assert [space.partition(":")[0] for space in namespaces] == ["pid", "ipc", "mnt"]
    for number in range(len(namespaces)):
        others = [*namespaces[:number], "pid:[1]", *namespaces[number + 1 :]]
        with pytest.raises(OSError, match="in another container of this machine: neither sees"):
            RingWriter(replace(ring.handle(), host=" ".join([machine, *others])))


def test_nothing_stays_behind() -> None:
    """No name in /dev/shm, no descriptor, and the memory goes with its last view."""
    gc.collect()
    names, descriptors = set(os.listdir("/dev/shm")), open_descriptors()
    ring = Ring(slots=2, slot_bytes=4096)
    writer = RingWriter(ring.handle())
    assert mapped_rings() == 2
    assert {name for name in os.listdir("/dev/shm") if "ring" in name} <= names
    ring.close()
    del ring, writer
    gc.collect()
    assert mapped_rings() == 0
    assert open_descriptors() == descriptors


def open_descriptors() -> set[str]:
    """Descriptors of this process, but for that of the listing itself."""
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def mapped_rings() -> int:
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        return sum("memfd:pipeline-ring" in line for line in maps)
