"""Torch tensors <-> what travels: the bridge between the learning and the message half."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.device.cuda_streams import Incoming, Releases, marks_of, side_stream
from pipeline.dtypes import ITEM_BYTES
from pipeline.errors import ProtocolError
from pipeline.kernels.memory_layout import is_channels_last, pixels
from pipeline.protocol.messages import TensorSpec
from pipeline.transport.cuda_ipc import DeviceMemory
from pipeline.transport.payloads import DeviceBytes, aligned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from pipeline.transport.interfaces import Arrived, Delivery

_TYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(frozen=True)
class TensorPayload:
    """A detached tensor, contiguous or channels last, about to travel; nobody changes it.

    `stream`: beside the one that computes, where copies are made; None on the CPU. `is_lent`:
    whether it lies in memory that others fill again once what arrived there has been dealt with.
    """

    tensor: Tensor
    stream: torch.cuda.Stream | None = None
    is_lent: bool = False

    @cached_property
    def spec(self) -> TensorSpec:
        """Its type and shape."""
        shape, ordered = tuple(self.tensor.shape), is_channels_last(self.tensor)
        return TensorSpec(_NAMES[self.tensor.dtype], shape, channels_last=ordered)

    def copy_into(self, target: memoryview) -> None:
        """Copy its bytes, straight from its device."""
        with self._aside():
            _tensor(self.spec, target).copy_(self.tensor)

    def view(self) -> memoryview:
        """Its bytes in host memory."""
        with self._aside():
            here = self.tensor.cpu()
        if self.is_lent and here is self.tensor:
            here = here.clone()
        flat = pixels(here) if is_channels_last(here) else here
        return flat.reshape(-1).view(torch.uint8).numpy().data

    @property
    def device(self) -> DeviceBytes | None:
        """Where it lies on a CUDA device."""
        if self.stream is None:
            return None
        stream = self.stream
        return DeviceBytes(self.tensor.data_ptr(), stream.cuda_stream, stream.synchronize)

    def _aside(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class PackedPayload:
    """Tensors that travel as one: bytes, each tensor of which begins aligned."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """`tensors`: whose memory has no gaps; nobody changes them."""
        self._tensors = tensors
        *self._starts, self._nbytes = _starts([tensor.nbytes for tensor in tensors])

    @property
    def spec(self) -> TensorSpec:
        """All of them as one tensor of bytes."""
        return TensorSpec("uint8", (self._nbytes,))

    def copy_into(self, target: memoryview) -> None:
        """Copy all of them."""
        for own, there in zip(self._tensors, self._parts(target), strict=True):
            there.copy_(own)

    def view(self) -> memoryview:
        """A copy in host memory."""
        packed = memoryview(bytearray(self._nbytes))
        self.copy_into(packed)
        return packed

    @property
    def device(self) -> None:
        """None: they are copied by the host."""

    def alike(self, arrived: Arrived) -> list[Tensor]:
        """Tensors like these that came packed, on the same device; in the arrived memory itself
        where that can be.

        Raises:
            ProtocolError: where they are not as large.
        """
        if not isinstance(arrived.data, memoryview) or arrived.spec != self.spec:
            raise ProtocolError(f"{arrived.spec} came where {self.spec} belongs")
        parts = zip(self._tensors, self._parts(arrived.data), strict=True)
        return [part.to(own.device) for own, part in parts]

    def _parts(self, memory: memoryview) -> Iterator[Tensor]:
        for start, own in zip(self._starts, self._tensors, strict=True):
            if not own.numel():
                yield torch.empty(own.shape, dtype=own.dtype)
                continue
            flat = torch.frombuffer(memory, dtype=own.dtype, count=own.numel(), offset=start)
            yield flat.as_strided(own.shape, own.stride())


def packed_bytes(sizes: Sequence[int]) -> int:
    """Of tensors of so many bytes, as they travel packed."""
    return _starts(sizes)[-1]


def _starts(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(map(aligned, sizes), initial=0))


class DeviceQueue:
    """What a device does for a stage besides computing: tensors come and go by copies of their
    own, and slots are given back once it has read them. A CPU does everything at once."""

    def __init__(self, device: torch.device) -> None:
        self._incoming, self._outgoing = Incoming(device), side_stream(device)
        self._lent = 0
        """Where the memory begins in which the newest input lies."""
        self.releases = Releases(marks_of(device))

    def arrived(self, delivery: Delivery) -> tuple[Tensor, ...]:
        """The tensors of a delivery, on the device: (input, targets, what is carried), none of a
        marker. All but the input may be used after the slot has been filled again, so they are
        copies. The input itself may travel on, as to another member of a team: see `payloads`."""
        tensors = tuple(arrived_tensor(tensor, self._incoming) for tensor in delivery.tensors)
        self._lent = _memory_of(tensors[0]) if tensors else 0
        return (*tensors[:1], *(tensor.clone() for tensor in tensors[1:]))

    def payloads(self, tensors: tuple[Tensor, ...]) -> list[TensorPayload]:
        """As they are now; of the input, or a view of it, a sender gets a copy to hold."""
        return payloads(tensors, self._outgoing, self._lent)


def payloads(
    tensors: tuple[Tensor, ...], stream: torch.cuda.Stream | None, lent: int = 0
) -> list[TensorPayload]:
    """As they are now: what the compute stream is given later, copies don't wait for.

    Args:
        lent: where memory begins that is to be filled again.
    """
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
    return [TensorPayload(each, stream, 0 != _memory_of(each) == lent) for each in tensors]


def _memory_of(tensor: Tensor) -> int:
    """Where it begins; views of a tensor share it."""
    return tensor.untyped_storage().data_ptr()


def arrived_tensor(arrived: Arrived, incoming: Incoming) -> Tensor:
    """What came, on the device of `incoming`; where it lies there already it is the arrived
    memory itself, to be read only."""
    if isinstance(arrived.data, DeviceMemory):
        flat: Tensor = torch.as_tensor(arrived.data, device=incoming.device)
        return _shaped(arrived.spec, flat.view(_TYPES[arrived.spec.dtype]))
    return incoming.bring(_tensor(arrived.spec, arrived.data))


def _tensor(spec: TensorSpec, data: memoryview) -> Tensor:
    dtype = _TYPES[spec.dtype]
    flat = torch.frombuffer(data, dtype=dtype) if spec.nbytes else torch.empty(0, dtype=dtype)
    return _shaped(spec, flat)


def _shaped(spec: TensorSpec, flat: Tensor) -> Tensor:
    if not spec.channels_last:
        return flat.view(spec.shape)
    n, channels, height, width = spec.shape
    return flat.view(n, height, width, channels).permute(0, 3, 1, 2)
