"""Config -> list of block specifications: shapes and sizes, no tensors, no torch.

A block is one hidden layer with its heads, its dropout and the pooling that follows it; the
output layer is the last block (section 4 of the paper). `block.py` builds modules from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import Config, LossConfig, ModelConfig
    from pipeline.datasets import DataFacts

Shape: TypeAlias = tuple[int, ...]
"""Shape of one example: (channels, height, width) or (features,)."""

_VGG: dict[str, tuple[int | str, ...]] = {
    "vgg6a": (128, "M", 256, "M", 512, "M", 512),
    "vgg6b": (128, "M", 256, "M", 512, "M", 512, "M"),
    "vgg8": (64, "M", 128, "M", 256, "M", 512, "M", 512, "M"),
    "vgg8a": (128, 256, "M", 256, 512, "M", 512, "M", 512),
    "vgg8b": (128, 256, "M", 256, 512, "M", 512, "M", 512, "M"),
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg11b": (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M",
              512, 512, 512, "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M",
              512, 512, 512, 512, "M"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Pooling over space: kernel and padding as (height, width)."""

    kind: Literal["max", "average"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def out_shape(self, shape: Shape) -> Shape:
        """Shape of one pooled example; sizes round down."""
        channels, *sides = shape
        pooled = [
            (side + 2 * pad - kernel) // stride + 1
            for side, pad, kernel, stride in zip(
                sides, self.padding, self.kernel, self.stride, strict=True
            )
        ]
        return (channels, *pooled)


_POOLS = {
    "M": PoolSpec("max", (2, 2), (2, 2), (0, 0)),
    "M3": PoolSpec("max", (3, 3), (2, 2), (1, 1)),
    "M4": PoolSpec("max", (4, 4), (4, 4), (0, 0)),
    "A": PoolSpec("average", (2, 2), (2, 2), (0, 0)),
    "A3": PoolSpec("average", (3, 3), (2, 2), (1, 1)),
    "A4": PoolSpec("average", (4, 4), (4, 4), (0, 0)),
}


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The layer itself, with bias. `kernel` is 0 for a linear layer."""

    kind: Literal["linear", "conv"]
    in_features: int
    out_features: int
    kernel: int = 0
    stride: int = 1
    padding: int = 0

    def out_shape(self, shape: Shape) -> Shape:
        """Shape of one example after the layer."""
        if self.kind == "linear":
            return (self.out_features,)
        height, width = (
            (side + 2 * self.padding - self.kernel) // self.stride + 1 for side in shape[1:]
        )
        return (self.out_features, height, width)


@dataclass(frozen=True, slots=True)
class PredSpec:
    """The local classifier: optional average pooling, then linear `features` -> `outputs`.

    `feedback`: what carries the error back to the block: `learned` (the transpose of weights
    that are trained), `aligned` (a fixed random matrix, for the bio form), or, for a classifier
    that is never trained, `transpose`, `random` or `sign`.
    """

    pool: PoolSpec | None
    features: int
    outputs: int
    weight: float
    feedback: Literal["learned", "aligned", "transpose", "random", "sign"] = "learned"


@dataclass(frozen=True, slots=True)
class SimSpec:
    """The similarity head: a map g of the activation onto its own shape, without bias.

    The bio form has no map (`features` 0) and pools the activation as a classifier does.
    """

    kind: Literal["linear", "conv"]
    features: int
    weight: float
    pool: PoolSpec | None = None


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """Everything needed to build one block and to reckon what it costs.

    `in_shape`: what arrives; `shape`: the activation the heads see; `out_shape`: what is sent.
    """

    index: int
    in_shape: Shape
    layer: LayerSpec
    shape: Shape
    out_shape: Shape
    classes: int
    nonlinearity: Literal["relu", "leaky_relu"] = "relu"
    batch_norm: bool = False
    dropout: float = 0.0
    pool: PoolSpec | None = None
    pred: PredSpec | None = None
    sim: SimSpec | None = None
    projection: int = 0
    """Size of the fixed random projection of the label (bio forms); 0: the label itself."""
    unsupervised: Literal["none", "sim", "recon"] = "none"
    alpha: float = 0.0
    """Weight of the unsupervised part of the loss."""
    zero_start: bool = False
    """Whether the layer's weight starts at zero, as that of the output does under local losses:
    it is then a classifier like the local ones."""
    output_weight: float | None = None
    """Factor of the output block's cross-entropy; None for hidden blocks."""

    @property
    def is_output(self) -> bool:
        """Whether this is the output layer."""
        return self.output_weight is not None

    @property
    def name(self) -> str:
        """How people call it: `conv 3→128` or `linear 2048→1024`."""
        what = "output" if self.is_output else self.layer.kind
        return f"{what} {self.layer.in_features}→{self.layer.out_features}"


def network_specs(config: Config, facts: DataFacts) -> tuple[BlockSpec, ...]:
    """The blocks of the configured network for a data set.

    Raises:
        ConfigError: as `build_specs`.
    """
    return build_specs(config.model, config.loss, config.nonlinearity, facts.shape, facts.classes)


def build_specs(
    model: ModelConfig,
    loss: LossConfig,
    nonlinearity: Literal["relu", "leaky_relu"],
    image_shape: Shape,
    classes: int,
) -> tuple[BlockSpec, ...]:
    """Hidden blocks in order, then the output block.

    Args:
        image_shape: (channels, height, width) of one image.

    Raises:
        ConfigError: where pooling leaves nothing of the image.
    """
    specs: list[BlockSpec] = []
    shape = image_shape
    for layer, pool in _layers(model, image_shape):
        layer = layer if layer.kind == "conv" else LayerSpec("linear", prod(shape), model.hidden)
        activation = layer.out_shape(shape)
        out_shape = pool.out_shape(activation) if pool else activation
        if min(out_shape) < 1:
            raise ConfigError(
                f"model {model.name}: block {len(specs)} would pool {activation} to {out_shape}: "
                f"images of {image_shape[1]}×{image_shape[2]} pixels are too small for it"
            )
        pred, sim = _heads(loss, activation, classes)
        specs.append(
            BlockSpec(
                index=len(specs),
                in_shape=shape,
                layer=layer,
                shape=activation,
                out_shape=out_shape,
                classes=classes,
                nonlinearity=nonlinearity,
                batch_norm=model.batch_norm,
                dropout=model.dropout,
                pool=pool,
                pred=pred,
                sim=sim,
                projection=loss.target_projection if loss.bio else 0,
                unsupervised=loss.unsupervised,
                alpha=loss.alpha,
            )
        )
        shape = out_shape
    return (*specs, _output(len(specs), shape, classes, loss))


def hidden_count(specs: Sequence[BlockSpec]) -> int:
    """Hidden layers: the most stages a network can be divided into."""
    return sum(not spec.is_output for spec in specs)


def decoder_pool(shape: Shape, limit: int) -> PoolSpec | None:
    """Average pooling before a local classifier, so that at most `limit` inputs remain.

    The kernel's height, then its width, is doubled while C·⌈H/k_h⌉·⌈W/k_w⌉ exceeds `limit`;
    zeros of the padding count in the average. None where no pooling is needed.
    """
    channels, height, width = shape
    kernel_h = kernel_w = 1

    def inputs() -> int:
        return channels * ceil(height / kernel_h) * ceil(width / kernel_w)

    while inputs() > limit and kernel_h < height:
        kernel_h *= 2
        if inputs() > limit:
            kernel_w *= 2
    if kernel_h == kernel_w == 1:
        return None
    padding = (_decoder_padding(height, kernel_h), _decoder_padding(width, kernel_w))
    return PoolSpec("average", (kernel_h, kernel_w), (kernel_h, kernel_w), padding)


def _decoder_padding(side: int, kernel: int) -> int:
    return (kernel * (ceil(side / kernel) - side // kernel)) // 2


def _layers(model: ModelConfig, image_shape: Shape) -> list[tuple[LayerSpec, PoolSpec | None]]:
    """Each hidden layer with the pooling after it; linear sizes are filled in by the caller."""
    if model.name == "mlp":
        items: tuple[int | str, ...] = ()
    else:
        items = model.layers or _VGG[model.name]
    layers: list[tuple[LayerSpec, PoolSpec | None]] = []
    channels = image_shape[0]
    for item in items:
        if isinstance(item, int):
            layers.append(
                (_convolution(channels, item, model.feat_mult, image_shape, layers), None)
            )
            channels = layers[-1][0].out_features
        else:
            layers.append((*layers.pop()[:1], _POOLS[item]))
    return layers + [(LayerSpec("linear", 0, model.hidden), None)] * model.hidden_layers


def _convolution(
    channels: int,
    item: int,
    feat_mult: float,
    image_shape: Shape,
    before: Sequence[object],
) -> LayerSpec:
    width = max(1, int(item * feat_mult))
    if not before and max(image_shape[1:]) > 64:
        return LayerSpec("conv", channels, width, kernel=7, stride=2, padding=3)
    return LayerSpec("conv", channels, width, kernel=3, padding=1)


def _heads(loss: LossConfig, shape: Shape, classes: int) -> tuple[PredSpec | None, SimSpec | None]:
    pred_weight = {"pred": 1.0, "predsim": 1.0 - loss.beta}
    sim_weight = {"sim": 1.0, "predsim": loss.beta}
    pred = sim = None
    if loss.local in pred_weight:
        pred = _pred(loss, shape, classes, pred_weight[loss.local])
    if loss.local in sim_weight or loss.unsupervised == "sim":
        sim = _sim(loss, shape, sim_weight.get(loss.local or "", 0.0))
    return pred, sim


def _pred(loss: LossConfig, shape: Shape, classes: int, weight: float) -> PredSpec:
    pool = decoder_pool(shape, loss.dim_in_decoder) if len(shape) == 3 else None
    features = prod(pool.out_shape(shape) if pool else shape)
    if loss.bio:
        return PredSpec(pool, features, loss.target_projection, weight, "aligned")
    feedback = loss.feedback if loss.classifier == "fixed" else "learned"
    return PredSpec(pool, features, classes, weight, feedback)


def _sim(loss: LossConfig, shape: Shape, weight: float) -> SimSpec:
    kind: Literal["linear", "conv"] = "conv" if len(shape) == 3 else "linear"
    if loss.bio:
        pool = decoder_pool(shape, loss.dim_in_decoder) if len(shape) == 3 else None
        return SimSpec(kind, 0, weight, pool)
    return SimSpec(kind, shape[0], weight)


def _output(index: int, shape: Shape, classes: int, loss: LossConfig) -> BlockSpec:
    layer = LayerSpec("linear", prod(shape), classes)
    weight = 1.0 - loss.beta if loss.local == "predsim" else 1.0
    return BlockSpec(
        index,
        shape,
        layer,
        (classes,),
        (classes,),
        classes,
        zero_start=not loss.is_global,
        output_weight=weight,
    )
