"""Torch tensors <-> what travels: the bridge between the learning and the message half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.layout import is_channels_last, pixels
from pipeline.messages import ITEM_BYTES, TensorSpec

if TYPE_CHECKING:
    from pipeline.links import Arrived

_TYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorPayload:
    """A detached tensor, contiguous or channels last, about to travel; nobody changes it."""

    tensor: Tensor

    @property
    def spec(self) -> TensorSpec:
        """Its type and shape."""
        shape, ordered = tuple(self.tensor.shape), is_channels_last(self.tensor)
        return TensorSpec(_NAMES[self.tensor.dtype], shape, channels_last=ordered)

    def copy_into(self, target: memoryview) -> None:
        """Copy its bytes, straight from its device."""
        _tensor(self.spec, target).copy_(self.tensor)

    def view(self) -> memoryview:
        """Its bytes in host memory."""
        here = self.tensor.cpu()
        flat = pixels(here) if is_channels_last(here) else here
        return flat.reshape(-1).view(torch.uint8).numpy().data


def arrived_tensor(arrived: Arrived, device: torch.device) -> Tensor:
    """What came, on `device`; on the CPU it is the arrived memory itself, to be read only."""
    return _tensor(arrived.spec, arrived.data).to(device)


def _tensor(spec: TensorSpec, data: memoryview) -> Tensor:
    dtype = _TYPES[spec.dtype]
    flat = torch.frombuffer(data, dtype=dtype) if spec.nbytes else torch.empty(0, dtype=dtype)
    if not spec.channels_last:
        return flat.view(spec.shape)
    n, channels, height, width = spec.shape
    return flat.view(n, height, width, channels).permute(0, 3, 1, 2)
