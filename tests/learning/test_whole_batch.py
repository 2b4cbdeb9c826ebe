"""What members of a team see of whole batches: the numbers of an undivided batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import CalledOffError
from pipeline.learning.exchange import Turns
from pipeline.learning.losses import similarity_loss
from pipeline.learning.shares import share_of
from pipeline.learning.whole_batch import WholeBatch, WholeBatchNorm, see_whole_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.learning.shares import Share


def by_members(
    members: int, examples: int, work: Callable[[WholeBatch, Share], list[Tensor]]
) -> list[list[Tensor]]:
    """What each member with examples gives."""
    turns = Turns(members)

    def member(number: int) -> list[Tensor]:
        share = share_of(examples, number, members)
        whole = WholeBatch(turns.exchange(number))
        with turns, torch.autograd.set_multithreading_enabled(False):
            try:
                if not share.count:
                    return []
                whole.open(1, 0, examples)
                return work(whole, share)
            except BaseException:
                turns.call_off()
                raise

    with ThreadPoolExecutor(members) as pool:
        return [found for found in pool.map(member, range(members)) if found]


def combined(found: list[list[Tensor]], rows: int) -> list[Tensor]:
    """Of the undivided batch: the first `rows` tensors are of a share's examples, the others parts
    of sums."""
    each = list(zip(*found, strict=True))
    of_rows = [torch.cat(parts) for parts in each[:rows]]
    return of_rows + [sum(parts, torch.zeros(())) for parts in each[rows:]]


SHAPES: dict[str, tuple[int, ...]] = {"linear": (5,), "maps": (4, 3, 2), "sequence": (3, 6)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("members", "examples"), [(2, 8), (3, 11), (3, 5)])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_shares_is_that_of_the_batch(
    shape: tuple[int, ...], members: int, examples: int, momentum: float | None, affine: bool
) -> None:
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d

    def made() -> nn.Module:
        norm = kind(shape[0], momentum=momentum, affine=affine, dtype=torch.float64)
        if affine:
            nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.manual_seed(1))
        return nn.Sequential(norm)

    torch.manual_seed(2)
    x = torch.randn(examples, *shape, dtype=torch.float64) * 3 + 1
    towards = torch.randn_like(x)

    def learned(net: nn.Module, own: Tensor, wanted: Tensor, weight: float) -> list[Tensor]:
        """Twice, so that running statistics have moved."""
        for _ in range(2):
            own = own.detach().requires_grad_()
            net.zero_grad()
            y = net(own)
            ((y.sin() * wanted).flatten(1).sum(dim=1).mean() * weight).backward()
        assert own.grad is not None
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        statistics = [buffer * weight for buffer in net.buffers()]
        return [y.detach(), own.grad, *gradients, *statistics]

    def shared(whole: WholeBatch, share: Share) -> list[Tensor]:
        net = made()
        see_whole_batches(net, whole)
        assert isinstance(net[0], WholeBatchNorm)  # type: ignore[index]
        return learned(net, x[share.rows], towards[share.rows], share.weight)

    expected = learned(made(), x, towards, 1.0)
    found = combined(by_members(members, examples, shared), 2)
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(7,), (5, 3, 3), (2, 3, 3)], ids=str)
@pytest.mark.parametrize(("members", "examples"), [(2, 8), (3, 11), (3, 5)])
def test_the_similarity_loss_of_shares_is_that_of_the_batch(
    shape: tuple[int, ...], members: int, examples: int
) -> None:
    torch.manual_seed(3)
    x, target = torch.randn(examples, *shape).double(), torch.randn(examples, 4).double()

    def learned(
        own: Tensor, wanted: Tensor, weight: float, whole: WholeBatch | None
    ) -> list[Tensor]:
        own = own.clone().requires_grad_()
        loss = similarity_loss(own, wanted, whole) * weight
        loss.backward()
        assert own.grad is not None
        return [own.grad, loss.detach()]

    def shared(whole: WholeBatch, share: Share) -> list[Tensor]:
        return learned(x[share.rows], target[share.rows], share.weight, whole)

    expected = learned(x, target, 1.0, None)
    found = combined(by_members(members, examples, shared), 1)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_a_batch_norm_is_the_modules_own_by_every_name() -> None:
    norm = nn.BatchNorm1d(3)
    net = nn.ModuleDict({"one": nn.Sequential(norm, nn.Linear(3, 3)), "other": norm})
    before = {name: id(tensor) for name, tensor in net.state_dict(keep_vars=True).items()}
    see_whole_batches(net, WholeBatch(Turns(2).exchange(0)))
    assert {n: id(t) for n, t in net.state_dict(keep_vars=True).items()} == before
    assert net["one"][0] is net["other"]  # type: ignore[index]
    assert isinstance(net["other"], WholeBatchNorm)


def test_without_a_batch_at_work_it_is_as_any_other() -> None:
    x, norm = torch.randn(4, 3), nn.BatchNorm1d(3)
    net = nn.Sequential(nn.BatchNorm1d(3))
    see_whole_batches(net, WholeBatch(Turns(2).exchange(0)))
    assert torch.equal(net(x), norm(x))
    assert torch.equal(net.eval()(x), norm.eval()(x))


def test_one_value_per_channel_is_refused() -> None:
    def shared(whole: WholeBatch, share: Share) -> list[Tensor]:
        return [WholeBatchNorm(nn.BatchNorm1d(3), whole)(torch.randn(share.count, 3))]

    with pytest.raises(ValueError, match="one value per channel"):
        by_members(2, 1, shared)


def test_nobody_waits_for_a_member_that_has_failed() -> None:
    def shared(whole: WholeBatch, share: Share) -> list[Tensor]:
        if share.first:
            raise OSError("gone")
        return whole.rows(torch.zeros(share.count, 1))

    with pytest.raises(CalledOffError, match="another member has failed"):
        by_members(2, 4, shared)
