"""Trained networks as plain modules: torch's own layers, or the user's, without heads.

block files of a checkpoint ──▶ nn.Module in evaluation mode, on the CPU
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError, Option
from pipeline.kernels.nonlinearity import LEAKY_SLOPE
from pipeline.network.ownership import extra_states
from pipeline.network.to_device import to_device
from pipeline.network.user_network import in_blocks, made_module, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.config.sections import Config
    from pipeline.network.specs import BlockSpec, LayerSpec, PoolSpec
    from pipeline.network.user_network import BlockModules

_DEPTH = Option("depth")


def plain_network(
    config: Config,
    specs: Sequence[BlockSpec],
    states: Mapping[int, Mapping[str, Tensor]],
    depth: int | None = None,
) -> nn.Module:
    """The network of a configuration with the trained tensors of `states`, by block.

    Args:
        depth: of how many blocks, from the first; None: all.

    Raises:
        ConfigError: where the user's own network is not there, or another than was trained; and
            for a depth that there is not.
    """
    if depth is not None and not (type(depth) is int and 1 <= depth <= len(specs)):
        raise ConfigError(
            _DEPTH, f" {depth!r}: the network has {len(specs)} blocks: give 1 to that"
        )
    if config.model.factory is None:
        return built_in(specs, states, depth)
    module = made_module(config.model, config.runtime.seed)
    network = in_blocks(module)
    parts = parts_of(network, has_output=specs[-1].is_output)
    trained_parts(parts, states)
    if depth is None:
        return module.train(False)
    children = sum(len(part.body) + len(part.tail) for part in parts[:depth])
    # not named_children, which leaves out a module that occurs again
    first = list(network._modules.items())[:children]
    return nn.Sequential(OrderedDict(first)).train(False)


class Residual(nn.Module):
    """Blocks with a shortcut around them: `tail(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.tail = body, shortcut, tail

    def forward(self, x: Tensor) -> Tensor:
        """(n, *in_shape) to (n, *out_shape)."""
        passed: Tensor = self.tail(self.body(x) + self.shortcut(x))
        return passed


def trained_parts(
    parts: Sequence[BlockModules], states: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Put the trained tensors of blocks into a user's own modules.

    Raises:
        ConfigError: where these are not the modules that were trained.
    """
    if len(parts) != len(states):
        raise _another_network(f"{len(parts)} blocks, the run's has {len(states)}")
    for index, part in enumerate(parts):
        to_device(part, torch.device("cpu"), torch.float32)
        both = nn.ModuleDict({"encoder": part.body, "tail": part.tail})
        for name, tensor in (*both.named_parameters(), *both.named_buffers()):
            trained = states[index].get(name)
            if trained is None or trained.shape != tensor.shape:
                there = "none" if trained is None else f"one of {tuple(trained.shape)}"
                raise _another_network(
                    f"in block {index} {name} of {tuple(tensor.shape)}, the run's has {there}"
                )
            with torch.no_grad():
                tensor.copy_(trained)
        for name, module in extra_states(both).items():
            module.set_extra_state(states[index][name].clone())


def _another_network(what: str) -> ConfigError:
    return ConfigError(f"network: has {what}: give the network that the run began with")


def built_in(
    specs: Sequence[BlockSpec],
    states: Mapping[int, Mapping[str, Tensor]],
    depth: int | None = None,
) -> nn.Sequential:
    """A network of a built-in kind, with children `block0`, `block1`, … and `output`.

    Raises:
        ConfigError: for a depth within a shortcut.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    ends = {spec.shortcut.source: spec.index for spec in specs if spec.shortcut}
    first, depth = 0, depth or len(specs)
    while first < depth:
        last = ends.get(first, first)
        if last >= depth:
            raise ConfigError(
                _DEPTH,
                f" {depth}: a shortcut spans blocks {first} to {last} and can't be cut: give "
                f"{last + 1}{f' or {first}' if first else ''}",
            )
        inside = specs[first : last + 1]
        name = "output" if inside[-1].is_output else f"block{first}"
        modules[name] = _residual(inside, states) if first in ends else _plain(inside[0], states)
        first = last + 1
    return nn.Sequential(modules).train(False)


def _plain(spec: BlockSpec, states: Mapping[int, Mapping[str, Tensor]]) -> nn.Sequential:
    state = states[spec.index]
    return nn.Sequential(OrderedDict([*_layers(spec, state), *_after(spec, state)]))


def _residual(specs: Sequence[BlockSpec], states: Mapping[int, Mapping[str, Tensor]]) -> Residual:
    *inner, last = specs
    body = OrderedDict[str, nn.Module](
        (f"block{each.index}", _plain(each, states)) for each in inner
    )
    body[f"block{last.index}"] = nn.Sequential(OrderedDict(_layers(last, states[last.index])))
    tail = nn.Sequential(OrderedDict(_after(last, states[last.index])))
    return Residual(nn.Sequential(body), _shortcut(last, states[last.index]), tail)


def _layers(spec: BlockSpec, state: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Up to where a shortcut is added."""
    layer = spec.layer
    if layer.kind == "linear" and len(spec.in_shape) > 1:
        yield "flatten", nn.Flatten()
    if spec.activates_input:
        yield from _norm("bn_input", state)
        yield "activate_input", _activation(spec)
    if layer.kind == "linear":
        yield "layer", _loaded(nn.Linear(prod(spec.in_shape), layer.out_features), "encoder", state)
    else:
        yield "layer", _loaded(_convolution(layer), "encoder", state)
    if not spec.activates_input and not spec.passes_raw:
        flat = layer.kind == "linear"
        yield from _norm("bn", state, nn.BatchNorm1d if flat else nn.BatchNorm2d)


def _after(spec: BlockSpec, state: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """From where a shortcut is added to what is passed on."""
    if not spec.is_output and not spec.passes_raw:
        if spec.activates_input:
            yield from _norm("bn", state)
        yield "activate", _activation(spec)
    if spec.dropout:
        channels = len(spec.shape) > 1 and not spec.drops_units
        yield "dropout", (nn.Dropout2d if channels else nn.Dropout)(spec.dropout)
    if spec.pool:
        yield "pool", _pool(spec.pool)


def _shortcut(spec: BlockSpec, state: Mapping[str, Tensor]) -> nn.Module:
    assert spec.shortcut is not None, "ends in this block"
    if spec.shortcut.layer is None:
        return nn.Identity()
    layer = _loaded(_convolution(spec.shortcut.layer), "shortcut.0", state)
    return nn.Sequential(OrderedDict([("layer", layer), *_norm("shortcut.1", state)]))


def _convolution(layer: LayerSpec) -> nn.Conv2d:
    return nn.Conv2d(
        layer.in_features, layer.out_features, layer.kernel, layer.stride, layer.padding
    )


def _norm(
    name: str, state: Mapping[str, Tensor], make: type[nn.Module] = nn.BatchNorm2d
) -> Iterator[tuple[str, nn.Module]]:
    """The batch norm of that name in the state of a block, if it has one."""
    if f"{name}.weight" in state:
        yield (
            "bn" if "." in name else name,
            _loaded(make(len(state[f"{name}.weight"])), name, state),
        )


def _pool(spec: PoolSpec) -> nn.Module:
    make = nn.MaxPool2d if spec.kind == "max" else nn.AvgPool2d
    return make(spec.kernel, spec.stride, spec.padding)


def _activation(spec: BlockSpec) -> nn.Module:
    return nn.ReLU() if spec.nonlinearity == "relu" else nn.LeakyReLU(LEAKY_SLOPE)


def _loaded(module: nn.Module, name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The module with the tensors that a block's state has below `name`.

    Raises:
        CheckpointError: where these have other shapes.
    """
    own: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        found = state.get(f"{name}.{key}")
        if found is None or found.shape != tensor.shape:
            there = "missing" if found is None else f"of {tuple(found.shape)}"
            raise CheckpointError(
                f"{name}.{key} is {there} in the checkpoint, of {tuple(tensor.shape)} in the "
                "network"
            )
        own[key] = found
    module.load_state_dict(own)
    return module
