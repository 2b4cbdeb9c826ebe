"""What a user's network holds, block by block, and whether it can be trained and saved.

Every block learns alone, in a process of its own, and its state is parameters, buffers and what
`get_extra_state` gives: plain tensors that lie in memory of the block. What is something else is
refused by name, before anything starts; the rest of a block that changes from step to step is
found by rehearsing one (`trial.py`).
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from pipeline.dtypes import dtype_name
from pipeline.errors import ConfigError
from pipeline.network.to_device import memory_of, repeats_itself, trained_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor, nn

_OWN = "every block learns alone, so make a module of its own for each"


class _NamedTensor(NamedTuple):
    """A parameter or buffer, by its name in the user's network."""

    block: int
    name: str
    tensor: Tensor

    def __str__(self) -> str:
        return f"block {self.block}: {self.name}"

    @property
    def learns(self) -> bool:
        return self.tensor.requires_grad

    @property
    def span(self) -> tuple[int, int]:
        """The addresses that it covers."""
        tensor = self.tensor
        if not tensor.numel():
            return 0, 0
        sides = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((side - 1) * stride for side, stride in sides)
        begins: int = tensor.data_ptr()
        return begins, begins + (last + 1) * tensor.element_size()


def check_blocks(blocks: Sequence[Mapping[str, nn.Module]], dtype: torch.dtype) -> None:
    """Refuse what can't be trained or saved block by block.

    Args:
        blocks: the children of each block, by their names in the user's network.
        dtype: of the numbers that are trained.

    Raises:
        ConfigError: naming block and tensors.
    """
    held = list(_named_tensors(blocks))
    for each in held:
        _check_kind(each)
    _check_apart(held)
    _check_memory(held, dtype)
    for block, children in enumerate(blocks):
        for name, child in children.items():
            for at, module in child.named_modules(prefix=name):
                _check_observes_nothing(f"block {block}: {at}", module)
            for at, module in extra_states(child).items():
                where = f"block {block}: {name}.{at.rpartition('.')[0]}".rstrip(".")
                _check_extra_state(where, module)


def retyped(blocks: Sequence[Mapping[str, nn.Module]], dtype: torch.dtype) -> list[str]:
    """A line for each block with tensors that are trained in another precision than they have."""
    lines = []
    for block in range(len(blocks)):
        changed: dict[tuple[torch.dtype, torch.dtype], list[str]] = {}
        for each in _named_tensors(blocks):
            now, then = each.tensor.dtype, trained_type(each.tensor.dtype, dtype)
            if each.block == block and now != then:
                changed.setdefault((now, then), []).append(each.name)
        lines += [
            f"block {block}: {', '.join(names)}: {dtype_name(now)} becomes {dtype_name(then)}, the "
            "precision of all weights and buffers"
            for (now, then), names in changed.items()
        ]
    return lines


def extra_states(module: nn.Module) -> dict[str, nn.Module]:
    """Those within a module (it may be one) that add a tensor to the state by `get_extra_state`, by
    its name in the state."""
    from torch import nn

    return {
        f"{name}._extra_state".lstrip("."): own
        for name, own in module.named_modules()
        if type(own).get_extra_state is not nn.Module.get_extra_state
    }


def _check_extra_state(where: str, module: nn.Module) -> None:
    """What `get_extra_state` gives is a tensor, and can be put back."""
    import torch
    from torch import nn

    name = f"{where} ({type(module).__name__})"
    if type(module).set_extra_state is nn.Module.set_extra_state:
        raise ConfigError(
            f"{name} has get_extra_state but no set_extra_state; state that can't be put back is "
            "lost when a run is resumed"
        )
    found = module.get_extra_state()
    if not isinstance(found, torch.Tensor) or found.layout != torch.strided:
        raise ConfigError(
            f"{name}: get_extra_state gives a {type(found).__name__}; a block's state is dense "
            "tensors: give one, or register a buffer"
        )


def _named_tensors(blocks: Sequence[Mapping[str, nn.Module]]) -> Iterator[_NamedTensor]:
    for block, children in enumerate(blocks):
        for prefix, child in children.items():
            for name, tensor in (*child.named_parameters(), *child.named_buffers()):
                yield _NamedTensor(block, f"{prefix}.{name}", tensor)


def _check_kind(each: _NamedTensor) -> None:
    import torch
    from torch.nn.parameter import is_lazy

    tensor = each.tensor
    if is_lazy(tensor):
        raise ConfigError(
            f"block {each.block} holds a lazy module; give its sizes ({each.name} has none yet)"
        )
    if tensor.device.type == "meta":
        raise ConfigError(f"{each} is on the meta device and has no values: make it on the CPU")
    if tensor.is_quantized:
        raise ConfigError(f"{each} is quantised, and can't be saved: dequantize() it")
    if tensor.layout != torch.strided:
        kind = str(tensor.layout).rpartition(".")[2]
        raise ConfigError(
            f"{each} is {kind}, and only dense tensors can be saved: register its to_dense(), or "
            "its indices and values as two buffers"
        )
    if each.learns and not bool(torch.isfinite(tensor).all()):
        raise ConfigError(
            f"block {each.block}: a parameter of shape {tuple(tensor.shape)} is not finite from "
            f"the start, and could never learn; give it finite initial values ({each.name})"
        )


def _check_observes_nothing(where: str, module: nn.Module) -> None:
    """Fake quantisation measures ranges in every batch, those of tests too, and its buffers grow
    with the first one, so that no snapshot could be loaded into a network made anew."""
    enabled = getattr(module, "observer_enabled", None)  # of torch.ao.quantization.FakeQuantizeBase
    if enabled is not None and bool(enabled):
        raise ConfigError(
            f"{where} ({type(module).__name__}) measures ranges for quantisation, which tests "
            "would change too: train without it and quantise afterwards, or give it its ranges and "
            "disable_observer()"
        )


def _check_apart(held: Iterable[_NamedTensor]) -> None:
    """No two blocks share a tensor, whole or in part."""
    owners: dict[int, _NamedTensor] = {}
    for each in held:
        other = owners.setdefault(id(each.tensor), each)
        if other.block != each.block:
            raise ConfigError(
                f"blocks {other.block} and {each.block} share a tensor; {_OWN} ({other.name} is "
                f"{each.name})"
            )


def _check_memory(held: Iterable[_NamedTensor], dtype: torch.dtype) -> None:
    """What shares memory does so within a block, in a way that can be saved, loaded and trained."""
    for one, other in _overlapping({id(each.tensor): each for each in held}.values()):
        both = f"{one.name} and {other.name} share memory"
        if one.block != other.block:
            raise ConfigError(f"blocks {one.block} and {other.block}: {both}; {_OWN}")
        if one.learns and other.learns:
            raise ConfigError(
                f"block {one.block}: {both}, and both learn: use one nn.Parameter in both places"
            )
        for each in (one, other):
            if trained_type(each.tensor.dtype, dtype) != each.tensor.dtype:
                raise ConfigError(
                    f"block {one.block}: {both}, and {each.name} would have to change from "
                    f"{dtype_name(each.tensor.dtype)} to {dtype_name(dtype)}: make them "
                    f"{dtype_name(dtype)}"
                )
            if repeats_itself(each.tensor):
                raise ConfigError(
                    f"block {one.block}: {both}, and {each.name} is expanded, so that nothing can "
                    "be loaded into it: clone() it"
                )


def _overlapping(held: Iterable[_NamedTensor]) -> Iterator[tuple[_NamedTensor, _NamedTensor]]:
    beside: dict[int, list[_NamedTensor]] = {}
    for each in held:
        beside.setdefault(memory_of(each.tensor), []).append(each)
    for sharing in beside.values():
        for one, other in combinations(sharing, 2):
            begins, ends = max(one.span[0], other.span[0]), min(one.span[1], other.span[1])
            if begins < ends:
                yield one, other
