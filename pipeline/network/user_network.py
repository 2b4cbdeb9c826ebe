"""A user's own network: `model.factory` names a function that gives an `nn.Sequential`, or any
other module whose forward is a chain, which is then cut into one (`localise.py`).

    Flatten  Linear  ReLU  Dropout  Linear  ReLU  Linear
    ─────── block 0 ──────────────  ─ block 1 ──  output

Every child with parameters to learn becomes a block, the last one the output: a batch norm
belongs into one child with its layer. Children without belong to the block before them (at the
start, to the first). The heads see what comes before the first dropout, pooling or flattening;
these are the block's way to the next. The function is called in every process, and must give the
same network each time.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.errors import ConfigError, one_line
from pipeline.network.children import learns, passes_on
from pipeline.network.specs import BlockSpec, CustomSpec, LayerSpec
from pipeline.system.given import is_given
from pipeline.system.named_object import called, named_object, naming

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from pipeline.config.model import ModelConfig
    from pipeline.network.specs import Shape


_EXAMPLES = 2
"""Passed through to find the shapes: enough to see whether they are kept apart."""

_MOST_SIDES = 7
"""Of what one example becomes: messages hold 8, with the batch."""


def naming_factory(model: ModelConfig) -> AbstractContextManager[None]:
    """Around what a user's network does: errors name its factory, or say that it is the network."""
    return naming("network" if is_given(model.factory) else f"model.factory {model.factory}")


class BlockModules(NamedTuple):
    """The modules of one block: up to what its heads see, and from there to the next block."""

    body: nn.Sequential
    tail: nn.Sequential


def build_parts(model: ModelConfig, seed: int, *, has_output: bool = True) -> list[BlockModules]:
    """The blocks' modules with the initial weights of `seed`, on the CPU.

    Args:
        has_output: whether the last one is the output layer.

    Raises:
        ConfigError: as `build_children`.
    """
    return _parts(build_children(model, seed), has_output=has_output)


def parts_of(network: nn.Sequential, *, has_output: bool) -> list[BlockModules]:
    """The same of a network that is there: its own modules, in blocks.

    Raises:
        ConfigError: where it can't be cut into blocks.
    """
    return _parts(_split(network), has_output=has_output)


def _parts(blocks: list[dict[str, nn.Module]], *, has_output: bool) -> list[BlockModules]:
    from torch import nn

    parts = []
    for number, block in enumerate(blocks, start=1):
        children = list(block.values())
        is_output = has_output and number == len(blocks)
        end = len(children) if is_output else _end_of_body(children)
        parts.append(BlockModules(nn.Sequential(*children[:end]), nn.Sequential(*children[end:])))
    return parts


def build_children(
    model: ModelConfig, seed: int, example: Tensor | None = None
) -> list[dict[str, nn.Module]]:
    """The children of the user's network that make up each block, by name, as they were made.

    Args:
        example: as for `made_network`.

    Raises:
        ConfigError: where there is no such function, it gives what can't be cut into blocks, or a
            block holds what can't be trained or saved.
    """
    import torch

    from pipeline.network.ownership import check_blocks

    network = made_network(model, seed, example)
    with naming_factory(model):
        blocks = _split(network)
        check_blocks(blocks, torch.float32)
    return blocks


def made_network(model: ModelConfig, seed: int, example: Tensor | None = None) -> nn.Sequential:
    """The user's network as their function makes it for `seed`.

    Args:
        example: (n, …), where it is given: a network that is cut into blocks is tried on it.

    Raises:
        ConfigError: where there is no such function, or it gives what can't be cut into blocks.
    """
    module = made_module(model, seed)
    with naming_factory(model):
        return in_blocks(module, example)


def made_module(model: ModelConfig, seed: int) -> nn.Module:
    """The same as the function gives it, perhaps still to be cut.

    Raises:
        ConfigError: where there is no such function, or it gives no module.
    """
    import torch
    from torch import nn

    from pipeline.seeding import Purpose, derived_seed, seeded_draws  # numpy

    with (
        naming_factory(model),
        seeded_draws(derived_seed(seed, Purpose.FACTORY), torch.device("cpu")),
    ):
        module = called(named_object(str(model.factory)), model.kwargs)
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"gave a {type(module).__name__}; an nn.Sequential whose children are the blocks "
                "is needed, or another nn.Module, which is cut at its own blocks"
            )
        return module


def in_blocks(module: nn.Module, example: Tensor | None = None) -> nn.Sequential:
    """A user's module as an `nn.Sequential` of its own blocks, which share its parameters.

    Raises:
        ConfigError: where it can't be cut into blocks.
    """
    from torch import nn

    if not isinstance(module, nn.Sequential):
        from pipeline.network.localise import localise

        return localise(module, example)
    if own := _own_parts(module):
        raise ConfigError(
            f"its {type(module).__name__} has {own}, which would not be used, since each of its "
            "children is called by itself: put that into a child"
        )
    return module


def traced_specs(
    model: ModelConfig,
    nonlinearity: Literal["relu", "leaky_relu"],
    image_shape: Shape,
    classes: int,
    entered: Callable[[int, Shape], Shape],
    *,
    has_output: bool = True,
    target_shape: Shape = (),
    are_tokens: bool = False,
) -> list[BlockSpec]:
    """The blocks as they come out of the function, found by passing blank examples through.

    Args:
        entered: of a block's index and what arrives, the shape of what it computes on.
        has_output: whether the last one is the output layer, not a block like the others.
        target_shape: of the target of an example; `classes` of each place, 0 for numbers.
        are_tokens: whether examples are whole numbers.

    Raises:
        ConfigError: where the network does not take such examples, gives other than one number per
            class, or holds a shape that no local loss is made for.
    """
    import torch

    from pipeline.network.batch_norms import normalise, unusual_norms
    from pipeline.network.to_device import to_device

    specs: list[BlockSpec] = []
    x = torch.zeros(_EXAMPLES, *image_shape, dtype=torch.int64 if are_tokens else torch.float32)
    with naming_factory(model):
        enters_as_it_is = entered(0, image_shape) == image_shape
        made = build_children(model, 0, _example(x) if enters_as_it_is else None)
        parts = _parts(made, has_output=has_output)
        for index, part in enumerate(parts):
            if not has_output or index + 1 < len(parts):
                x = _as_entered(x, entered(index, tuple(x.shape[1:])))
            to_device(part, x.device, torch.float32)
            h, passed, macs = _traced(part, x, f"block {index}")
            modules = [module for own in part for module in own.modules()]
            parameters = sum(p.numel() for own in part for p in own.parameters())
            norms = normalise(modules), _name(made[index]), unusual_norms(modules)
            spec = BlockSpec(
                index=index,
                in_shape=tuple(x.shape[1:]),
                layer=LayerSpec("custom", _features(x.shape[1:]), _features(h.shape[1:])),
                shape=tuple(h.shape[1:]),
                out_shape=tuple(passed.shape[1:]),
                classes=classes,
                nonlinearity=nonlinearity,
                custom=CustomSpec(parameters, macs // _EXAMPLES, *norms),
            )
            specs.append(spec)
            x = passed
        _check_hidden(specs[:-1] if has_output else specs)
        if has_output:
            _check_output(specs[-1], classes, target_shape)
    return specs


def _features(shape: Shape) -> int:
    """How many features there are: channels of feature maps, else the last side."""
    return shape[0] if len(shape) == 3 else prod(shape[-1:])


def _example(x: Tensor) -> Tensor:
    """Like x, but of random numbers where they have a fraction."""
    import torch

    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return drawn if x.is_floating_point() else x


def _as_entered(x: Tensor, shape: Shape) -> Tensor:
    return x if tuple(x.shape[1:]) == shape else x.new_zeros(len(x), *shape)


def _own_parts(network: nn.Sequential) -> str:
    """What it computes or holds beside its children, in words; empty as a rule."""
    from torch import nn

    hooks = (
        *(network._forward_pre_hooks, network._forward_hooks),
        *(network._backward_pre_hooks, network._backward_hooks),
    )
    tensors = ", ".join([*network._parameters, *network._buffers])
    plain = nn.Sequential
    found = {
        "a forward() of its own": type(network).forward is not plain.forward
        or type(network).__call__ is not plain.__call__
        or "forward" in vars(network),
        "hooks": any(hooks),
        f"parameters or buffers of its own ({tensors})": bool(tensors),
    }
    return " and ".join(what for what, is_so in found.items() if is_so)


def _split(network: nn.Sequential) -> list[dict[str, nn.Module]]:
    """The children of each block, by name."""
    blocks: list[dict[str, nn.Module]] = [{}]
    learning = 0
    for name in network._modules:  # named_children leaves out what occurs again
        child = network.get_submodule(name)
        if learns(child):
            learning += 1
            if learning > 1:
                blocks.append({})
        blocks[-1][name] = child
    if learning < 2:
        raise ConfigError(
            f"{learning} children with parameters; at least a hidden one and the output are needed"
        )
    return blocks


def _name(children: dict[str, nn.Module]) -> str:
    """That of the block's layer; empty where it only has a number."""
    name = next(name for name, child in children.items() if learns(child))
    return "" if name.isdigit() else name


def _end_of_body(children: list[nn.Module]) -> int:
    """From where the children of a block only pass on: dropout, pooling, flattening."""
    learned = False
    for number, child in enumerate(children):
        if learned and passes_on(child):
            return number
        learned |= learns(child)
    return len(children)


def _traced(part: BlockModules, x: Tensor, where: str) -> tuple[Tensor, Tensor, int]:
    """What a block's heads see, what it passes on, and the multiply-adds of the former."""
    import torch

    from pipeline.network.multiply_adds import multiply_adds

    try:
        with torch.no_grad():
            with multiply_adds() as counted:
                h = _one_each(part.body.train(False)(x))
            passed = _one_each(part.tail.train(False)(h.clone()))
    except Exception as error:  # whatever the user's modules raise
        shape = tuple(x.shape[1:])
        raise ConfigError(f"{where}, for inputs of shape {shape}: {one_line(error)}") from error
    return h, passed, counted.count


def _one_each(result: Any) -> Tensor:
    import torch

    if not isinstance(result, torch.Tensor):
        raise TypeError(f"gives a {type(result).__name__}, a tensor is needed")
    if result.shape[:1] != (_EXAMPLES,):
        raise ValueError(
            f"gives {tuple(result.shape)} for {_EXAMPLES} examples; one row for each is needed"
        )
    return result


def _check_output(output: BlockSpec, classes: int, target_shape: Shape) -> None:
    if classes and output.shape != (classes, *target_shape):
        shape = ", ".join(map(str, (classes, *target_shape)))
        raise ConfigError(
            f"its last child gives {output.shape} per example, the data has {classes} classes; "
            f"({shape}{',' * (not target_shape)}) is needed"
        )
    if not classes and prod(output.shape) != prod(target_shape):
        raise ConfigError(
            f"its last child gives {output.shape} per example, whose target is {target_shape} "
            "numbers: as many are needed"
        )


def _check_hidden(hidden: list[BlockSpec]) -> None:
    for spec in hidden:
        if not 1 <= len(spec.shape) <= _MOST_SIDES or len(spec.out_shape) > _MOST_SIDES:
            raise ConfigError(
                f"block {spec.index} gives {spec.shape} per example; local losses need "
                "(features,), (channels, height, width) or (positions, …, features), with at most "
                f"{_MOST_SIDES} sides"
            )
