"""Torch tensors <-> what travels: the bridge between the learning and the message half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.messages import ITEM_BYTES, TensorSpec

if TYPE_CHECKING:
    from pipeline.links import Arrived

_TYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorPayload:
    """A contiguous, detached tensor about to travel; nobody changes it any more."""

    tensor: Tensor

    @property
    def spec(self) -> TensorSpec:
        """Its type and shape."""
        return TensorSpec(_NAMES[self.tensor.dtype], tuple(self.tensor.shape))

    def copy_into(self, target: memoryview) -> None:
        """Copy its bytes, straight from its device."""
        _tensor(self.spec, target).copy_(self.tensor)

    def view(self) -> memoryview:
        """Its bytes in host memory."""
        flat = self.tensor.cpu().reshape(-1).view(torch.uint8)
        return flat.numpy().data


def arrived_tensor(arrived: Arrived, device: torch.device) -> Tensor:
    """What came, on `device`; on the CPU it is the arrived memory itself, to be read only."""
    return _tensor(arrived.spec, arrived.data).to(device)


def _tensor(spec: TensorSpec, data: memoryview) -> Tensor:
    dtype = _TYPES[spec.dtype]
    if spec.nbytes == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(spec.shape)
