"""What a block costs: parameters, multiply-adds, bytes sent and bytes held. Pure arithmetic.

A multiply-add is one product and one sum of a forward pass; a backward pass costs one forward
for the gradient of the weights and one for the gradient of the input. So, per example:

    frozen            1 x the layer
    global backprop   3 x the layer; 4 x where it is computed again (`runtime.recompute`)
    local losses      2 x the layer (its input is detached: no gradient of the input)
                      3 x where it learns together with the block before
                      3 x the similarity map g, 3 x the local classifier's linear layers

Batch norm, non-linearity, pooling and the similarity matrices are left out: they are at most a
few per cent of a wide layer (section 8 of the design).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import accumulate, groupby
from math import ceil, prod
from typing import TYPE_CHECKING, Literal

from pipeline.network.specs import in_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.network.specs import BlockSpec

_PARAMETER_BYTES = 4
"""Weights, gradients, optimizer state and losses are fp32, under bf16 autocast too."""
_SLICES = 3 << 19
"""Numbers that hand-written backward passes work on at a time on a CPU (`memory_layout.py`)."""
_SIMILARITY_MATRICES = 4
"""Of a batch's examples with each other: two, their difference, its gradient."""
_OPTIMIZER_COPIES = {"adam": 2, "amsgrad": 3, "adamw": 2, "sgd": 1}
"""Numbers an optimizer keeps per parameter (sgd: the momentum)."""


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Costs of one block; multiply-adds and sent bytes are per example.

    `parameters`: the layer with bias and batch norm; `head_parameters`: classifier and g.
    `forward_macs`: the layer's forward pass; `train_macs`: everything training does.
    `sent_bytes`: what leaves the block after pooling; 0 for the output block.
    `state_bytes`, `activation_bytes`, `working_bytes`: the parts of `estimated_bytes`, for one
    batch: what stays, what is held for the backward pass, what comes and goes with it.
    `same_group`: whether it learns together with the block before it.
    `frozen`: whether it learns nothing.
    `segment`, `arrived_bytes`: under `runtime.recompute`, which it is in, and what arrives.
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
    working_bytes: int = 0
    frozen: bool = False
    segment: int = 0
    arrived_bytes: int = 0

    @property
    def estimated_bytes(self) -> int:
        """Estimate of what training this block alone holds at its peak, in bytes."""
        return self.state_bytes + self.activation_bytes + self.working_bytes

    def tree(self) -> dict[str, int]:
        """Plain JSON values, for plan.json."""
        return {**asdict(self), "memory_bytes": self.estimated_bytes}


def block_costs(
    specs: Sequence[BlockSpec],
    *,
    batch_size: int,
    element_bytes: int,
    optimizer_name: Literal["adam", "amsgrad", "adamw", "sgd"],
    backprop: bool,
    clips: bool = False,
    recompute: int = 0,
    parts: int = 1,
    wire_bytes: int | None = None,
) -> tuple[BlockCost, ...]:
    """Cost of each block, in order.

    Args:
        element_bytes: size of one number of an activation: 4 for fp32, 2 for bf16.
        backprop: whether a global loss is sent back through all blocks.
        clips: whether gradients are clipped, beside which they are held, too.
        recompute, parts: of global backprop (`runtime.recompute`, `optimizer.accumulate`).
        wire_bytes: size of one number of an activation on a link; None: as it is computed.
    """
    segments = [index // recompute if recompute else 0 for index in range(len(specs))]
    # weights, gradients and what the optimizer keeps
    copies = 2 + clips + (parts > 1) + _OPTIMIZER_COPIES[optimizer_name]
    # under autocast, weights as it reads them are held, too
    cast_bytes = element_bytes if element_bytes < _PARAMETER_BYTES else 0
    found: list[BlockCost] = []
    for spec in specs:
        parameters, head_parameters = _parameters(spec), _head_parameters(spec)
        weights, forward_macs = parameters + head_parameters, _forward_macs(spec)
        # forward, gradient of the weights and, where a block before learns from it, of the input
        passes = 1 if spec.frozen else 3 if backprop or spec.same_group else 2
        segment = segments[len(found)]
        passes += segment < segments[-1]  # the last one's backward pass follows at once
        rows = spec.in_training.rows * ceil(batch_size / parts)
        held = _passing_numbers(spec) if spec.frozen else _held_numbers(spec)
        held_bytes = held * rows * element_bytes
        found.append(
            BlockCost(
                block=spec.index,
                parameters=parameters,
                head_parameters=head_parameters,
                forward_macs=forward_macs,
                train_macs=passes * forward_macs + 3 * _head_macs(spec),
                sent_bytes=0 if spec.is_last else _sent_bytes(spec, wire_bytes or element_bytes),
                state_bytes=(1 if spec.frozen else copies) * weights * _PARAMETER_BYTES,
                activation_bytes=cast_bytes * weights + held_bytes,
                same_group=spec.same_group,
                working_bytes=0 if spec.frozen else _working_bytes(spec, rows, element_bytes),
                frozen=spec.frozen,
                segment=segment,
                arrived_bytes=prod(spec.in_shape) * rows * element_bytes if recompute else 0,
            )
        )
    return tuple(found)


def estimated_bytes(costs: Sequence[BlockCost]) -> int:
    """Estimate of what one process holds that trains these blocks, at its peak, in bytes.

    Blocks that learn together (all of them under global backprop) hold their activations until
    their backward pass, which goes through one block at a time; with local losses a block's
    activations are gone before the next block of the process starts. Activations are mostly within
    15 % of what tensors take on a CPU; libraries' workspaces, which on CUDA can be several times
    as much, links' slots and what is inside of a user's own modules are left out.
    """
    groups = in_runs(costs, lambda cost: cost.same_group and not cost.frozen)
    return sum(cost.state_bytes for cost in costs) + max(map(_peak_bytes, groups))


def checkpoint_bytes(
    costs: Sequence[BlockCost], optimizer_name: Literal["adam", "amsgrad", "adamw", "sgd"]
) -> int:
    """Estimate of a checkpoint on the disk, in bytes: weights, and what the optimizer keeps of
    each that learns."""
    numbers = sum(
        (cost.parameters + cost.head_parameters)
        * (1 if cost.frozen else 1 + _OPTIMIZER_COPIES[optimizer_name])
        for cost in costs
    )
    return numbers * _PARAMETER_BYTES


def weights_bytes(costs: Sequence[BlockCost]) -> int:
    """Of the same without heads and optimizers (`runtime.best_form`)."""
    return sum(cost.parameters for cost in costs) * _PARAMETER_BYTES


def arithmetic_ratio(costs: Sequence[BlockCost]) -> float | None:
    """Multiply-adds of training over those of global backprop of the same layers.

    About 5/3 for `predsim` where a layer keeps its width, 2/3 for `pred`, 1 for `glob`; None where
    those of a user's own modules are not known.
    """
    backprop = 3 * sum(cost.forward_macs for cost in costs)
    return sum(cost.train_macs for cost in costs) / backprop if backprop else None


def _peak_bytes(group: Sequence[BlockCost]) -> int:
    """Where in its backward pass a group takes the most: blocks after that place are done, and of
    segments before it only what arrives is held."""
    most = arrived = 0
    for number, costs in groupby(group, lambda cost: cost.segment):
        segment = list(costs)
        arrived += segment[0].arrived_bytes if number else 0
        held = accumulate(cost.activation_bytes for cost in segment)
        at_work = (b + cost.working_bytes for b, cost in zip(held, segment, strict=True))
        most = max(most, arrived + max(at_work))
        arrived += 0 if number else segment[0].arrived_bytes
    return most


def _weights(spec: BlockSpec) -> int:
    layer = spec.layer
    return layer.in_features * layer.out_features * max(layer.kernel, 1) ** 2


def _g_weights(spec: BlockSpec) -> int:
    return 0 if spec.sim is None else spec.sim.weights


def _classifier(spec: BlockSpec) -> tuple[tuple[int, int], ...]:
    return spec.pred.layers if spec.pred else ()


def _rebuilds(spec: BlockSpec) -> bool:
    """Whether a layer as large as its own rebuilds the block's input."""
    return spec.unsupervised == "recon" and spec.index > 0 and not spec.is_output


def _parameters(spec: BlockSpec) -> int:
    if spec.custom is not None:
        return spec.custom.parameters
    layers = 1 + (_shortcut_weights(spec) > 0)
    biases = layers * spec.layer.out_features
    output = spec.norms_output + (_shortcut_weights(spec) > 0 and not spec.activates_input)
    normed = output * spec.layer.out_features + spec.activates_input * spec.layer.in_features
    scales_and_shifts = 2 * normed * spec.batch_norm
    return _weights(spec) + _shortcut_weights(spec) + biases + scales_and_shifts


def _shortcut_weights(spec: BlockSpec) -> int:
    layer = spec.shortcut.layer if spec.shortcut else None
    return layer.in_features * layer.out_features * layer.kernel**2 if layer else 0


def _head_parameters(spec: BlockSpec) -> int:
    classifier = sum((n_in + 1) * n_out for n_in, n_out in _classifier(spec))
    projection = spec.projection * spec.classes
    rebuilding = (_weights(spec) + spec.layer.in_features) * _rebuilds(spec)
    of_rule = spec.rule.parameters if spec.rule else 0
    return _g_weights(spec) + classifier + projection + rebuilding + of_rule


def _forward_macs(spec: BlockSpec) -> int:
    rows = spec.in_training.rows
    if spec.custom is not None:
        return rows * spec.custom.forward_macs
    return rows * (_weights(spec) + _shortcut_weights(spec)) * prod(spec.shape[1:])


def _sent_bytes(spec: BlockSpec, element_bytes: int) -> int:
    """Of an example: its rows of what is passed on, and what is carried on."""
    leaves = spec.leaves_in_training
    return leaves.rows * prod(spec.out_shape) * element_bytes + leaves.carried_bytes


def _head_macs(spec: BlockSpec) -> int:
    classifier = sum(n_in * n_out for n_in, n_out in _classifier(spec))
    rebuilding = _weights(spec) * _rebuilds(spec) * prod(spec.shape[1:])
    return _g_macs(spec) + rebuilding + classifier + (spec.rule.forward_macs if spec.rule else 0)


def _g_macs(spec: BlockSpec) -> int:
    if spec.sim is None or not spec.sim.features:
        return 0
    return int(spec.sim.share * _g_weights(spec) * _g_positions(spec))


def _g_positions(spec: BlockSpec) -> int:
    """At which g is applied: pixels, or what has features of its own."""
    assert spec.sim is not None, "asked of no other"
    shape = spec.sim.pool.out_shape(spec.shape) if spec.sim.pool else spec.shape
    return prod(shape) // spec.sim.features


def _held_numbers(spec: BlockSpec) -> int:
    """Per example: what arrives, batch norm's input, the activation (non-linearities work in place,
    but in a user's own modules), what is passed on, a classifier's hidden layers."""
    is_read = spec.has_loss or not spec.passes_raw  # else only its sum is passed on
    is_normed = spec.custom.normalises if spec.custom else spec.norms_output and is_read
    tensors = 1 + is_normed + (spec.custom is not None)
    hidden = sum(spec.pred.hidden) if spec.pred else 0
    held = tensors * prod(spec.shape) + _passed_numbers(spec) + hidden
    held += spec.activates_input * prod(spec.in_shape)
    return _arrived_numbers(spec) + _shortcut_numbers(spec) + held


def _passing_numbers(spec: BlockSpec) -> int:
    """Per example, of a block that learns nothing: what arrives, what is made of it one after the
    other, and what is passed on or added to it, all of which is gone with the next block."""
    size = prod(spec.shape)
    arrived = _arrived_numbers(spec) + spec.same_group * prod(spec.in_shape)
    held = arrived + spec.activates_input * prod(spec.in_shape) + size
    if spec.shortcut is not None:
        layer = spec.shortcut.layer
        if layer is None:
            return held + 2 * size
        return held + layer.in_features * prod(spec.shape[1:]) * layer.stride**2 + 2 * size
    is_made_anew = spec.custom is not None or (spec.norms_output and not spec.passes_raw)
    passed = 0 if _passes_all(spec) else prod(spec.out_shape)
    return held + max(is_made_anew * size, passed)


def _arrived_numbers(spec: BlockSpec) -> int:
    """The input, unless the block before holds it, and its copy where a linear layer reads feature
    maps, which lie channels last, or a convolution reads images, which don't."""
    wants_maps, are_maps = spec.layer.kind == "conv", spec.index > 0
    is_copied = prod(spec.in_shape[1:]) > 1 and wants_maps != are_maps and spec.custom is None
    return prod(spec.in_shape) * ((not spec.same_group) + is_copied)


def _shortcut_numbers(spec: BlockSpec) -> int:
    """What a residual connection brings, every stride-th pixel of it, and what its layer gives."""
    if spec.shortcut is None:
        return 0
    layer, size = spec.shortcut.layer, prod(spec.shape)
    if layer is None:
        return size * (not spec.same_group)
    taken = layer.in_features * prod(spec.shape[1:])
    copies = (not spec.same_group) * layer.stride**2 + (layer.stride > 1)
    return taken * copies + size * (spec.batch_norm and not spec.activates_input)


def _passed_numbers(spec: BlockSpec) -> int:
    """What dropout and pooling make of the activation; where it learns from later blocks, also
    the mask, or the places of the maxima (two numbers wide)."""
    if _passes_all(spec):
        return 0
    learns_later = not spec.has_local_loss
    has_mask = spec.layer.kind == "linear" or spec.drops_units  # one of channels takes nothing
    places = 2 if spec.pool and spec.pool.kind == "max" else has_mask
    return prod(spec.out_shape) * (1 + learns_later * places)


def _passes_all(spec: BlockSpec) -> bool:
    """Whether the next block receives the activation itself, which then stays to the end."""
    return spec.pool is None and spec.dropout == 0 and spec.shape == spec.out_shape


def _working_bytes(spec: BlockSpec, batch_size: int, element_bytes: int) -> int:
    """What comes and goes with the backward pass: for the losses first, then for the layer."""
    for_losses, for_layer = (n * prod(spec.shape) for n in _working_tensors(spec))
    if spec.sim is not None and spec.sim.features and not spec.sim.is_own_shape:
        for_losses = _working_numbers_of_cheaper(spec)
    if spec.pred and len(spec.shape) > 1:
        for_losses += 2 * spec.pred.features  # pooled maps and their gradient
    size = batch_size * element_bytes
    return max(for_losses * size + _compared_bytes(spec, batch_size), for_layer * size)


def _working_tensors(spec: BlockSpec) -> tuple[int, int]:
    """Of the activation's size: g(h), its directions and gradients, those of h and of batch norm's
    input. Of feature maps, gradients take the place of g(h) or, if it is free, of h."""
    stays = int(_passes_all(spec) and not spec.passes_raw)
    if spec.recomputable:  # as it is on a CPU
        return stays, stays
    has_map = spec.sim is not None and spec.sim.features > 0
    return has_map * (1 if _g_is_by_hand(spec) else 3), 2 + stays if spec.normalises else 1


def _working_numbers_of_cheaper(spec: BlockSpec) -> int:
    """Of a map that is not the paper's: g(h), what it is of and the gradient of that, and the
    gradient of h."""
    sim = spec.sim
    assert sim is not None, "asked of no other"
    positions = _g_positions(spec)
    copies = 1 if sim.kind == "conv" else 3
    seen = 2 * sim.features * positions * (sim.pool is not None)
    return seen + copies * sim.out_features * positions + prod(spec.shape)


def _g_is_by_hand(spec: BlockSpec) -> bool:
    """Whether what follows the similarity map is computed a few examples at a time."""
    return spec.sim is not None and spec.sim.kind == "conv"


def _compared_bytes(spec: BlockSpec, batch_size: int) -> int:
    """Similarities and what they are of, or the rebuilt input and its copies, all in fp32."""
    copies = {"none": 0, "sim": 3 * (spec.layer.kind == "linear"), "recon": 4 * _rebuilds(spec)}
    numbers = copies[spec.unsupervised] * prod(spec.in_shape) * batch_size
    if spec.sim is not None:
        numbers += _SIMILARITY_MATRICES * batch_size**2
        if spec.sim.features and _g_is_by_hand(spec):
            numbers += min(2 * prod(spec.shape) * batch_size, _SLICES)
    return numbers * _PARAMETER_BYTES
