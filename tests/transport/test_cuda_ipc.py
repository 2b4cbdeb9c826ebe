"""CUDA IPC: what is asked of the driver, what travels when, and what happens where it refuses."""

from __future__ import annotations

import ctypes
import gc
import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.fake_cuda import FakeCuda
from support.links import SLOT_BYTES, SOON_S, Link, batch

from pipeline.errors import ProtocolError
from pipeline.protocol.addresses import Carrier, DeviceRingHandle
from pipeline.protocol.credentials import Invitation
from pipeline.protocol.messages import TensorSpec
from pipeline.schedule.items import EndEpoch
from pipeline.transport.cuda_ipc import DeviceMemory, DeviceRing, Driver
from pipeline.transport.payloads import ALIGNMENT, ArrayPayload, DeviceBytes
from pipeline.transport.zmq_endpoints import ZmqEndpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.protocol.addresses import LinkAddress
    from pipeline.transport.interfaces import Delivery
    from pipeline.transport.sockets import Sockets
    from pipeline.transport.zmq_link import ZmqSender

    Listen = Callable[[int, int, FakeCuda | None], list[LinkAddress]]

SLOTS = 2
STREAM = 7


@dataclass
class DevicePayload:
    """An array that lies "on the device"; says when its copy has landed."""

    array: np.ndarray[Any, Any]
    story: list[str] = field(default_factory=list)

    @property
    def spec(self) -> TensorSpec:
        return ArrayPayload(self.array).spec

    @property
    def device(self) -> DeviceBytes:
        return DeviceBytes(self.array.ctypes.data, STREAM, lambda: self.story.append("landed"))

    def copy_into(self, target: memoryview) -> None:
        ArrayPayload(self.array).copy_into(target)

    def view(self) -> memoryview:
        return ArrayPayload(self.array).view()


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


class DeviceLink(Link):
    """Each of its ends has the fake driver."""

    def __init__(self, sockets: Sockets, folder: Path, cuda: FakeCuda) -> None:
        self.driver = Driver(cuda.load)
        ring = DeviceRing(SLOTS, SLOT_BYTES, self.driver)
        super().__init__(sockets, folder, slots=SLOTS, device_ring=ring)

    def sender(self, **more: Any) -> ZmqSender:
        return super().sender(timeout_s=SOON_S, driver=self.driver)


@pytest.fixture
def link(sockets: Sockets, tmp_path: Path, cuda: FakeCuda) -> Iterator[DeviceLink]:
    link = DeviceLink(sockets, tmp_path, cuda)
    yield link
    link.receiver.close()


def tensors(value: int, story: list[str] | None = None) -> list[DevicePayload]:
    story = [] if story is None else story
    arrays = np.full((5, 3), value, np.float32), np.arange(5) + value
    return [DevicePayload(array, story) for array in arrays]


def contents(delivery: Delivery) -> list[bytes]:
    found = []
    for tensor in delivery.tensors:
        assert isinstance(tensor.data, DeviceMemory)
        found.append(ctypes.string_at(tensor.data.address, tensor.data.nbytes))
    return found


# --- the ring on a link -------------------------------------------------------------------


def test_batches_cross_within_the_device(link: DeviceLink, cuda: FakeCuda) -> None:
    sender = link.connected()
    assert sender.carrier == Carrier("device")
    for number in range(1, 6):
        sent = tensors(number)
        sender.send(batch(number), sent)
        sender.flush()
        delivery = link.receiver.receive(SOON_S)
        assert delivery.item == batch(number)
        assert delivery.on_device
        assert contents(delivery) == [payload.array.tobytes() for payload in sent]
        assert [tensor.data.address % ALIGNMENT for tensor in delivery.tensors] == [0, 0]
        delivery.release()
    assert cuda.calls.count("cuMemAlloc_v2") == cuda.calls.count("cuIpcOpenMemHandle_v2") == 1


def test_a_batch_is_told_of_only_when_it_has_landed(link: DeviceLink) -> None:
    sender, story = link.connected(), list[str]()
    sender.send(batch(1), tensors(1, story))
    assert story == []
    assert not link.receiver._listener.poll(0.05)
    sender.flush()
    assert story == ["landed", "landed"]
    assert link.receiver.receive(SOON_S).item == batch(1)


def test_what_is_being_copied_is_held(link: DeviceLink) -> None:
    """The memory of a tensor that nobody holds would be used again, by another stream."""
    sender, payload = link.connected(), DevicePayload(np.zeros(3))
    alive = weakref.ref(payload)
    sender.send(batch(1), [payload])
    del payload
    gc.collect()
    assert alive() is not None
    sender.flush()
    gc.collect()
    assert alive() is None


def test_what_is_sent_next_does_not_overtake_it(link: DeviceLink) -> None:
    sender, story = link.connected(), list[str]()
    sender.send(batch(1), tensors(1, story))
    sender.send(EndEpoch(1))
    assert story == ["landed", "landed"]
    items = [link.receiver.receive(SOON_S).item for _ in range(2)]
    assert items == [batch(1), EndEpoch(1)]


def test_a_sender_lets_go_only_when_nothing_is_under_way(link: DeviceLink, cuda: FakeCuda) -> None:
    sender, story = link.connected(), list[str]()
    sender.send(batch(1), tensors(1, story))
    sender.close()
    assert story == ["landed", "landed"]
    assert cuda.calls[-1] == "cuIpcCloseMemHandle"


def test_slots_of_the_device_are_bounded_by_credits_and_by_their_size(link: DeviceLink) -> None:
    sender = link.connected()
    with pytest.raises(ProtocolError, match="tensors of 8192 bytes don't fit a slot of 4096"):
        sender.send(batch(1), [DevicePayload(np.zeros(8192, np.uint8))])
    ring = DeviceRing(SLOTS, SLOT_BYTES, link.driver)
    with pytest.raises(ProtocolError, match="slot 2 of a ring of 2"):
        ring.parts(2, [TensorSpec("uint8", (1,))])


# --- where it can't be had ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusing", "reason"),
    [
        ("cuIpcOpenMemHandle_v2", "cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_CONTEXT"),
        ("cuMemGetAddressRange_v2", "cuMemGetAddressRange_v2: CUDA_ERROR_INVALID_CONTEXT"),
    ],
)
def test_refused_memory_falls_back_to_shared_memory(
    link: DeviceLink, cuda: FakeCuda, refusing: str, reason: str
) -> None:
    cuda.failing = {refusing}
    sender = link.connected()
    assert sender.carrier == Carrier("shared", f"not memory of the CUDA device: {reason}")
    opened = refusing != "cuIpcOpenMemHandle_v2"
    assert cuda.calls.count("cuIpcCloseMemHandle") == opened  # nothing stays open
    sender.send(batch(1), tensors(1))
    delivery = link.receiver.receive(SOON_S)
    assert not delivery.on_device
    assert bytes(delivery.tensors[0].data) == tensors(1)[0].array.tobytes()


def changed(**fields: Any) -> Callable[[DeviceRingHandle], DeviceRingHandle | None]:
    return lambda handle: replace(handle, **fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda handle: None, "the next stage shares none: it keeps it for itself"),
        (changed(host="elsewhere"), "the next stage is on another machine"),
        (changed(slots=10**6), "the next stage's ring is smaller than it says"),
    ],
)
def test_rings_that_are_not_there_are_not_used(
    link: DeviceLink, change: Callable[[Any], Any], reason: str
) -> None:
    handle = link.address.device_ring
    why = "it keeps it for itself"
    link.address = replace(link.address, device_ring=change(handle), no_device_ring=why)
    assert (
        link.connected().carrier.in_words()
        == f"shared memory (not memory of the CUDA device: {reason})"
    )


def test_a_handle_has_a_size() -> None:
    with pytest.raises(ProtocolError, match="handle of device memory of 3 bytes: it has 64"):
        DeviceRingHandle("host", b"abc", 1, 1)


def test_errors_without_a_name_have_a_number(cuda: FakeCuda) -> None:
    driver = Driver(cuda.load)
    cuda._functions["cuMemAlloc_v2"] = lambda *arguments: 999
    with pytest.raises(OSError, match="cuMemAlloc_v2: CUDA error 999"):
        driver.allocate(1)


# --- who has a ring -----------------------------------------------------------------------


@pytest.fixture
def listen(sockets: Sockets, tmp_path: Path) -> Listen:
    """Where a stage listens in its first attempts."""

    def addresses(stage: int, attempts: int, cuda: FakeCuda | None) -> list[LinkAddress]:
        made = ZmqEndpoints(Invitation("run", stage, 0, "nowhere"))
        made.sockets.close(0)
        made.sockets = sockets
        if cuda:
            made.use_cuda(Driver(cuda.load))
        found = []
        for attempt in range(attempts):
            receiver, address = made.listen(f"ipc://{tmp_path}/link-{attempt}", SLOTS, SLOT_BYTES)
            found.append(address)
            receiver.close()
        return found

    return addresses


def test_a_stage_has_one_ring_for_all_attempts(listen: Listen, cuda: FakeCuda) -> None:
    first, *later = (address.device_ring for address in listen(1, 3, cuda))
    assert first is not None
    assert later == [first, first]
    assert cuda.calls == ["cuMemAlloc_v2", "cuIpcGetMemHandle"]


@pytest.mark.parametrize(
    ("stage", "refusing", "reason"),
    [
        (0, "", ""),
        (1, "cuMemAlloc_v2", "cuMemAlloc_v2: CUDA_ERROR_INVALID_CONTEXT"),
        (1, "cuIpcGetMemHandle", "cuIpcGetMemHandle: CUDA_ERROR_INVALID_CONTEXT"),
        (1, "any", "it is on no CUDA device"),
    ],
)
def test_a_stage_without_a_ring_says_why_and_asks_once(
    listen: Listen, cuda: FakeCuda, stage: int, refusing: str, reason: str
) -> None:
    cuda.failing = {refusing}
    for address in listen(stage, 3, None if refusing == "any" else cuda):
        assert (address.device_ring, address.no_device_ring) == (None, reason)
        assert address.ring is not None
    assert len(cuda.calls) == len({*cuda.calls})
    assert cuda.allocated == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_the_device_becomes_a_tensor_without_a_copy() -> None:
    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)
    ring = DeviceRing(SLOTS, SLOT_BYTES, Driver())
    specs = [TensorSpec("float32", (2, 3, 4, 4), channels_last=True), TensorSpec("int64", (2,))]
    images, labels = (torch.as_tensor(part, device=device) for part in ring.parts(1, specs))
    assert images.data_ptr() == ring.parts(1, specs)[0].address
    assert (images.numel(), labels.numel()) == (2 * 3 * 4 * 4 * 4, 16)
