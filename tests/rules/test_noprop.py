"""NoProp against its objective, example by example in float64, and how it takes noise away."""

from __future__ import annotations

from math import cos, pi, sqrt

import pytest
import torch
from support.drive_rule import LR, RuleChain, draws
from torch import Tensor, nn

from pipeline.rules.networks import denoisers
from pipeline.rules.noprop import NoProp
from pipeline.rules.rule import Place

STEPS, N, CLASSES, BLOCKS = 5, 6, 3, 4
IMAGE = (1, 2, 4)
INPUTS = 8 + CLASSES


def chain_of(**options: float) -> RuleChain:
    torch.manual_seed(0)
    return RuleChain(
        NoProp, [nn.Linear(INPUTS, CLASSES) for _ in range(BLOCKS)], IMAGE, CLASSES, **options
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(N, *IMAGE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def alpha_bar(t: int) -> float:
    """Share of signal after t blocks: a squared cosine of the noise left."""
    return cos(pi / 2 * (BLOCKS + 1 - t) / (BLOCKS + 1)) ** 2


def guess(weight: Tensor, bias: Tensor, image: Tensor, z: Tensor) -> Tensor:
    exp = (weight @ torch.cat([image.flatten(), z]) + bias).exp()
    return exp / exp.sum()


def test_five_steps_are_those_of_the_objective() -> None:
    chain = chain_of(eta=0.3)
    weights = [[p.detach().clone() for p in body.parameters()] for body in chain.bodies]
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        losses = chain.train(x, y, step)
        for index, own in enumerate(weights):
            before, after = alpha_bar(index), alpha_bar(index + 1)
            noise = torch.randn(N, CLASSES, generator=draws(step, index), dtype=torch.float64)
            for p in own:
                p.requires_grad_()
            total = torch.zeros((), dtype=torch.float64)
            for image, label, drawn in zip(x, y, noise, strict=True):
                u = torch.tensor([float(k == label) for k in range(CLASSES)], dtype=torch.float64)
                z = before**0.5 * u + (1 - before) ** 0.5 * drawn
                total = total + ((guess(*own, image, z) - u) ** 2).sum() / N
            gain = after / (1 - after) - before / (1 - before)
            loss = BLOCKS / 2 * 0.3 * gain * total
            assert losses[index] == pytest.approx(loss.item(), abs=1e-10)
            gradients = torch.autograd.grad(loss, own)
            weights[index] = [(p - LR * g).detach() for p, g in zip(own, gradients, strict=True)]
    for body, own in zip(chain.bodies, weights, strict=True):
        torch.testing.assert_close(list(body.parameters()), own, rtol=0, atol=1e-10)


def test_scores_are_of_the_chain_from_noise() -> None:
    chain = chain_of()
    x, y = batch(1)
    z = torch.randn(N, CLASSES, generator=draws(0, -1), dtype=torch.float64)
    for index, (body, scores) in enumerate(zip(chain.bodies, chain.scores(x, y), strict=True)):
        assert scores is not None
        found = torch.stack([guess(*body.parameters(), *pair) for pair in zip(x, z, strict=True)])
        torch.testing.assert_close(scores.softmax(1), found)
        before, after = alpha_bar(index), alpha_bar(index + 1)
        shrink = sqrt((1 - after) / (1 - before))
        z = sqrt(after) * found + shrink * (z - sqrt(before) * found)


def test_a_perfect_guess_leads_to_the_label() -> None:
    """What is carried after the last block is as near to it as training had it."""
    bodies = [nn.Linear(INPUTS, CLASSES) for _ in range(BLOCKS)]
    for body in bodies:
        nn.init.zeros_(body.weight)
        with torch.no_grad():
            body.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    chain = RuleChain(NoProp, bodies, IMAGE, CLASSES)
    last = chain.rules[-1]
    carried: list[Tensor] = []
    leave = last.leave
    last.leave = lambda h, batch: (leave(h, batch), carried.append(batch.carry["code"]))
    x, y = batch(1)
    chain.scores(x, y)
    noise = torch.randn(N, CLASSES, generator=draws(0, -1), dtype=torch.float64)
    share = alpha_bar(BLOCKS)
    label = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(carried[0], sqrt(share) * label + sqrt(1 - share) * noise)


def test_nothing_goes_from_block_to_block_in_training() -> None:
    one, other = chain_of(), chain_of()
    with torch.no_grad():
        other.bodies[0].weight.zero_()  # type: ignore[operator]
    for chain in (one, other):
        chain.train(*batch(1), 1)
    for same, as_other in zip(one.bodies[1:], other.bodies[1:], strict=True):
        assert torch.equal(same.weight, as_other.weight)  # type: ignore[arg-type]


def test_the_network_sees_image_and_label() -> None:
    network = denoisers((2, 4, 4), CLASSES, blocks=3, channels=[5], hidden=7)
    assert len(network) == 3
    block = network[0].eval()
    x = torch.randn(2, 2 * 4 * 4 + CLASSES, requires_grad=True)
    given = block(x)
    assert given.shape == (2, CLASSES)
    (gradient,) = torch.autograd.grad(given.square().sum(), x)
    assert gradient[:, :32].abs().sum() > 0
    assert gradient[:, 32:].abs().sum() > 0


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="eta: -1 is not allowed: use a number above 0"):
        chain_of(eta=-1)
    with pytest.raises(ValueError, match=r"block 1 gives \(4,\) for 3 classes: each block"):
        NoProp(Place(1, 2, (3,), (4,), 3, IMAGE))
    with pytest.raises(ValueError, match="one class for each example"):
        NoProp(Place(0, 2, (3,), (0,), 0, IMAGE))
