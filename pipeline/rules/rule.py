"""A local rule: what one block learns from. The base class of the shipped rules and of users' own.

    arrives        x, y, carry                                  detached from every other block
    enter          x ──▶ what the block computes on
    the block      ──▶ h, its activation
    leave          what is carried on                           then h and all that is sent
    update, loss   the block and this rule learn

The engine calls a rule in this order.

Legend of shapes: n examples in the batch; rows = n, or a multiple of n where `expand` makes copies
of each example, which then lie next to each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a local rule works. All shapes are of one row, without the batch.

    `index`: of its block (in a group, of the last one); `blocks`: how many of the network learn by
    local rules, or lie within a group that does. `nth`: of the network's rules, from 0; `rules`:
    how many there are: a group has one, so these are `index` and `blocks` where there are no
    groups. `in_shape`: what arrives at the block or group;
    `shape`: its activation. `classes`: 0 where the targets are no classes. `image_shape`: of what
    the data give, after preprocessing; `target_shape`: () for one label an example.
    """

    index: int
    blocks: int
    in_shape: Shape
    shape: Shape
    classes: int
    image_shape: Shape
    target_shape: Shape = ()
    nth: int = -1
    rules: int = -1

    def __post_init__(self) -> None:
        if self.rules < 0:
            object.__setattr__(self, "nth", self.index)
            object.__setattr__(self, "rules", self.blocks)


@dataclass(slots=True)
class Batch:
    """What arrives at a block: all of it detached, and to be left as it is.

    `x`: (rows, *place.in_shape); `y`: the targets, (n,) int64 for classes, else (n, …);
    `carry`: the tensors that travel beside them, by name.
    """

    x: Tensor
    y: Tensor
    carry: dict[str, Tensor] = field(default_factory=dict)
    training: bool = True


@dataclass(frozen=True, slots=True)
class OwnOptimizer:
    """What a rule asks for in place of the configured optimizer. `lr`: at the begin of the run;
    the schedule multiplies it as it does the configured one."""

    name: Literal["adam", "adamw", "sgd"]
    lr: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("adam", "adamw", "sgd"):
            raise ValueError(f"OwnOptimizer: {self.name!r} is none of adam, adamw, sgd")
        if not (isinstance(self.lr, float | int) and 0 < self.lr < float("inf")):
            raise ValueError(f"OwnOptimizer: lr {self.lr!r} is no positive number")
        if not (isinstance(self.momentum, float | int) and 0 <= self.momentum < 1):
            raise ValueError(f"OwnOptimizer: momentum {self.momentum!r} is not within [0, 1)")


class LocalRule(nn.Module):
    """What one block learns from; one instance for each block (or group of blocks).

    Its parameters and buffers are trained, kept and restored with the block's, as `rule.*`. It
    sees nothing of other blocks but what arrives. A `generator` belongs to (seed, block, batch):
    draw from it, and from nothing else.
    """

    carries: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that travel beside the activation, forwards only. `expand` sets each
    one; `leave` may replace it."""
    output_layer: ClassVar[bool] = True
    """Whether the network ends in an output layer, which cross-entropy trains; else the last block
    has a rule like all others, and its `scores` are what the network predicts."""
    static: ClassVar[bool] = False
    """Whether a step does the same work for every batch and draws nothing, so that a CUDA graph can
    be made of it. Such a rule is given None for a generator."""
    layer_optimizer: OwnOptimizer | None = None
    """For the block's own parameters; None: the configured one."""
    rule_optimizer: OwnOptimizer | None = None
    """For the rule's parameters; None: the configured one."""

    def __init__(self, place: Place) -> None:
        """`place`: where the rule works. Options of a rule are its further arguments, by name."""
        super().__init__()
        self.place = place

    @classmethod
    def expand(
        cls, batch: Batch, classes: int, training: bool, generator: torch.Generator
    ) -> Batch:
        """Before the first block: make copies, negatives, overlaid labels, what is carried.

        Options of the rule are given by name to an `expand` that has arguments of their names.

        Args:
            batch: x (n, *image_shape) as it is after preprocessing, y, nothing carried.

        Returns:
            x with as many rows as the rule wants for each example, y as it was, and every tensor
            that the rule carries.
        """
        return batch

    @classmethod
    def entered_shape(cls, in_shape: Shape, classes: int, image_shape: Shape) -> Shape:
        """The shape of one row of what `enter` gives; options as for `expand`."""
        return in_shape

    def enter(self, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """What the block computes on, in training and in tests (`batch.training`); x as arrived."""
        return x

    def loss(
        self, h: Tensor, x: Tensor, batch: Batch, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        """A scalar, of which this block and this rule take the gradient, and nobody else.

        Args:
            h: (rows, *place.shape): the activation, with its graph.
            x: what `enter` gave.

        Returns:
            The scalar; or the scalar and the scores, as `scores` gives them, so that errors are
            counted in training, too; None where only `update` teaches.
        """
        return None

    def update(self, layer: nn.Module, h: Tensor, x: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Directions that parameters of `layer`, the block's own, step against in place of a
        gradient, by name; no graph is kept here."""
        return {}

    def leave(self, h: Tensor, batch: Batch) -> None:
        """Put other tensors into `batch.carry`, which goes on to the next block. No graph is kept
        here; tensors that are there are not to be changed in place."""

    def scores(self, h: Tensor, batch: Batch) -> Tensor | None:
        """(n, classes, …): what this depth predicts, the largest wins; of numbers (n, …), these;
        None: nothing.

        Args:
            batch: with what is carried as `leave` has left it.
        """
        return None
