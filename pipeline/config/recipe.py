"""The `optimizer` and `schedule` sections of a configuration: how blocks learn, and how long."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pipeline.config.model import MAX_LAYERS
from pipeline.config.schema import BeforeValidator, Field, Misfit, MisfitsError, Section, brief

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EPOCHS = 1_000_000
_MAX_MILESTONES = 1000


def _index(key: Any) -> Any:
    """In JSON, as manifests and messages have it, a key is a text."""
    return int(key) if isinstance(key, str) and re.fullmatch("0|[1-9][0-9]*", key) else key


BlockIndex: TypeAlias = Annotated[int, BeforeValidator(_index), Field(ge=0, le=MAX_LAYERS)]


class BlockOptimizer(Section):
    """What one block has in place of the common settings."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the first epoch; the schedule changes it as it does `optimizer.lr`."""
    weight_decay: float | None = Field(default=None, ge=0)
    """As `optimizer.weight_decay`."""


class OptimizerConfig(Section):
    """Every block has an optimizer of its own."""

    name: Literal["adam", "amsgrad", "adamw", "sgd"] = "adam"
    """Adam, Adam with AMSGrad, Adam with decoupled weight decay (Loshchilov & Hutter 2019), or
    stochastic gradient descent."""
    lr: float = Field(default=5e-4, gt=0)
    """Learning rate of the first epoch."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty, added to the gradient; under `adamw`, weights shrink by `lr` times this."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Used by `sgd` only."""
    nesterov: bool = False
    """Let the momentum of `sgd` look ahead, as Nesterov's does."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Scale the gradients of a block, of its layer and heads together, down to this Euclidean norm
    wherever it is larger. Each block has its own norm, also where several learn together."""
    accumulate: int = Field(default=1, ge=1, le=1 << 20)
    """Of `loss.name: glob`: take each batch in so many parts, one after the other, and learn from
    the mean of their gradients: less memory. Batch norm sees a part at a time."""
    blocks: dict[BlockIndex, BlockOptimizer] = Field(default={}, max_length=MAX_LAYERS + 1)
    """Settings of single blocks by index, counted from 0, the output layer last: {0: {lr: 0.001}};
    each may have `lr` and `weight_decay`."""

    def misfits(self) -> Iterator[Misfit]:
        """A momentum that looks ahead, where there is none."""
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            rule = "needs optimizer.name sgd with optimizer.momentum above 0"
            yield Misfit("optimizer.nesterov", rule)


def _milestone(value: Any) -> Any:
    is_epoch = type(value) is int and 1 <= value <= MAX_EPOCHS
    if not (is_epoch or (type(value) is float and 0 < value < 1)):
        rule = f": {brief(value)} is neither an epoch (1 to {MAX_EPOCHS}) nor a share of the run "
        raise MisfitsError(Misfit("schedule.milestones", f"{rule}(above 0, below 1)"))
    return value


Milestone: TypeAlias = Annotated[
    Annotated[int, Field(ge=1, le=MAX_EPOCHS)] | Annotated[float, Field(gt=0, lt=1)],
    BeforeValidator(_milestone),
]


class ScheduleConfig(Section):
    """How long, and how the learning rate changes."""

    epochs: int = Field(default=100, ge=1, le=MAX_EPOCHS)
    """Passes over the training set."""
    milestones: Annotated[
        tuple[Milestone, ...], Field(strict=False, max_length=_MAX_MILESTONES)
    ] = ()
    """The learning rate is multiplied by `factor` after each of these epochs (from 1), or after
    each of these shares of the epochs: 0.5 is after half of them, rounded up."""
    factor: float = Field(default=0.25, gt=0, le=1)
    """What a milestone multiplies the learning rate by."""
    decay: Literal["milestones", "cosine"] = "milestones"
    """Let the learning rate drop at the milestones, if there are any, or from step to step by half
    a cosine (Loshchilov & Hutter 2017, without restarts)."""
    min_factor: float = Field(default=0.0, ge=0, lt=1)
    """Of `cosine`: what is left of the learning rate at the end of the run, as a share of it."""
    warmup_epochs: int = Field(default=0, ge=0, le=MAX_EPOCHS)
    """In so many epochs at the begin the learning rate grows in proportion to the steps done
    (Goyal et al. 2017); a cosine begins after them."""
    patience: int | None = Field(default=None, ge=1, le=MAX_EPOCHS)
    """End the run where so many epochs have brought no lower error in tests (on `data.validation`,
    where that is set) than the best before: a checkpoint is written and nothing more is trained.
    Where nothing is predicted, the tested loss decides."""
    greedy: bool = False
    """Blocks learn one after another, each for `epochs` (and its schedule), from the input
    that the finished ones before it give as in a test: frozen, without dropout. The test error
    of a phase is that of the local classifier at work."""

    def misfits(self) -> Iterator[Misfit]:
        """Rates that would change in two ways, and times that are not in order."""
        milestones = list(self.milestones)
        if self.decay == "cosine" and milestones:
            yield Misfit(
                "schedule.decay",
                f"cosine takes no milestones, and schedule.milestones is {milestones}: set it to "
                "[]",
            )
        elif len(set(map(type, milestones))) > 1:
            yield Misfit(
                "schedule.milestones",
                f"{milestones}: give epochs (whole numbers) or shares of the run (below 1), not "
                "both",
            )
        elif milestones != sorted(set(milestones)):
            yield Misfit("schedule.milestones", f"{milestones} must increase strictly")
        if self.min_factor and self.decay != "cosine":
            yield Misfit("schedule.min_factor", "needs schedule.decay cosine")
        if self.warmup_epochs >= self.epochs:
            yield Misfit(
                "schedule.warmup_epochs",
                f"{self.warmup_epochs} must be less than schedule.epochs {self.epochs}",
            )

    @property
    def milestones_are_shares(self) -> bool:
        """Whether they follow the epochs."""
        return any(isinstance(milestone, float) for milestone in self.milestones)

    @property
    def milestone_epochs(self) -> tuple[int, ...]:
        """The milestones as epochs: the learning rate drops with the epoch after each."""
        return tuple(
            milestone if isinstance(milestone, int) else self._epochs_until(milestone)
            for milestone in self.milestones
        )

    def _epochs_until(self, share: float) -> int:
        """The fewest epochs that are such a share of the run: 3 of 10 are 0.3, whatever rounding
        makes of 0.3 * 10."""
        nearest = round(share * self.epochs)
        return nearest if nearest / self.epochs >= share else nearest + 1
