"""Tensors cross through a ring of shared memory or as frames: the same bytes, aligned."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.device.cuda_streams import Incoming
from pipeline.errors import ProtocolError
from pipeline.kernels.memory_layout import channels_last
from pipeline.protocol.addresses import Carrier, LinkAddress
from pipeline.protocol.messages import ITEM_BYTES, TensorSpec
from pipeline.transport.interfaces import Arrived
from pipeline.transport.payloads import (
    ALIGNMENT,
    ArrayPayload,
    Ring,
    RingWriter,
    aligned,
    aligned_copy,
    host_identity,
    make_ring,
    slot_parts,
)
from pipeline.transport.writers import open_writer
from pipeline.worker.tensors import TensorPayload, arrived_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.transport.payloads import Payload

HERE = Incoming(torch.device("cpu"))


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring(slots=3, slot_bytes=1000)
    yield ring
    ring.close()


def array(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).integers(0, 200, shape).astype(dtype)


# --- payloads -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (5,), (1,), (), (0, 3)])
def test_tensors_survive_either_way(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(int(np.prod(shape))).reshape(shape).to(getattr(torch, dtype))
    payload = TensorPayload(tensor)
    assert payload.spec == TensorSpec(dtype, shape)
    slot = aligned_copy(memoryview(bytes(payload.spec.nbytes)))
    payload.copy_into(slot)
    assert bytes(slot) == bytes(payload.view())
    for data in (slot, aligned_copy(payload.view())):
        arrived = arrived_tensor(Arrived(payload.spec, data), HERE)
        assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(arrived, tensor)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 2, 1, 1), (3, 1, 4, 4), (0, 2, 4, 4)])
def test_feature_maps_arrive_as_they_lay(shape: tuple[int, ...]) -> None:
    tensor = channels_last(torch.arange(float(np.prod(shape))).view(shape))
    payload = TensorPayload(tensor)
    assert payload.spec == TensorSpec("float32", shape, channels_last=True)
    slot = aligned_copy(memoryview(bytes(payload.spec.nbytes)))
    payload.copy_into(slot)
    assert bytes(slot) == bytes(payload.view()) == tensor.permute(0, 2, 3, 1).numpy().tobytes()
    for data in (slot, aligned_copy(payload.view())):
        arrived = arrived_tensor(Arrived(payload.spec, data), HERE)
        assert torch.equal(arrived, tensor)
        assert arrived.stride() == tensor.stride()  # else kernels may round differently


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_arrays_and_tensors_travel_alike(dtype: str) -> None:
    values = array(dtype, 4, 3)
    one, other = ArrayPayload(values), TensorPayload(torch.from_numpy(values))
    assert one.spec == other.spec
    assert bytes(one.view()) == bytes(other.view()) == values.tobytes()
    slot = memoryview(bytearray(values.nbytes))
    one.copy_into(slot)
    assert bytes(slot) == values.tobytes()


def test_what_is_not_contiguous_travels_in_order() -> None:
    values = array("float32", 4, 6)[:, ::2]
    slots = []
    for payload in (ArrayPayload(values), TensorPayload(torch.from_numpy(values.copy()))):
        slot = memoryview(bytearray(values.size * 4))
        payload.copy_into(slot)
        slots += [bytes(slot), bytes(payload.view())]
    assert slots == [values.tobytes()] * 4


def test_types_that_do_not_travel_are_refused() -> None:
    with pytest.raises(ProtocolError, match="tensor type 'complex64' is none of uint8, "):
        _ = ArrayPayload(np.zeros(2, np.complex64)).spec


def test_arrived_tensor_is_the_memory_itself() -> None:
    data = aligned_copy(ArrayPayload(array("float32", 5)).view())
    arrived = arrived_tensor(Arrived(TensorSpec("float32", (5,)), data), HERE)
    assert arrived.data_ptr() == address(data)


# --- alignment ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "expected"), [(0, 0), (1, 256), (255, 256), (256, 256), (257, 512), (512, 512)]
)
def test_aligned_rounds_up(nbytes: int, expected: int) -> None:
    assert aligned(nbytes) == expected


@pytest.mark.parametrize("offset", [0, 1, 8, 63])
@pytest.mark.parametrize("nbytes", [1, 64, 1000])
def test_aligned_copy_is_aligned_wherever_the_source_lies(offset: int, nbytes: int) -> None:
    source = memoryview(bytes(range(256)) * 8)[offset : offset + nbytes]
    copy = aligned_copy(source)
    assert bytes(copy) == bytes(source)
    assert address(copy) % ALIGNMENT == 0
    assert not copy.readonly  # torch warns of memory that can't be written


def test_parts_of_a_slot_are_aligned_and_apart() -> None:
    slot = memoryview(bytearray(1024))
    specs = [TensorSpec("uint8", (257,)), TensorSpec("int64", (3,)), TensorSpec("uint8", (2, 8))]
    parts = slot_parts(slot, specs)
    start = address(slot)
    assert [address(part) - start for part in parts] == [0, 512, 768]
    assert [part.nbytes for part in parts] == [257, 24, 16]


def test_parts_that_do_not_fit_are_refused() -> None:
    specs = [TensorSpec("uint8", (257,)), TensorSpec("uint8", (1,))]
    assert len(slot_parts(memoryview(bytearray(768)), specs)) == 2
    with pytest.raises(ProtocolError, match="768 bytes don't fit a slot of 767"):
        slot_parts(memoryview(bytearray(767)), specs)


# --- the ring -----------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(ring: Ring) -> None:
    writer = RingWriter(ring.handle())
    written: list[list[Payload]] = [
        [ArrayPayload(array("uint8", 7, 3)), ArrayPayload(array("int64", 7) + slot)]
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
        ({"inode": 1}, "the next stage is in another process namespace"),
        ({"fd": 10**6}, "No such file"),
        ({"fd": -1}, "No such file"),
        ({"pid": 2**40}, "No such file"),
        ({"slots": 4}, "the next stage is in another process namespace"),
        ({"slots": 0}, "the next stage is in another process namespace"),
        ({"slot_bytes": 2**62}, "the next stage is in another process namespace"),
    ],
)
def test_ring_that_is_not_the_one_is_not_opened(
    ring: Ring, changes: dict[str, Any], says: str
) -> None:
    before = open_descriptors()
    with pytest.raises(OSError, match=says):
        RingWriter(replace(ring.handle(), **changes))
    assert open_descriptors() == before


@pytest.mark.parametrize("call", ["os.ftruncate", "mmap.mmap"])
def test_a_ring_that_the_system_refuses_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuses(*given: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    before = open_descriptors()
    monkeypatch.setattr(f"pipeline.transport.payloads.{call}", refuses)
    ring, reason = make_ring(slots=2, slot_bytes=4096)
    assert (ring, reason) == (None, "Cannot allocate memory")
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
    monkeypatch.setattr("pipeline.transport.payloads.os.posix_fallocate", refuses)
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
    with pytest.raises(OSError, match=r"No such file|namespace"):
        RingWriter(handle)


def test_writer_outlives_the_receiver() -> None:
    ring = Ring(slots=1, slot_bytes=ALIGNMENT)
    writer = RingWriter(ring.handle())
    ring.close()
    writer.write(0, [ArrayPayload(np.ones(ALIGNMENT, np.uint8))])
    assert bytes(ring.slot(0)) == b"\x01" * ALIGNMENT


def test_host_identity_is_the_same_every_time() -> None:
    assert host_identity() == host_identity()
    assert host_identity()


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
