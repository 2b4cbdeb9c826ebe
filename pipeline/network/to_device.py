"""A user's own tensors on the device and of the type that they are trained in, and still sharing
the memory that they shared before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor, nn


def trained_type(kept: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """The type that a tensor of type `kept` has in a block of real type `dtype`: numbers with a
    fraction get its precision, complex ones stay complex, others (integers, bool) stay."""
    if kept.is_complex:
        return dtype.to_complex()
    return dtype if kept.is_floating_point else kept


def to_device(modules: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Bring the parameters and buffers of `modules` to `device`, as `trained_type` says.

    Tensors that share memory still do, so of these none may have to change its type
    (`ownership.py` has refused that).
    """
    modules = list(modules)
    placed = _Moved(tensors_of(modules), device, dtype)
    for module in modules:
        module._apply(placed.of)  # type: ignore[no-untyped-call]


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Every parameter and buffer, each once."""
    found = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    return list({id(tensor): tensor for tensor in found}.values())


def memory_of(tensor: Tensor) -> int:
    """Where the memory begins that it may share with others; 0 where it has none."""
    return tensor.untyped_storage().data_ptr()


def repeats_itself(tensor: Tensor) -> bool:
    """Whether elements of it lie in the same place, as `expand` makes them: nothing can be loaded
    into such a tensor."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and side > 1 for side, stride in sides)


class _Moved:
    """Gives what each tensor becomes: the same one whenever it is asked for the same again."""

    def __init__(self, tensors: list[Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        used = [memory_of(tensor) for tensor in tensors]
        self._shared = {memory for memory in used if memory and used.count(memory) > 1}
        self._moved: dict[int, torch.UntypedStorage] = {}
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._known:  # which keeps the tensor, so that no other gets its id
            self._known[id(tensor)] = tensor, self._placed(tensor)
        return self._known[id(tensor)][1]

    def _placed(self, tensor: Tensor) -> Tensor:
        if memory_of(tensor) in self._shared and tensor.device != self._device:
            return self._beside_its_like(tensor)
        tensor = tensor.to(self._device, trained_type(tensor.dtype, self._dtype))
        return tensor.contiguous() if repeats_itself(tensor) else tensor

    def _beside_its_like(self, tensor: Tensor) -> Tensor:
        """In a copy of the whole memory that it shares."""
        import torch

        memory = memory_of(tensor)
        if memory not in self._moved:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            whole.set_(tensor.untyped_storage())
            self._moved[memory] = whole.to(self._device, copy=True).untyped_storage()
        there = torch.empty(0, dtype=tensor.dtype, device=self._device)
        return there.set_(
            self._moved[memory], tensor.storage_offset(), tensor.size(), tensor.stride()
        )
