"""Blocks and stages for tests, on the CPU, in float64 unless told otherwise."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.config.sections import build_config
from pipeline.kernels.recompute import Activation
from pipeline.learning.block import Block
from pipeline.learning.optimizers import make_optimizer
from pipeline.learning.stage import Stage
from pipeline.network.from_config import build_specs
from pipeline.rules.rule import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from pipeline.learning.losses import LossValue
    from pipeline.network.specs import BlockSpec

CPU = torch.device("cpu")


def specs_of(
    model: Mapping[str, Any], loss: Mapping[str, Any], shape: tuple[int, ...], classes: int
) -> tuple[BlockSpec, ...]:
    """Of the network that these sections of a config describe, for inputs of this shape."""
    tree = {"model": model, "loss": loss, "data": {"name": "synthetic"}}
    config = build_config(tree, "test")
    return build_specs(config.model, config.loss, config.nonlinearity, shape, classes)


def block_of(
    spec: BlockSpec,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
    bf16: bool = False,
    optimizer: Any = "sgd",
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> Block:
    """A block with its optimizer; by default plain gradient descent, where a step of 1 shows the
    gradient."""
    block = Block(spec, seed=seed, device=CPU, dtype=dtype, bf16=bf16)
    block.attach(partial(make_optimizer, optimizer, weight_decay=weight_decay, momentum=momentum))
    return block


def stage_of(specs: Iterable[BlockSpec], **given: Any) -> Stage:
    """`given`: as for `block_of`."""
    return Stage([block_of(spec, **given) for spec in specs], None)


def loss_of(block: Block, h: Tensor, labels: Tensor, x: Tensor) -> LossValue:
    """The local loss of an activation that stays as it is."""
    return block.local_loss(Activation(h), Batch(x, labels), x)


def ignored(passed: Tensor) -> None:
    """For a stage whose output does not matter."""
