"""Config -> list of block specifications: shapes and sizes, no tensors, no torch."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod
from typing import TYPE_CHECKING, Literal

from pipeline.config.model import MAX_LAYERS
from pipeline.errors import ConfigError
from pipeline.network.architectures import hidden_layers
from pipeline.network.named_blocks import with_frozen
from pipeline.network.rule_shapes import TracedRule
from pipeline.network.specs import BlockSpec, LayerSpec, PoolSpec, PredSpec, SimSpec
from pipeline.network.user_network import traced_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.config.loss import LossConfig
    from pipeline.config.model import ModelConfig
    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import Shape


def network_specs(config: Config, facts: DataFacts) -> tuple[BlockSpec, ...]:
    """The blocks of the configured network for a data set.

    Raises:
        ConfigError: as `build_specs` and `with_frozen`, and where a built-in network is not made
            for such data.
    """
    _check_loss(config, facts)
    if config.model.factory is None:
        _check_examples(config.model.name, facts)
    rule = TracedRule(config.loss, facts) if config.loss.rule else None
    has_output = rule is None or rule.has_output_layer
    if config.model.factory is None and has_output and facts.classes and facts.target_shape:
        raise ConfigError(
            f"model.name {config.model.name}: predicts one class for each example, and a target "
            f"has shape {facts.target_shape}: use a network of your own (model.factory), or a rule "
            "without an output layer"
        )
    specs = build_specs(
        config.model,
        config.loss,
        config.nonlinearity,
        facts.shape,
        facts.classes,
        rule,
        target_shape=facts.target_shape,
        are_tokens=facts.dtype == "int64",
    )
    return with_frozen(specs, config.model.freeze)


def _check_loss(config: Config, facts: DataFacts) -> None:
    """Raises ConfigError where a loss is for other targets, or another network."""
    loss, one_class = config.loss, bool(facts.classes) and not facts.target_shape
    if loss.local in ("pred", "sim", "predsim") and not one_class:
        raise ConfigError(
            f"loss.name {loss.name}: learns from one class for each example, and a target is "
            f"{facts.target_dtype} of shape {facts.target_shape}: use a rule (loss.rule), or "
            "global backprop (loss.name glob)"
        )
    if loss.label_smoothing and not facts.classes:
        raise ConfigError("loss.label_smoothing smooths classes, and the targets are numbers")
    if config.model.factory is not None and loss.unsupervised == "recon":
        raise ConfigError(
            "loss.unsupervised recon rebuilds a block's input by its layer backwards, which is not "
            f"known of the modules of model.factory {config.model.factory}; use sim or none"
        )


def _check_examples(name: str | None, facts: DataFacts) -> None:
    """Raises ConfigError where a built-in network is for other examples."""
    if facts.dtype == "int64":
        raise ConfigError(
            f"model.name {name}: computes with measurements, and the data are token ids (int64): "
            "use a network of your own (model.factory), or make them float32"
        )
    if name != "mlp" and len(facts.shape) != 3:
        raise ConfigError(
            f"model.name {name}: is for images of (channels, height, width), and an example has "
            f"shape {facts.shape}: use model.name mlp, or reshape the examples"
        )


def build_specs(
    model: ModelConfig,
    loss: LossConfig,
    nonlinearity: Literal["relu", "leaky_relu"],
    image_shape: Shape,
    classes: int,
    rule: TracedRule | None = None,
    *,
    target_shape: Shape = (),
    are_tokens: bool = False,
) -> tuple[BlockSpec, ...]:
    """Hidden blocks in order, then the output block, unless the rule does without.

    Args:
        image_shape: of one example, as (channels, height, width) of an image.
        rule: that of `loss.rule`, where there is one.
        target_shape: of the target of an example; `classes` of each place, 0 for numbers.
        are_tokens: whether examples are whole numbers, for a network of the user's own.

    Raises:
        ConfigError: where pooling leaves nothing of the image, or `loss.pred_hidden` is not
            for as many blocks as there are.
    """
    arrivals = _Arrivals(model, rule)
    if rule is not None:
        image_shape = rule.in_shape
    output: BlockSpec | None = None
    if model.factory is not None:
        hidden = traced_specs(
            model,
            nonlinearity,
            image_shape,
            classes,
            arrivals.entered,
            has_output=arrivals.output,
            target_shape=target_shape,
            are_tokens=are_tokens,
        )
        output = hidden.pop() if arrivals.output else None
    else:
        hidden = _hidden(model, nonlinearity, image_shape, classes, arrivals.entered)
        if arrivals.output:
            shape = hidden[-1].out_shape if hidden else image_shape
            outputs = classes or prod(target_shape)
            layer = LayerSpec("linear", prod(shape), outputs)
            output = BlockSpec(len(hidden), shape, layer, (outputs,), (outputs,), classes)
    if len(hidden) > MAX_LAYERS:
        raise ConfigError(
            f"model.{'factory' if model.factory else 'layers'}: a network of {len(hidden)} hidden "
            f"layers; at most {MAX_LAYERS} are allowed: several can be one block in a module of "
            "your own (model.factory)"
        )
    blocks = [replace(spec, target_shape=target_shape) for spec in _grouped(hidden, model, loss)]
    if rule is not None:
        blocks = list(rule.placed(blocks, arrivals.shapes))
    if output is None:
        return tuple(blocks)
    output = replace(_as_output(output, loss), target_shape=target_shape)
    return (*blocks, output if rule is None else rule.leaving(output))


class _Arrivals:
    """What arrives at each hidden block, of one row before a rule's `enter`, and what it computes
    on. `output`: whether there is an output layer."""

    def __init__(self, model: ModelConfig, rule: TracedRule | None) -> None:
        self._group, self._rule = model.group, rule
        self.output = rule is None or rule.has_output_layer
        self._shapes: dict[int, Shape] = {}

    @property
    def shapes(self) -> list[Shape]:
        """Of the blocks in order."""
        return [self._shapes[index] for index in sorted(self._shapes)]

    def entered(self, index: int, shape: Shape) -> Shape:
        """What block `index` computes on, where `shape` arrives."""
        self._shapes[index] = shape
        starts = index == 0 if self._group == "all" else index % int(self._group) == 0
        return self._rule.entered(shape) if self._rule and starts else shape


def _hidden(
    model: ModelConfig,
    nonlinearity: Literal["relu", "leaky_relu"],
    image_shape: Shape,
    classes: int,
    entered: Callable[[int, Shape], Shape],
) -> list[BlockSpec]:
    """The hidden blocks, before anything is said of how they learn."""
    specs: list[BlockSpec] = []
    shape = image_shape
    for index, hidden in enumerate(hidden_layers(model, image_shape)):
        layer, pool = hidden.layer, hidden.pool
        shape = entered(index, shape)
        if layer.kind == "linear":
            layer = LayerSpec("linear", prod(shape), model.hidden)
        activation = layer.out_shape(shape)
        spec = BlockSpec(
            index=index,
            in_shape=shape,
            layer=layer,
            shape=activation,
            out_shape=pool.out_shape(activation) if pool else activation,
            classes=classes,
            nonlinearity=nonlinearity,
            batch_norm=model.batch_norm,
            dropout=0.0 if hidden.drops == "nothing" else model.dropout,
            pool=pool,
            shortcut=hidden.shortcut,
            activates_input=hidden.activates_input,
            passes_raw=hidden.passes_raw,
            drops_units=hidden.drops == "units",
        )
        if min(spec.out_shape) < 1:
            raise ConfigError(
                f"model {model.name}: block {index} would pool {spec.shape} to {spec.out_shape}: "
                f"images of {image_shape[1]}×{image_shape[2]} pixels are too small for it"
            )
        specs.append(spec)
        shape = spec.out_shape
    return specs


def _grouped(
    hidden: Sequence[BlockSpec], model: ModelConfig, loss: LossConfig
) -> Iterator[BlockSpec]:
    """The hidden blocks in their groups: which of them have a local loss, where gradients stop."""
    size = model.group if isinstance(model.group, int) else len(hidden)
    ends = set[int]()
    if loss.local is not None and hidden:
        ends = {*range(size - 1, len(hidden), size), len(hidden) - 1}
    widths = dict(zip(sorted(ends), _classifier_widths(loss, len(ends)), strict=True))
    for spec in hidden:
        same_group = spec.index > 0 and (loss.is_global or spec.index - 1 not in ends)
        same_stage = same_group or _within_shortcut(hidden, spec.index)
        linked = replace(spec, same_group=same_group, same_stage=same_stage)
        yield _with_heads(linked, loss, widths[spec.index]) if spec.index in ends else linked


def _classifier_widths(loss: LossConfig, blocks: int) -> list[tuple[int, ...]]:
    """Units of the hidden layers of each local classifier, for `blocks` that have a local loss."""
    given = loss.pred_hidden
    entries = (given,) if isinstance(given, int) else given
    nested = [entry for entry in entries if isinstance(entry, tuple)]
    if not nested:
        return [tuple(units for units in entries if isinstance(units, int))] * blocks
    if len(nested) != blocks:
        raise ConfigError(
            f"loss.pred_hidden: {len(nested)} lists for {blocks} hidden blocks with a local loss;"
            " give one list for each ([] for a linear classifier), or one list for all"
        )
    return nested


def _within_shortcut(hidden: Sequence[BlockSpec], index: int) -> bool:
    """Whether a stage boundary just before a block would cut a residual connection."""
    return any(
        spec.shortcut is not None and spec.shortcut.source < index <= spec.index for spec in hidden
    )


def _with_heads(spec: BlockSpec, loss: LossConfig, hidden: tuple[int, ...]) -> BlockSpec:
    shape, are_maps = _as_pooled(spec.shape), len(spec.shape) == 3
    pool = decoder_pool(spec.shape, loss.dim_in_decoder)
    pred = sim = None
    if loss.local in ("pred", "predsim"):
        feedback = loss.feedback if loss.classifier == "fixed" else "learned"
        pred = PredSpec(
            pool,
            features=prod(pool.out_shape(shape) if pool else shape),
            outputs=loss.target_projection if loss.bio else spec.classes,
            weight=1.0 - loss.beta if loss.local == "predsim" else 1.0,
            feedback="aligned" if loss.bio else feedback,
            hidden=hidden,
            nonlinearity=spec.nonlinearity,
        )
    if loss.local in ("sim", "predsim") or loss.unsupervised == "sim":
        weight = {"sim": 1.0, "predsim": loss.beta}.get(loss.local or "", 0.0)
        kind: Literal["linear", "conv"] = "conv" if are_maps else "linear"
        features = shape[0] if are_maps else shape[-1]
        # the bio form has no map, and pools the activation as a classifier does
        sim = SimSpec(kind, 0, weight, pool)
        if not loss.bio:
            sim = _similarity_map(SimSpec(kind, features, weight), shape, loss)
    return replace(
        spec,
        pred=pred,
        sim=sim,
        projection=loss.target_projection if loss.bio else 0,
        unsupervised=loss.unsupervised,
        alpha=loss.alpha,
        label_smoothing=loss.label_smoothing,
    )


def _similarity_map(whole: SimSpec, shape: Shape, loss: LossConfig) -> SimSpec:
    """g as the config has it, for an activation of this shape; `whole`: the paper's."""
    pool, groups = None, 1
    if whole.kind == "conv":
        sides = (min(loss.similarity_pool, shape[1]), min(loss.similarity_pool, shape[2]))
        pool = PoolSpec("average", sides, sides, (0, 0)) if max(sides) > 1 else None
    outputs = max(round(loss.similarity_channels * whole.features), min(4, whole.features))
    if whole.kind == "conv":
        most = min(loss.similarity_groups, outputs)
        groups = next(n for n in range(most, 0, -1) if not (whole.features % n or outputs % n))
    return replace(
        whole,
        pool=pool,
        outputs=outputs if outputs < whole.features else 0,
        groups=groups,
        share=loss.similarity_batches,
        bf16=loss.similarity_bf16,
    )


def _as_pooled(shape: Shape) -> Shape:
    """The shape over which the heads pool: all positions in one row, but of feature maps."""
    return shape if len(shape) in (1, 3) else (prod(shape[:-1]), shape[-1])


def decoder_pool(shape: Shape, limit: int) -> PoolSpec | None:
    """Average pooling before a local classifier, so that at most `limit` inputs remain.

    The kernel's height, then its width, is doubled while C·⌈H/k_h⌉·⌈W/k_w⌉ exceeds `limit`;
    zeros of the padding count in the average. None where no pooling is needed.

    What is neither features alone nor feature maps is not in the paper. It is averaged over runs
    of neighbouring positions, D features at each of T, while D·⌈T/k⌉ exceeds `limit`.
    """
    are_maps = len(shape) == 3
    channels, height, width = shape if are_maps else (shape[-1], prod(shape[:-1]), 1)
    kernel_h = kernel_w = 1

    def inputs() -> int:
        return channels * ceil(height / kernel_h) * ceil(width / kernel_w)

    while inputs() > limit and kernel_h < height:
        kernel_h *= 2
        if inputs() > limit and are_maps:
            kernel_w *= 2
    if kernel_h == kernel_w == 1:
        return None
    padding = (_decoder_padding(height, kernel_h), _decoder_padding(width, kernel_w))
    return PoolSpec("average", (kernel_h, kernel_w), (kernel_h, kernel_w), padding)


def _decoder_padding(side: int, kernel: int) -> int:
    return (kernel * (ceil(side / kernel) - side // kernel)) // 2


def _as_output(spec: BlockSpec, loss: LossConfig) -> BlockSpec:
    """The last block: a classifier like the local ones, always in the last stage."""
    return replace(
        spec,
        zero_start=loss.local is not None and spec.custom is None,
        output_weight=1.0 - loss.beta if loss.local == "predsim" else 1.0,
        label_smoothing=loss.label_smoothing,
        same_group=loss.is_global,
        same_stage=True,
    )
