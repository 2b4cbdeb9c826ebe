"""What a block is, in shapes and sizes: no tensors, no torch.

A block is one hidden layer with its heads, its dropout and the pooling that follows it; the
output layer is the last block (section 4 of the paper). `from_config.py` makes these from a
configuration, `block.py` builds modules from them, `cost.py` reckons what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pipeline.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Shape: TypeAlias = tuple[int, ...]
"""Shape of one example: (features,), feature maps as (channels, height, width), or, of a user's own
network, any other: positions, of which each has features, as the (tokens, features) of a
transformer."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Pooling over space: kernel and padding as (height, width). Of (positions, features), height
    goes over the positions."""

    kind: Literal["max", "average"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def out_shape(self, shape: Shape) -> Shape:
        """Shape of one pooled example; sizes round down."""
        *channels, height, width = shape
        pooled = [
            (side + 2 * pad - kernel) // stride + 1
            for side, pad, kernel, stride in zip(
                (height, width), self.padding, self.kernel, self.stride, strict=True
            )
        ]
        return (*channels, *pooled)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The layer itself, with bias. `kernel` is 0 for a linear layer; a `custom` one is a user's
    own, of which only the numbers of features are known."""

    kind: Literal["linear", "conv", "custom"]
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
class CustomSpec:
    """What is known of a user's own modules: parameters, multiply-adds for one example, whether
    they normalise by batches, what the user calls them, if anything, and kinds of batch norm that
    aren't torch's own."""

    parameters: int
    forward_macs: int
    normalises: bool
    name: str = ""
    unusual_norms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShortcutSpec:
    """A residual connection: the input of block `source` is added before the non-linearity.

    `layer`: the 1×1 convolution that gives it the right shape, followed by a batch norm where the
    network has them, but for units whose input is activated; None: as it is.
    """

    source: int
    layer: LayerSpec | None = None


@dataclass(frozen=True, slots=True)
class PredSpec:
    """The local classifier: optional average pooling, then linear `features` -> `outputs`.

    `hidden`: units of further linear layers in between, each with `nonlinearity`.

    `feedback`: what carries the error back to the block: `learned` (the transpose of weights
    that are trained), `aligned` (a fixed random matrix, for the bio form), or, for a classifier
    that is never trained, `transpose`, `random` or `sign`.
    """

    pool: PoolSpec | None
    features: int
    outputs: int
    weight: float
    feedback: Literal["learned", "aligned", "transpose", "random", "sign"] = "learned"
    hidden: tuple[int, ...] = ()
    nonlinearity: Literal["relu", "leaky_relu"] = "relu"

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of its linear layers, in order."""
        return tuple(pairwise((self.features, *self.hidden, self.outputs)))


SIMILARITY_KERNEL = 3
"""Side of the similarity map's kernel after a convolution."""


@dataclass(frozen=True, slots=True)
class SimSpec:
    """The similarity head: a map g of the activation onto its own shape, without bias: of feature
    maps a convolution, else a linear map of the features at each position.

    The bio form has no map (`features` 0) and pools the activation as a classifier does.

    What is not the paper's: `pool` before a map; fewer `outputs` than features (0: as many);
    `groups`; `share` of the batches that have this loss; `bf16` whatever the precision of the rest.
    """

    kind: Literal["linear", "conv"]
    features: int
    weight: float
    pool: PoolSpec | None = None
    outputs: int = 0
    groups: int = 1
    share: float = 1.0
    bf16: bool = False

    @property
    def is_own_shape(self) -> bool:
        """Whether g maps the activation as it is onto its own shape, as the paper's does."""
        whole = self.pool is None and self.out_features == self.features
        return whole and self.groups == 1 and not self.bf16

    @property
    def out_features(self) -> int:
        """Channels or units that g maps to."""
        return self.outputs or self.features

    def is_due(self, batch_id: int) -> bool:
        """Whether this batch has a similarity loss: by its number, in every process alike."""
        return self.share == 1 or int(batch_id * self.share) > int((batch_id - 1) * self.share)

    @property
    def weights(self) -> int:
        """How many weights the map g of the similarity loss has."""
        area = SIMILARITY_KERNEL**2 if self.kind == "conv" else 1
        return self.features // self.groups * self.out_features * area


@dataclass(frozen=True, slots=True)
class CarriedSpec:
    """A tensor that travels beside the activation: (n·rows, *shape) for n examples."""

    name: str
    dtype: str
    rows: int
    shape: Shape

    @property
    def text(self) -> str:
        """For people: `(n, 10) of float32`."""
        first = "n" if self.rows == 1 else f"{self.rows}·n"
        return f"({', '.join([first, *map(str, self.shape)])}) of {self.dtype}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """What arrives at a block: for n examples n·rows rows, and what is carried. `shape`: of one
    row, where a rule's `enter` may make another of it; None: as the block computes on."""

    rows: int = 1
    carried: tuple[CarriedSpec, ...] = ()
    shape: Shape | None = None

    def example_bytes(self, in_shape: Shape) -> int:
        """Of an example, targets aside; `in_shape`: what the block computes on."""
        return 4 * self.rows * prod(self.shape or in_shape) + self.carried_bytes

    @property
    def carried_bytes(self) -> int:
        """Of an example, of what is carried."""
        return sum(spec.rows * prod(spec.shape) * ITEM_BYTES[spec.dtype] for spec in self.carried)


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A local rule other than the built-in ones, and the place where it works.

    `named`: as `package.module:Class`, which is called with `options`. `blocks`: hidden blocks of
    the network; `nth` of so many `rules`, from 0: a group has one. `in_shape`: of one row, before
    `enter`. `parameters`: those of the rule itself; `forward_macs`: multiply-adds of its loss for
    an example, forwards.
    `static`: whether a CUDA graph can be made of a step. `normalises`: whether it has batch norms;
    `unusual_norms`: the kinds among these that aren't torch's own.
    `only_teaches`: whether blocks compute and pass on as they would without it.
    """

    named: str
    options: Mapping[str, Any]
    blocks: int
    in_shape: Shape
    image_shape: Shape
    nth: int
    rules: int
    parameters: int = 0
    forward_macs: int = 0
    static: bool = True
    normalises: bool = False
    unusual_norms: tuple[str, ...] = ()
    only_teaches: bool = False


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
    """Whether the layer's weight starts at zero, as that of the output does where hidden blocks
    have local losses, `glob+…` among them: it is then a classifier like the local ones."""
    label_smoothing: float = 0.0
    """Share of a target that all classes have in common, in training, for the local classifier and
    for the output."""
    output_weight: float | None = None
    """Factor of the output block's cross-entropy; None for hidden blocks."""
    shortcut: ShortcutSpec | None = None
    """The residual connection that ends in this block."""
    activates_input: bool = False
    """Whether batch norm and non-linearity come before the layer (`model.preactivation`)."""
    passes_raw: bool = False
    """Whether none come after it: the sum itself is passed on, and heads see it through a batch
    norm and non-linearity of their own."""
    drops_units: bool = False
    """Whether dropout drops single units of feature maps instead of whole channels."""
    rule: RuleSpec | None = None
    """What the block learns from in place of `pred` and `sim` (`loss.rule`)."""
    frozen: bool = False
    """Whether it learns nothing (`model.freeze`): in training, too, it computes as in a test."""
    in_training: Arrival = Arrival()
    """What arrives in training."""
    in_tests: Arrival = Arrival()
    leaves_in_training: Arrival = Arrival()
    """What goes on from a block with a rule."""
    leaves_in_tests: Arrival = Arrival()
    ends_network: bool = False
    """Whether it is the last block, where there is no output layer."""
    target_shape: Shape = ()
    """Of one target: () for one label or number an example."""
    custom: CustomSpec | None = None
    """Where the layer is a user's own (`user_network.py`)."""
    same_group: bool = False
    """Whether it learns together with the block before: its gradient flows on into that one."""
    same_stage: bool = False
    """Whether it must be in the stage of the block before: a boundary would cut a group of
    layers that learn together, or a shortcut, or leave a stage without a hidden layer."""

    @property
    def is_output(self) -> bool:
        """Whether this is the output layer."""
        return self.output_weight is not None

    @property
    def is_last(self) -> bool:
        """Whether it sends nothing: what the network predicts comes from it."""
        return self.is_output or self.ends_network

    @property
    def normalises(self) -> bool:
        """Whether it or its rule normalises by batches, which takes several examples."""
        others = (self.custom, self.rule)
        return not self.frozen and (
            self.batch_norm or any(other is not None and other.normalises for other in others)
        )

    @property
    def has_loss(self) -> bool:
        """Whether it has a loss of its own: of a group only the last has, under plain `glob` only
        the output."""
        return self.is_output or self.has_local_loss

    @property
    def has_local_loss(self) -> bool:
        """Whether it learns from its own activation."""
        return not self.frozen and (
            self.pred is not None or self.sim is not None or self.rule is not None
        )

    @property
    def may_miss_gradients(self) -> bool:
        """Whether a batch may leave parameters without a gradient: a user's own network or rule
        may, for a batch or for good, and a batch without similarity loss does not use g."""
        return bool(self.custom or self.rule or (self.sim is not None and self.sim.share < 1))

    @property
    def as_frozen(self) -> BlockSpec:
        """The same block where it learns nothing: without heads, and without a rule that only
        teaches, unless what the network predicts comes from that."""
        if self.is_output:
            return replace(self, frozen=True)
        keeps = self.rule is not None and (self.is_last or not self.rule.only_teaches)
        return replace(
            self,
            pred=None,
            sim=None,
            projection=0,
            unsupervised="none",
            rule=self.rule if keeps else None,
            frozen=True,
        )

    @property
    def norms_output(self) -> bool:
        """Whether it holds a batch norm for what the layer gives. The first block of a
        pre-activation network always does, as by the paper's authors, who count it: under plain
        `glob` nobody reads it."""
        is_read = self.has_loss or not (self.activates_input and self.passes_raw)
        return self.batch_norm and is_read

    @property
    def recomputable(self) -> bool:
        """Whether only heads read the activation that can compute it again where they need it, from
        batch norm's input (`recompute.py`). A rule other than the built-in ones can't."""
        is_read = self.sim.is_own_shape and self.sim.features > 0 if self.sim else bool(self.pred)
        is_plain = self.shortcut is None and self.unsupervised == "none" and not self.passes_raw
        return self.batch_norm and len(self.shape) > 1 and is_read and is_plain

    @property
    def name(self) -> str:
        """How people call it: `conv 3→128`, `linear 2048→1024`, or a user's `layer1_0 64→64`."""
        name = self.custom.name if self.custom else ""
        what = "output" if self.is_output else name or self.layer.kind
        return f"{what} {self.layer.in_features}→{self.layer.out_features}"


Part = TypeVar("Part")


def in_runs(parts: Sequence[Part], joins: Callable[[Part], bool]) -> list[tuple[Part, ...]]:
    """Consecutive parts together: each run goes on for as long as the next one joins it."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and joins(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [tuple(run) for run in runs]


def stage_units(specs: Sequence[BlockSpec]) -> list[tuple[BlockSpec, ...]]:
    """The smallest parts that stages can be made of; their number is the most stages there can
    be: one per hidden layer, unless layers learn in groups or a shortcut spans them."""
    return in_runs(specs, lambda spec: spec.same_stage)


def learning_units(specs: Sequence[BlockSpec]) -> list[tuple[BlockSpec, ...]]:
    """The smallest parts that can be trained alone: as `stage_units`, but for an output layer,
    which is one, too, unless it learns together with others."""
    return in_runs(specs, lambda spec: spec.same_stage and (spec.same_group or not spec.is_output))
