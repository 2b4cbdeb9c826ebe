"""Tensors that travel: the same bytes arrive, aligned, whatever their type and shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.links import address

from pipeline.device.cuda_streams import Incoming
from pipeline.dtypes import ITEM_BYTES
from pipeline.errors import ProtocolError
from pipeline.kernels.memory_layout import channels_last
from pipeline.protocol.messages import TensorSpec
from pipeline.transport.interfaces import Arrived
from pipeline.transport.payloads import (
    ALIGNMENT,
    ArrayPayload,
    aligned,
    aligned_copy,
    slot_parts,
)
from pipeline.worker.tensors import TensorPayload, arrived_tensor

HERE = Incoming(torch.device("cpu"))


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
