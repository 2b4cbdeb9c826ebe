"""Networks as stacks of layers: which layer, which pooling after it, which shortcut into it.

Sizes of linear layers are filled in by `from_config.py`, which knows what reaches them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.network.specs import LayerSpec, PoolSpec, ShortcutSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config.model import ModelConfig
    from pipeline.network.specs import Shape

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


_AUTHORS, _SIMONYAN = "Nøkland & Eidnes 2019", "Simonyan & Zisserman 2015"
_SOURCES = {
    **dict.fromkeys(_VGG, f"code of {_AUTHORS}"),
    **dict.fromkeys(("vgg8b", "vgg11b"), _AUTHORS),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), _SIMONYAN),
}
"""Where the convolutions of a preset are from; the fully connected layers are the config's."""


_POOLS = {
    "M": PoolSpec("max", (2, 2), (2, 2), (0, 0)),
    "M3": PoolSpec("max", (3, 3), (2, 2), (1, 1)),
    "M4": PoolSpec("max", (4, 4), (4, 4), (0, 0)),
    "A": PoolSpec("average", (2, 2), (2, 2), (0, 0)),
    "A3": PoolSpec("average", (3, 3), (2, 2), (1, 1)),
    "A4": PoolSpec("average", (4, 4), (4, 4), (0, 0)),
}


_RESNET: dict[str, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Residual units per width (He et al. 2016)."""


WIDE = "wrn-DEPTH-WIDTH"
"""A name for the names of all wide residual networks."""


def described(name: str) -> tuple[str, str]:
    """A built-in network in words, and who has published it, if it is somebody's."""
    if name == "mlp":
        return "model.hidden_layers fully connected layers of model.hidden units", ""
    if name == "vgg":
        return "convolutions and poolings as model.layers lists them", ""
    if name == WIDE:
        channels = "stages of 16, 32 and 64 times WIDTH channels"
        return f"DEPTH layers with shortcuts, {channels}", "Zagoruyko & Komodakis 2016"
    if name in _RESNET:
        convolutions = 1 + 2 * sum(_RESNET[name])
        words = f"{convolutions} convolutions, shortcuts around each two, 64 to 512 channels"
        return words, "He et al. 2016"
    items = _VGG[name]
    convolutions = sum(isinstance(item, int) for item in items)
    return f"{convolutions} convolutions: {' '.join(map(str, items))}", _SOURCES[name]


class Layer(NamedTuple):
    """A hidden layer with what follows it (pooling) and what runs into it (a shortcut).

    `activates_input`, `passes_raw`: as in `BlockSpec`. `drops`: what dropout after it drops.
    """

    layer: LayerSpec
    pool: PoolSpec | None = None
    shortcut: ShortcutSpec | None = None
    activates_input: bool = False
    passes_raw: bool = False
    drops: Literal["nothing", "units", "channels"] = "channels"


def hidden_layers(model: ModelConfig, image_shape: Shape) -> list[Layer]:
    """The hidden layers in order; the inputs of linear ones are left at 0.

    Args:
        image_shape: (channels, height, width) of one image.
    """
    if model.name in _RESNET or model.name.startswith("wrn-"):
        convolutions = _residual_network(model, image_shape)
    else:
        convolutions = _vgg(model, image_shape)
    return convolutions + [Layer(LayerSpec("linear", 0, model.hidden))] * model.hidden_layers


def _vgg(model: ModelConfig, image_shape: Shape) -> list[Layer]:
    """Convolutions and poolings as `_VGG` or `model.layers` lists them; none for an MLP."""
    layers: list[Layer] = []
    channels = image_shape[0]
    for item in () if model.name == "mlp" else model.layers or _VGG[model.name]:
        if isinstance(item, str):
            layers[-1] = layers[-1]._replace(pool=_POOLS[item])
            continue
        width = _width(item, model)
        layers.append(Layer(_convolution(channels, width) if layers else _stem(image_shape, width)))
        channels = width
    return layers


def _residual_network(model: ModelConfig, image_shape: Shape) -> list[Layer]:
    """A stem, then units of two 3×3 convolutions with a shortcut around them, then the average
    over space. Batch norm and non-linearity follow each convolution, so that every one of them
    has an activation to learn from; the first unit of a width, but for the first, halves sides.

    With `model.preactivation` they precede the two, the second halves, and sums go on as they are:

        x ──norm, act──▶ 3×3 ──dropout──▶ norm, act ──▶ 3×3, stride ──▶ + ──▶ x of the next unit
        └──────────────── as it is, or 1×1 with the stride ─────────────┘

    Before the first unit is the stem alone, after the last a norm and non-linearity.
    """
    stem, widths, units = _residual_plan(model)
    pool = _POOLS["M3"] if model.name in _RESNET and _large(image_shape) else None
    layers = [Layer(_stem(image_shape, stem), pool)]
    if model.preactivation:
        layers = [layers[0]._replace(passes_raw=True, drops="nothing")]
    for number, (width, count) in enumerate(zip(widths, units, strict=True)):
        for unit in range(count):
            stride = 2 if unit == 0 and number > 0 else 1
            layers += _unit(layers, width, stride, model)
    last = layers[-1]._replace(pool=_over_space(layers, image_shape), passes_raw=False)
    return [*layers[:-1], last]


def _residual_plan(model: ModelConfig) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Channels of the stem; channels of each width; residual units of each width."""
    if model.name in _RESNET:
        widths = tuple(_width(width, model) for width in (64, 128, 256, 512))
        return widths[0], widths, _RESNET[model.name]
    depth, widening = (int(number) for number in model.name.split("-")[1:])
    widths = tuple(_width(width * widening, model) for width in (16, 32, 64))
    return _width(16, model), widths, ((depth - 4) // 6,) * 3  # Zagoruyko & Komodakis 2016


def _unit(before: Sequence[Layer], width: int, stride: int, model: ModelConfig) -> list[Layer]:
    channels = before[-1].layer.out_features
    shortcut = _around(before, width, stride) if model.residual else None
    if not model.preactivation:
        first = Layer(_convolution(channels, width, stride))
        return [first, Layer(_convolution(width, width), shortcut=shortcut)]
    first = Layer(_convolution(channels, width), drops="units")
    second = Layer(_convolution(width, width, stride), shortcut=shortcut, drops="nothing")
    return [one._replace(activates_input=True, passes_raw=True) for one in (first, second)]


def _around(before: Sequence[Layer], width: int, stride: int) -> ShortcutSpec:
    """The shortcut around a unit that begins after `before`."""
    channels = before[-1].layer.out_features
    fits = stride == 1 and channels == width
    change = None if fits else LayerSpec("conv", channels, width, kernel=1, stride=stride)
    return ShortcutSpec(source=len(before), layer=change)


def _over_space(layers: Sequence[Layer], image_shape: Shape) -> PoolSpec:
    """The average over all that is left of height and width."""
    shape = image_shape
    for layer in layers:
        shape = layer.layer.out_shape(shape)
        shape = layer.pool.out_shape(shape) if layer.pool else shape
    sides = (shape[1], shape[2])
    return PoolSpec("average", sides, sides, (0, 0))


def _width(channels: int, model: ModelConfig) -> int:
    return max(1, int(channels * model.feat_mult))


def _large(image_shape: Shape) -> bool:
    return max(image_shape[1:]) > 64


def _stem(image_shape: Shape, width: int) -> LayerSpec:
    """The first convolution: 7×7 with stride 2 for large images (section 4.7 of the paper)."""
    if _large(image_shape):
        return LayerSpec("conv", image_shape[0], width, kernel=7, stride=2, padding=3)
    return _convolution(image_shape[0], width)


def _convolution(channels: int, width: int, stride: int = 1) -> LayerSpec:
    return LayerSpec("conv", channels, width, kernel=3, stride=stride, padding=1)
