"""What a block costs: parameters, multiply-adds, bytes sent and bytes held. Pure arithmetic.

A multiply-add is one product and one sum of a forward pass; a backward pass costs one forward
for the gradient of the weights and one for the gradient of the input. So, per image:

    global backprop   3 x the layer
    local losses      2 x the layer (its input is detached: no gradient of the input)
                      3 x where it learns together with the block before
                      3 x the similarity map g, 3 x the local classifier's linear layers

Batch norm, non-linearity, pooling and the similarity matrices are left out: they are at most a
few per cent of a wide layer (section 8 of the design).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from pipeline.specs import in_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.specs import BlockSpec

_G_KERNEL = 3
"""Side of the similarity map's kernel after a convolution."""
_PARAMETER_BYTES = 4
"""Weights, gradients and optimizer state are fp32, under bf16 autocast too."""
LABEL_BYTES = 8
"""Of an image, beside its activation: its class travels through all stages."""
_OPTIMIZER_COPIES = {"adam": 2, "amsgrad": 3, "sgd": 1}
"""Numbers an optimizer keeps per parameter (sgd: the momentum)."""


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Costs of one block; multiply-adds and sent bytes are per image.

    `parameters`: the layer with bias and batch norm; `head_parameters`: classifier and g.
    `forward_macs`: the layer's forward pass; `train_macs`: everything training does.
    `sent_bytes`: what leaves the block after pooling; 0 for the output block.
    `state_bytes`, `activation_bytes`: the two parts of `memory_bytes`, for one batch.
    `same_group`: whether it learns together with the block before it.
    """

    block: int
    parameters: int
    head_parameters: int
    forward_macs: int
    train_macs: int
    sent_bytes: int
    state_bytes: int
    activation_bytes: int
    same_group: bool = False

    @property
    def memory_bytes(self) -> int:
        """Estimate of what training this block alone holds, in bytes."""
        return self.state_bytes + self.activation_bytes

    def tree(self) -> dict[str, int]:
        """Plain JSON values, for plan.json."""
        return {**asdict(self), "memory_bytes": self.memory_bytes}


@dataclass(frozen=True, slots=True)
class StageCost:
    """Costs of consecutive blocks together, in the units of `BlockCost`."""

    parameters: int
    head_parameters: int
    train_macs: int
    sent_bytes: int
    memory_bytes: int


def block_costs(
    specs: Sequence[BlockSpec],
    *,
    batch_size: int,
    element_bytes: int,
    optimizer_name: Literal["adam", "amsgrad", "sgd"],
    backprop: bool,
) -> tuple[BlockCost, ...]:
    """Cost of each block, in order.

    Args:
        element_bytes: size of one number of an activation: 4 for fp32, 2 for bf16.
        backprop: whether a global loss is sent back through all blocks.
    """
    return tuple(
        BlockCost(
            block=spec.index,
            parameters=_parameters(spec),
            head_parameters=_head_parameters(spec),
            forward_macs=_forward_macs(spec),
            train_macs=_train_macs(spec, backprop=backprop),
            sent_bytes=0 if spec.is_output else prod(spec.out_shape) * element_bytes,
            state_bytes=_state_bytes(spec, optimizer_name),
            activation_bytes=_held_numbers(spec) * batch_size * element_bytes,
            same_group=spec.same_group,
        )
        for spec in specs
    )


def stage_cost(costs: Sequence[BlockCost]) -> StageCost:
    """Cost of a stage that holds these consecutive blocks; it sends what its last block sends."""
    return StageCost(
        parameters=sum(cost.parameters for cost in costs),
        head_parameters=sum(cost.head_parameters for cost in costs),
        train_macs=sum(cost.train_macs for cost in costs),
        sent_bytes=costs[-1].sent_bytes,
        memory_bytes=memory_bytes(costs),
    )


def received_bytes(
    specs: Sequence[BlockSpec], stages: Sequence[StageCost], images: int
) -> tuple[int, ...]:
    """What crosses the link to each stage with a batch, headers aside: the first is sent uint8
    images, each other what the one before it passes on; all are sent labels."""
    per_image = (prod(specs[0].in_shape), *(stage.sent_bytes for stage in stages[:-1]))
    return tuple(images * (nbytes + LABEL_BYTES) for nbytes in per_image)


def memory_bytes(costs: Sequence[BlockCost]) -> int:
    """Estimate of what one process holds that trains these blocks, in bytes.

    Blocks that learn together (all of them under global backprop) hold their activations until
    their backward pass; with local losses a block's activations are gone before the next block
    of the process starts.
    """
    groups = in_runs(costs, lambda cost: cost.same_group)
    held = max(sum(cost.activation_bytes for cost in group) for group in groups)
    return sum(cost.state_bytes for cost in costs) + held


def arithmetic_ratio(costs: Sequence[BlockCost]) -> float:
    """Multiply-adds of training over those of global backprop of the same layers.

    About 5/3 for `predsim` where a layer keeps its width, 2/3 for `pred`, 1 for `glob`.
    """
    backprop = 3 * sum(cost.forward_macs for cost in costs)
    return sum(cost.train_macs for cost in costs) / backprop


def _weights(spec: BlockSpec) -> int:
    layer = spec.layer
    return layer.in_features * layer.out_features * max(layer.kernel, 1) ** 2


def _g_weights(spec: BlockSpec) -> int:
    if spec.sim is None:
        return 0
    return spec.sim.features**2 * (_G_KERNEL**2 if spec.sim.kind == "conv" else 1)


def _classifier_layers(spec: BlockSpec) -> tuple[tuple[int, int], ...]:
    """Inputs and outputs of the local classifier's linear layers."""
    return spec.pred.layers if spec.pred else ()


def _rebuilding_weights(spec: BlockSpec) -> int:
    """Of the layer that rebuilds the block's input, as large as the layer itself."""
    return _weights(spec) if _rebuilds(spec) else 0


def _rebuilds(spec: BlockSpec) -> bool:
    return spec.unsupervised == "recon" and spec.index > 0 and not spec.is_output


def _parameters(spec: BlockSpec) -> int:
    if spec.custom is not None:
        return spec.custom.parameters
    per_feature = 1 + 2 * spec.batch_norm  # bias; scale and shift of the batch norm
    layers = 1 + (_shortcut_weights(spec) > 0)
    features = per_feature * spec.layer.out_features
    return _weights(spec) + _shortcut_weights(spec) + layers * features


def _shortcut_weights(spec: BlockSpec) -> int:
    layer = spec.shortcut.layer if spec.shortcut else None
    return layer.in_features * layer.out_features * layer.kernel**2 if layer else 0


def _train_macs(spec: BlockSpec, *, backprop: bool) -> int:
    """Forward, gradient of the weights and, where a block before learns from it, of the input."""
    passes = 3 if backprop or spec.same_group else 2
    return passes * _forward_macs(spec) + 3 * _head_macs(spec)


def _head_parameters(spec: BlockSpec) -> int:
    classifier = sum((n_in + 1) * n_out for n_in, n_out in _classifier_layers(spec))
    projection = spec.projection * spec.classes
    rebuilding = _rebuilding_weights(spec) + spec.layer.in_features * _rebuilds(spec)
    return _g_weights(spec) + classifier + projection + rebuilding


def _forward_macs(spec: BlockSpec) -> int:
    if spec.custom is not None:
        return spec.custom.forward_macs
    return (_weights(spec) + _shortcut_weights(spec)) * prod(spec.shape[1:])


def _head_macs(spec: BlockSpec) -> int:
    classifier = sum(n_in * n_out for n_in, n_out in _classifier_layers(spec))
    maps = _g_weights(spec) + _rebuilding_weights(spec)
    return maps * prod(spec.shape[1:]) + classifier


def _state_bytes(spec: BlockSpec, optimizer_name: Literal["adam", "amsgrad", "sgd"]) -> int:
    """Weights, gradients and optimizer state of layer and heads."""
    copies = 2 + _OPTIMIZER_COPIES[optimizer_name]
    return copies * (_parameters(spec) + _head_parameters(spec)) * _PARAMETER_BYTES


def _held_numbers(spec: BlockSpec) -> int:
    """Numbers per image held for this block's backward pass.

    Input, batch norm's input, activation (non-linearities work in place, but in a user's own
    modules), g's output, and a classifier's hidden layers, where there are such; what a dropout
    mask, a library's workspace or a link's slots need is left out. On a CPU g's output takes the
    place of a feature map's activation (`remade.py`): there this is an upper bound.
    """
    tensors = 1 + spec.batch_norm + (spec.custom is not None) + (spec.sim is not None)
    hidden = sum(spec.pred.hidden) if spec.pred else 0
    return prod(spec.in_shape) + tensors * prod(spec.shape) + hidden
