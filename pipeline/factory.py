"""A user's own network: `model.factory` names a function that gives an `nn.Sequential`.

    Flatten  Linear  ReLU  Dropout  Linear  ReLU  Linear
    ─────── block 0 ──────────────  ─ block 1 ──  output

Every child with parameters becomes a block, the last one the output. Children without
parameters belong to the block before them (at the start, to the first). The heads see what
comes before the first dropout, pooling or flattening; these are the block's way to the next.
"""

from __future__ import annotations

import importlib
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.errors import ConfigError, one_line
from pipeline.specs import BlockSpec, CustomSpec, LayerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from pipeline.config import ModelConfig
    from pipeline.specs import Shape


class Part(NamedTuple):
    """The modules of one block: up to what its heads see, and from there to the next block."""

    body: nn.Sequential
    tail: nn.Sequential


def build_parts(model: ModelConfig, seed: int) -> list[Part]:
    """The blocks' modules with the initial weights of `seed`, on the CPU.

    The whole network is made by one call, so that every process makes the same one.

    Raises:
        ConfigError: where there is no such function, or it gives something else.
    """
    import torch

    from pipeline.seeding import Purpose, derived_seed

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, Purpose.FACTORY))
        return _split(_network(model), str(model.factory))


def traced_specs(
    model: ModelConfig,
    nonlinearity: Literal["relu", "leaky_relu"],
    image_shape: Shape,
    classes: int,
) -> list[BlockSpec]:
    """The blocks as they come out of the function, found by passing one blank image through.

    Raises:
        ConfigError: where the network does not take such images, gives other than one number per
            class, or holds a shape that no local loss is made for.
    """
    import torch

    specs: list[BlockSpec] = []
    x = torch.zeros(1, *image_shape)
    for index, part in enumerate(build_parts(model, 0)):
        macs: list[int] = []
        h, passed = _traced(part, x, macs, f"model.factory {model.factory}: block {index}")
        layer = LayerSpec("custom", prod(x.shape[1:2]), prod(h.shape[1:2]))
        parameters = sum(p.numel() for module in part for p in module.parameters())
        specs.append(
            BlockSpec(
                index=index,
                in_shape=tuple(x.shape[1:]),
                layer=layer,
                shape=tuple(h.shape[1:]),
                out_shape=tuple(passed.shape[1:]),
                classes=classes,
                nonlinearity=nonlinearity,
                custom=CustomSpec(parameters, sum(macs)),
            )
        )
        x = passed
    _check_shapes(specs, model, classes)
    return specs


def _network(model: ModelConfig) -> nn.Sequential:
    from torch import nn

    module, _, name = str(model.factory).partition(":")
    try:
        make: Callable[..., Any] = getattr(importlib.import_module(module), name)
        network = make(**model.kwargs)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"model.factory {model.factory}: {one_line(error)}") from error
    if not isinstance(network, nn.Sequential):
        raise ConfigError(
            f"model.factory {model.factory}: gave a {type(network).__name__}; an nn.Sequential "
            "whose children are the blocks is needed"
        )
    return network


def _split(network: nn.Sequential, factory: str) -> list[Part]:
    from torch import nn

    bodies: list[list[nn.Module]] = [[]]
    learning = 0
    for child in network.children():
        if any(True for _ in child.parameters()):
            learning += 1
            if learning > 1:
                bodies.append([])
        bodies[-1].append(child)
    if learning < 2:
        raise ConfigError(
            f"model.factory {factory}: {learning} children with parameters; at least a hidden "
            "one and the output are needed"
        )
    *hidden, output = bodies
    return [*map(_part, hidden), Part(nn.Sequential(*output), nn.Sequential())]


def _part(children: list[nn.Module]) -> Part:
    """Cut where what follows only passes on: dropout, pooling, flattening."""
    from torch import nn

    first = next(i for i, child in enumerate(children) if any(True for _ in child.parameters()))
    cut = next(
        (i for i, child in enumerate(children) if i > first and _only_passes_on(child)),
        len(children),
    )
    return Part(nn.Sequential(*children[:cut]), nn.Sequential(*children[cut:]))


def _only_passes_on(module: nn.Module) -> bool:
    name = type(module).__name__
    return "Dropout" in name or "Pool" in name or name in ("Flatten", "Unflatten")


def _traced(part: Part, x: Tensor, macs: list[int], where: str) -> tuple[Tensor, Tensor]:
    import torch

    hooks = [
        module.register_forward_hook(partial(_count_macs, macs))
        for module in part.body.modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor)
    ]
    try:
        with torch.no_grad():
            h = part.body.train(False)(x)
            passed = part.tail.train(False)(h)
    except Exception as error:  # whatever the user's modules raise
        shape = tuple(x.shape[1:])
        raise ConfigError(f"{where}, for inputs of shape {shape}: {one_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return h, passed


def _count_macs(macs: list[int], module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
    """Multiply-adds of a linear layer or convolution for one image; others count as nothing."""
    weight: Any = module.weight
    if weight.dim() == 2:
        macs.append(weight.numel() * prod(y.shape[1:-1]))
    elif weight.dim() > 2:
        macs.append(weight.numel() * prod(y.shape[2:]))


def _check_shapes(specs: list[BlockSpec], model: ModelConfig, classes: int) -> None:
    *hidden, output = specs
    if output.shape != (classes,):
        raise ConfigError(
            f"model.factory {model.factory}: its last child gives {output.shape} per image, the "
            f"data has {classes} classes; ({classes},) is needed"
        )
    for spec in hidden:
        if len(spec.shape) not in (1, 3):
            raise ConfigError(
                f"model.factory {model.factory}: block {spec.index} gives {spec.shape} per image; "
                "local losses need (features,) or (channels, height, width)"
            )
