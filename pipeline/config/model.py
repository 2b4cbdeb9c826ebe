"""The `model` section of a configuration: which network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pipeline.config.schema import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    Misfit,
    MisfitsError,
    Section,
    brief,
    model_validator,
)
from pipeline.config.user_code import ObjectName, arguments_of
from pipeline.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODEL_NAMES = (
    "mlp", "vgg", "vgg6a", "vgg6b", "vgg8", "vgg8a", "vgg8b", "vgg11", "vgg11b", "vgg13", "vgg16",
    "vgg19", "resnet18", "resnet34", "factory",
)  # fmt: skip
RESIDUAL_NAMES = ("resnet", "wrn-")
"""How the names of networks with shortcuts begin."""
_WIDE = "wrn-([0-9]{2,4})-([0-9]{1,2})"
"""Depth and width."""
PoolingName: TypeAlias = Literal["M", "M3", "M4", "A", "A3", "A4"]
POOLING_NAMES = get_args(PoolingName)
MAX_UNITS = 1 << 20
"""Of a fully connected layer, or channels of a convolution."""
MAX_LAYERS = 1 << 10
"""Hidden layers of a network: each is a process unless --stages says otherwise."""


def _model_name(name: str) -> str:
    if name in MODEL_NAMES:
        return name
    wide = re.fullmatch(_WIDE, name)
    depth, width = (int(wide[1]), int(wide[2])) if wide else (0, 0)
    if 10 <= depth <= MAX_LAYERS and depth % 6 == 4 and 1 <= width <= 64:
        return name
    raise ValueError(
        f"{brief(name)} is not allowed: use one of {', '.join(MODEL_NAMES)}, or wrn-DEPTH-WIDTH, a "
        f"wide residual network as wrn-28-10 (DEPTH is 6n + 4 and at most {MAX_LAYERS}, WIDTH at "
        f"most 64){did_you_mean(name, MODEL_NAMES)}"
    )


_NAMES_IN_SCHEMA = {"anyOf": [{"enum": [*MODEL_NAMES]}, {"pattern": f"^{_WIDE}$"}]}
ModelName: TypeAlias = Annotated[
    str, AfterValidator(_model_name), Field(json_schema_extra=_NAMES_IN_SCHEMA)
]


def _group_size(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and value != "all":
        raise ValueError(f"{brief(value)} is not allowed: use a number of layers from 1, or all")
    return value


def _layer_item(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole and 1 <= value <= MAX_UNITS) and value not in POOLING_NAMES:
        allowed = ", ".join(POOLING_NAMES)
        rule = f": {brief(value)} is neither a number of channels (1 to {MAX_UNITS}) nor {allowed}"
        raise MisfitsError(Misfit("model.layers", rule))
    return value


LayerItem: TypeAlias = Annotated[
    Annotated[int, Field(ge=1, le=MAX_UNITS)] | PoolingName, BeforeValidator(_layer_item)
]


def _as_run(value: Any) -> Any:
    """A text alone is the folder of a run."""
    return {"run": value} if isinstance(value, str) else value


def _or_a_text(schema: dict[str, Any]) -> None:
    """Lets the JSON schema of a key allow a text, too."""
    schema["anyOf"] = [{"type": "string"}, *schema["anyOf"]]


def _checkpoint(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value not in ("last", "best"):
        raise ValueError(
            f"{brief(value)} is not allowed: use last, best, or the step of a checkpoint"
        )
    return value


_Blocks: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MAX_LAYERS)], ...],
    Field(strict=False, max_length=MAX_LAYERS + 1),
]
"""Indices of blocks, counted from 0, the output layer last."""


class InitFrom(Section):
    """What a network begins with."""

    run: str = Field(min_length=1)
    """The folder of a run."""
    checkpoint: Annotated[
        Annotated[int, Field(ge=0)] | Literal["last", "best"], BeforeValidator(_checkpoint)
    ] = "last"
    """Which of its checkpoints: the newest, the best, or that of a step."""
    blocks: Annotated[_Blocks, Field(min_length=1)] | None = None
    """Which of its blocks, by index; all of them."""


class ModelConfig(Section):
    """The network: a stack of hidden blocks and an output layer."""

    named_by: ClassVar[Mapping[str, str]] = {"factory": "factory"}

    name: ModelName
    """`mlp`, a VGG preset, `vgg` with explicit `layers`, `resnet18`, `resnet34`, or a wide
    residual network `wrn-DEPTH-WIDTH`, as `wrn-28-10`: post-activation, unless `preactivation`."""
    layers: (
        Annotated[tuple[LayerItem, ...], Field(strict=False, max_length=2 * MAX_LAYERS)] | None
    ) = None
    """Only for `vgg`: channels, and M M3 M4 (max) or A A3 A4 (average) for pooling."""
    feat_mult: float = Field(default=1.0, gt=0, le=64)
    """Multiplies the channels of every convolution."""
    hidden_layers: int = Field(default=1, ge=0, le=MAX_LAYERS)
    """Fully connected hidden blocks: all of an MLP's, or those after the convolutions. Residual
    networks have none unless told."""
    hidden: int = Field(default=1024, ge=1, le=MAX_UNITS)
    """Units of a fully connected block."""
    nonlinearity: Literal["auto", "relu", "leaky_relu"] = "auto"
    """`auto`: leaky ReLU (slope 0.01) for `sim` and `predsim`, ReLU otherwise, as in the paper."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of units (of whole channels after a convolution) set to zero in training."""
    batch_norm: bool = True
    """Batch normalisation before every non-linearity."""
    residual: bool = True
    """For `resnet…` and `wrn-…`: shortcuts around each two convolutions. The paper found that
    local losses do better without them (section 5.1)."""
    preactivation: bool = False
    """For `wrn-…`: batch norm and non-linearity before each convolution of a unit instead of after
    it, as in the literature (Zagoruyko & Komodakis 2016); `dropout` then drops single units, and
    only between the two convolutions."""
    group: Annotated[Annotated[int, Field(ge=1)] | Literal["all"], BeforeValidator(_group_size)] = 1
    """Hidden layers that learn together by backprop, from the local loss of the last of them;
    1: the paper's local learning, `all`: global backprop with one local head."""
    factory: ObjectName | None = None
    """A network of your own, as `package.module:function`, installed or in the current folder:
    the function gives an `nn.Sequential`, of which every child with parameters is a block, or
    another `nn.Module` whose forward is a chain, which is cut at its own blocks. It takes the place
    of `name`."""
    kwargs: Annotated[dict[str, JsonValue], arguments_of("model.kwargs")] = Field(default={})
    """What `factory` is called with."""
    init_from: Annotated[
        InitFrom | None,
        BeforeValidator(_as_run),
        Field(json_schema_extra=_or_a_text),
    ] = None
    """Begin with what another run has learned: its folder, or {run: FOLDER, checkpoint: best,
    blocks: [0, 1]}, where `checkpoint` is last, best or a step, and `blocks` says which are taken
    (all). Heads, and what depends on the number of classes, begin anew where they differ."""
    freeze: _Blocks = ()
    """Blocks that learn nothing, counted from 0: in training, too, they compute as in a test,
    without dropout, and their batch norms stay as they are. They have no heads and no optimizer."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_a_kind(cls, tree: Any) -> Any:
        """Residual networks end in an average over space."""
        if isinstance(tree, dict) and str(tree.get("name")).startswith(RESIDUAL_NAMES):
            return {"hidden_layers": 0, **tree}
        return tree

    def misfits(self) -> Iterator[Misfit]:
        """What belongs to another network."""
        if self.factory or self.name == "factory" or self.kwargs:
            yield from self._misfits_of_a_factory()
            return
        if not self.residual and not self.name.startswith(RESIDUAL_NAMES):
            yield Misfit("model.residual", f": model.name {self.name} has no shortcuts to remove")
        if self.preactivation and not self.name.startswith("wrn-"):
            rule = f": model.name {self.name} has no such form, wrn-DEPTH-WIDTH has"
            yield Misfit("model.preactivation", rule)
        if self.name == "mlp" and self.hidden_layers < 1:
            yield Misfit("model.hidden_layers", "0: model.name mlp needs at least 1")
        yield from self._misfits_of_layers()

    def _misfits_of_a_factory(self) -> Iterator[Misfit]:
        if self.factory is None:
            key, said = ("name", "factory needs") if self.name == "factory" else ("kwargs", "needs")
            yield Misfit(f"model.{key}", f"{said} model.factory, as package.module:function")
            return
        if self.name != "factory":
            yield Misfit(
                "model.factory", ": leave model.name out, the function says what the network is"
            )
        allowed = {"name", "factory", "kwargs", "group", "nonlinearity", "init_from", "freeze"}
        for key, field in type(self).model_fields.items():
            if key not in allowed and getattr(self, key) != field.default:
                yield Misfit(f"model.{key}", ": with model.factory the function decides this")

    def _misfits_of_layers(self) -> Iterator[Misfit]:
        if self.name != "vgg" and self.layers is not None:
            yield Misfit("model.layers", f"belongs to model.name vgg, not to {self.name}")
            return
        if self.name == "vgg" and not self.layers:
            yield Misfit("model.name", "vgg needs model.layers, as [128, M, 256, M]")
        for before, item in zip((None, *(self.layers or ())), self.layers or (), strict=False):
            if isinstance(item, str) and not isinstance(before, int):
                yield Misfit("model.layers", f": the pooling {item} must follow a convolution")
