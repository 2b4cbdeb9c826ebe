"""Global backprop as anyone would write it who is short of memory: activation checkpointing.

    input ──▶ blocks 0 … 3 ──▶ blocks 4 … 7 ──▶ …      of each segment only the input is kept,
                 segment           segment              and it is computed again when the gradient
                                                        comes back

The same layers as ours in a plain `nn.Sequential`, the same optimizer. Which segments need the
least depends on where a network is wide: several numbers of them are tried.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint_sequential

from benchmarks.rivals.plain import Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.learning.optimizers import Optimizer
    from pipeline.network.specs import BlockSpec


def numbers_of_segments(depth: int) -> tuple[int, ...]:
    """To be tried: about √depth, as one learns it, every second block, every block."""
    return tuple(sorted({max(1, isqrt(depth)), max(1, depth // 2), depth}))


class CheckpointedNetwork:
    """Trains all layers from the cross-entropy of the last one.

    Args:
        segments: that are computed again, but for the last.
        bf16: by autocast.
    """

    def __init__(
        self,
        specs: Sequence[BlockSpec],
        make_optimizer: Callable[[Mapping[str, Tensor]], Optimizer],
        device: torch.device,
        segments: int,
        *,
        bf16: bool = False,
    ) -> None:
        self._segments = segments
        self._autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
        self._layers = nn.Sequential(*map(Layer, specs)).to(device)
        self._parameters = dict(self._layers.named_parameters())
        self._optimizer = make_optimizer(self._parameters)

    def state(self) -> Iterator[Tensor]:
        """Weights, statistics, and the optimizer's."""
        yield from self._layers.state_dict().values()
        yield from self._optimizer.state().values()

    def train(self, images: Tensor, labels: Tensor, lr: float) -> None:
        """One step on uint8 (n, C, H, W) and int64 (n,)."""
        x = images.to(torch.float32).div_(255)
        with self._autocast:
            logits = checkpoint_sequential(  # type: ignore[no-untyped-call]
                self._layers, self._segments, x, use_reentrant=False
            )
        loss = F.cross_entropy(logits.float(), labels)
        gradients = torch.autograd.grad(loss, list(self._parameters.values()))
        with torch.no_grad():
            self._optimizer.step(gradients, lr)
