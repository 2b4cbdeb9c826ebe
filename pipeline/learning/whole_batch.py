"""What members of a team see of each other's shares while they compute: the whole batch, in batch
norm (`parallel.batch_norm`) and in the similarity loss (`parallel.similarity`).

    member 0   its share ─┐
    member 1   its share ─┼─▶ each has all, in order of member, and goes on with its own share
    member 2   its share ─┘

In the backward pass each member has the gradient of its part of the loss, the mean over its share
times the share (`Team`): parts that add up, whoever's examples they are by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.dtypes import wide
from pipeline.learning.shares import share_of
from pipeline.network.batch_norms import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.learning.exchange import Exchange, Found
    from pipeline.learning.shares import Share


class WholeBatch:
    """A member's way to see the batch that is at work as a whole.

    Args:
        exchange: its end of the team.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._place: tuple[int, int] | None = None
        self._gatherings = 0
        self._shares: list[Share] = []

    def open(self, batch_id: int, block: int, examples: int) -> None:
        """From now on a batch of so many examples is at work, in the group that ends with a block.
        This member has some of them."""
        self._place, self._gatherings = (batch_id, block), 0
        shares = (share_of(examples, one, self._exchange.members) for one in self._members)
        self._shares = [share for share in shares if share.count]

    def close(self) -> None:
        """The group has computed."""
        self._place = None

    @property
    def is_open(self) -> bool:
        """Whether a batch is at work."""
        return self._place is not None

    def gathered(self, *found: Tensor) -> list[Found]:
        """What all members with examples have here, in order of member; of the same shapes."""
        assert self._place is not None, "no batch is at work"
        self._gatherings += 1
        if len(self._shares) == 1:
            return [found]
        place = *self._place, self._gatherings
        return self._exchange.gather(place, found, len(self._shares))

    def all_agree(self, agrees: bool) -> bool:
        """Whether all members with examples do."""
        return all(bool(flag) for (flag,) in self.gathered(torch.tensor(agrees)))

    def rows(self, *own: Tensor) -> list[Tensor]:
        """Each of these of all examples, (n, …), by those of this member's share."""
        most = self._shares[0].count  # shares differ by one example, the first are the longer ones
        alike = [_padded(tensor, most) for tensor in own]
        parts = zip(*self.gathered(*alike), strict=True)
        counts = [share.count for share in self._shares]
        return [
            torch.cat([part[:count] for part, count in zip(of_all, counts, strict=True)])
            for of_all in parts
        ]

    @property
    def _members(self) -> range:
        return range(self._exchange.members)


def _padded(rows: Tensor, most: int) -> Tensor:
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, most - len(rows)))


class WholeBatchNorm(_BatchNorm):
    """Batch norm of (n, C, …) whose mean and variance, in training, are those of the whole batch:
    as SyncBatchNorm, but by sums in a fixed order.

    Args:
        norm: in whose place it is: parameters and running statistics are that one's own.
    """

    def __init__(self, norm: _BatchNorm, whole: WholeBatch) -> None:
        shape = norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        super().__init__(*shape, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self._whole = whole

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes (n, C, …), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self._whole.is_open):
            return super().forward(input)
        self._check_input_dim(input)
        mean, variance, values = self._statistics(input.detach())
        if values == 1:
            raise ValueError(f"batch norm of one value per channel, {tuple(input.shape)}")
        self._move(mean, variance * (values / (values - 1)))
        how = mean, variance, values, self.eps, self._whole
        normed: Tensor = _Normalised.apply(input, self.weight, self.bias, *how)
        return normed

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Mean and variance (C,) over the whole batch, and over how many values that is: those of
        the shares, put together as by Chan et al. (1979), "Updating formulae and a pairwise
        algorithm for computing sample variances"."""
        own = torch.ops.aten.batch_norm_update_stats(wide(x), None, None, 0.0)
        count = torch.tensor(x.numel() // x.size(1))
        found = self._whole.gathered(*own, count)
        values = sum(int(of_share) for _, _, of_share in found)
        parts = [
            (of_mean, of_variance, int(of_share) / values)
            for of_mean, of_variance, of_share in found
        ]
        mean = _sum([of_mean * weight for of_mean, _, weight in parts])
        variance = _sum(
            [
                (of_variance + (of_mean - mean).square()) * weight
                for of_mean, of_variance, weight in parts
            ]
        )
        return mean, variance, values

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics; `variance`: without bias."""
        if self.running_mean is None or self.running_var is None:
            return
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:
                share = 1.0 / float(self.num_batches_tracked)
        assert share is not None, "of a batch norm without momentum batches are counted"
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        values: int,
        eps: float,
        whole: WholeBatch,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.values, ctx.eps, ctx.whole = values, eps, whole
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        scale = torch.ones_like(inverse) if weight is None else weight
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            by_y, x, scale, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        found = ctx.whole.gathered(by_weight, by_bias)
        of_weight, of_bias = (_sum(each) / ctx.values for each in zip(*found, strict=True))
        scale = scale * inverse
        slope = -scale * inverse * of_weight
        offset = -scale * of_bias - slope * mean
        by_channel = 1, -1, *(1 for _ in x.shape[2:])
        scale, slope, offset = (each.view(by_channel) for each in (scale, slope, offset))
        by_x = torch.addcmul(torch.addcmul(offset, wide(x), slope), wide(by_y), scale)
        learned = (None, None) if weight is None else (by_weight, by_bias)
        return by_x.to(x.dtype), *learned, None, None, None, None, None


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Added one after the other: another order would round otherwise."""
    first, *others = tensors
    for other in others:
        first = first + other
    return first


def see_whole_batches(part: nn.Module, whole: WholeBatch) -> None:
    """From now on the batch norms within a part of a network, all of known kinds, see the whole
    batch."""
    instead: dict[_BatchNorm, WholeBatchNorm] = {}
    for name, module in list(part.named_modules(remove_duplicate=False)):
        if not isinstance(module, _BatchNorm) or isinstance(module, WholeBatchNorm):
            continue
        assert type(module) in PLAIN, "checked before"
        parent, _, own = name.rpartition(".")
        if module not in instead:
            instead[module] = WholeBatchNorm(module, whole)
        setattr(part.get_submodule(parent), own, instead[module])


def norm_sizes(part: nn.Module) -> Iterator[list[int]]:
    """Bytes of each tensor that a member gives at once, of each such batch norm of a part."""
    for module in part.modules():
        if isinstance(module, WholeBatchNorm):
            numbers = 4 * module.num_features
            yield [numbers, numbers, 8]
