"""Every form of the local loss: its gradient, and what is learned and what stays as drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import block_of, ignored, loss_of, specs_of, stage_of
from support.gradients import check_gradients
from torch import nn
from torch.nn import functional as F

from pipeline.learning.losses import similarity_matrix
from pipeline.learning.stage import Stage

if TYPE_CHECKING:
    from pipeline.learning.block import Block

CLASSES, EXAMPLES = 4, 6


def blocks_of(loss: dict[str, Any], seed: int = 3) -> list[Block]:
    """A small network in float64: two convolution blocks, a linear one, the output."""
    model = {"name": "vgg", "layers": [4, "M", 5], "hidden": 7, "nonlinearity": "leaky_relu"}
    specs = specs_of(model, {"dim_in_decoder": 16, **loss}, (3, 6, 6), CLASSES)
    return [block_of(spec, seed=seed, optimizer="adam") for spec in specs]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 3, 0, 1])


def activation(block: Block) -> torch.Tensor:
    generator = torch.Generator().manual_seed(block.spec.index + 1)
    return torch.randn(
        EXAMPLES, *block.spec.shape, generator=generator, dtype=torch.float64, requires_grad=True
    )


def received(block: Block) -> torch.Tensor:
    generator = torch.Generator().manual_seed(99)
    return torch.randn(EXAMPLES, *block.spec.in_shape, generator=generator, dtype=torch.float64)


def stir(block: Block) -> None:
    """Classifiers start at zero, which would hide a wrong gradient."""
    if isinstance(block.pred, nn.Linear) and block.pred.weight.requires_grad:
        nn.init.normal_(block.pred.weight, generator=torch.Generator().manual_seed(5))


TRUE_GRADIENT = {
    "pred": {"name": "pred"},
    "sim": {"name": "sim"},
    "predsim": {"name": "predsim", "beta": 0.6},
    "pred, fixed": {"name": "pred", "classifier": "fixed"},
    "sim-bio": {"name": "sim", "bio": True, "target_projection": 9},
    "sim-bio with unsupervised sim": {
        "name": "sim",
        "bio": True,
        "target_projection": 9,
        "unsupervised": "sim",
        "alpha": 0.3,
    },
    "pred with unsupervised sim": {"name": "pred", "unsupervised": "sim", "alpha": 0.3},
    "pred with hidden layers": {"name": "pred", "pred_hidden": [6, 5]},
    "predsim with hidden layers": {"name": "predsim", "pred_hidden": [[6], [], [5, 4]]},
    "predsim with recon": {"name": "predsim", "unsupervised": "recon", "alpha": 0.4, "beta": 0.5},
}
FED_BACK = {
    "pred-bio": {"name": "pred", "bio": True, "target_projection": 9},
    "random": {"name": "pred", "classifier": "fixed", "feedback": "random"},
    "sign": {"name": "pred", "classifier": "fixed", "feedback": "sign"},
}
ALL_LOCAL = {
    **TRUE_GRADIENT,
    **FED_BACK,
    "predsim-bio": {"name": "predsim", "bio": True, "beta": 0.01},
    "predsim-bio with recon": {
        "name": "predsim", "bio": True, "unsupervised": "recon", "alpha": 0.2,
    },
}  # fmt: skip


@pytest.mark.parametrize("block_index", [0, 1, 2, 3])
@pytest.mark.parametrize("form", TRUE_GRADIENT)
def test_the_gradient_of_the_activation_is_the_true_one(form: str, block_index: int) -> None:
    block = blocks_of(TRUE_GRADIENT[form])[block_index]
    stir(block)
    _, labels = batch()
    x = received(block)

    def loss(h: torch.Tensor) -> torch.Tensor:
        return loss_of(block, h, labels, x).loss

    check_gradients(loss, activation(block))


@pytest.mark.parametrize("form", ALL_LOCAL)
def test_gradients_of_all_learned_parameters_agree_with_finite_differences(form: str) -> None:
    for block in blocks_of(ALL_LOCAL[form]):
        stir(block)
        _, labels = batch()
        h, x = activation(block).detach(), received(block)
        heads = [p for name, p in block.named_parameters()
                 if p.requires_grad and not name.startswith(("encoder", "bn"))]  # fmt: skip
        for parameter in heads:
            (gradient,) = torch.autograd.grad(loss_of(block, h, labels, x).loss, parameter)
            draws, losses = torch.Generator().manual_seed(1), []
            step = 1e-6 * torch.randn(gradient.shape, generator=draws, dtype=torch.float64)
            for change in (step, -2 * step):
                parameter.data += change
                losses.append(loss_of(block, h, labels, x).loss.item())
            parameter.data += step
            along = 2 * (gradient * step).sum().item()
            assert losses[0] - losses[1] == pytest.approx(along, rel=1e-4, abs=1e-14)


@pytest.mark.parametrize("block_index", [0, 1, 2])
@pytest.mark.parametrize("form", FED_BACK)
def test_feedback_alignment_sends_back_the_error_through_the_feedback_matrix(
    form: str, block_index: int
) -> None:
    block = blocks_of(FED_BACK[form])[block_index]
    stir(block)
    _, labels = batch()
    h = activation(block)
    head = block.pred
    assert head is not None
    assert head.feedback is not None
    (got,) = torch.autograd.grad(loss_of(block, h, labels, received(block)).loss, h)

    pooled = h.detach().clone().requires_grad_()
    features = pooled
    if head.spec.pool is not None:
        kernel, padding = head.spec.pool.kernel, head.spec.pool.padding
        features = F.avg_pool2d(pooled, kernel, kernel, padding)
    logits = (features.flatten(1) @ head.weight.T + head.bias).detach()
    error = explicit_error(block, logits, labels)
    (expected,) = torch.autograd.grad(features.flatten(1), pooled, error @ head.feedback)
    torch.testing.assert_close(got, expected)


def explicit_error(block: Block, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Derivative of the loss with respect to the logits, written out."""
    if block.projection is None:
        target = F.one_hot(labels, CLASSES).double()
        return (logits.softmax(dim=1) - target) / EXAMPLES
    projected = F.one_hot(labels, CLASSES).double() @ block.projection.weight.detach().T
    return (logits.sigmoid() - (projected > 0).double()) / logits.numel()


def test_sign_feedback_has_the_signs_of_the_classifier_and_other_magnitudes() -> None:
    head = blocks_of(FED_BACK["sign"])[0].pred
    assert head is not None
    assert head.feedback is not None
    assert torch.equal(head.feedback.sign(), head.weight.sign())
    assert not torch.equal(head.feedback.abs(), head.weight.abs())
    assert head.feedback.abs().max() <= head.spec.features**-0.5


@pytest.mark.parametrize("form", ["pred-bio", "random"])
def test_random_feedback_is_uniform_and_independent_of_the_classifier(form: str) -> None:
    head = blocks_of(FED_BACK[form])[0].pred
    assert head is not None
    assert head.feedback is not None
    bound = head.spec.features**-0.5
    assert bound / 2 < head.feedback.abs().max() <= bound
    assert not torch.equal(head.feedback.sign(), head.weight.sign())


def test_sim_bio_compares_the_pooled_activation_with_the_projected_label() -> None:
    block = blocks_of(TRUE_GRADIENT["sim-bio"])[0]
    _, labels = batch()
    h = activation(block).detach()
    assert block.sim is not None
    assert not list(block.sim.parameters())
    assert block.spec.sim is not None
    assert block.spec.sim.pool is not None
    pool = block.spec.sim.pool
    pooled = F.avg_pool2d(h, pool.kernel, pool.stride, pool.padding)
    assert block.projection is not None
    target = F.one_hot(labels, CLASSES).double() @ block.projection.weight.T
    expected = ((similarity_matrix(pooled) - similarity_matrix(target)) ** 2).mean()
    torch.testing.assert_close(loss_of(block, h, labels, received(block)).loss, expected)


def test_recon_rebuilds_the_input_and_the_first_block_has_none() -> None:
    first, second, third, output = blocks_of(TRUE_GRADIENT["predsim with recon"])
    assert first.recon is None
    assert output.recon is None
    _, labels = batch()
    for block in (second, third):
        h, x = activation(block).detach(), received(block)
        assert block.recon is not None
        rebuilt = F.leaky_relu(block.recon(h), 0.01)
        assert rebuilt.numel() == x.numel()
        whole = loss_of(block, h, labels, x).loss
        other = loss_of(block, h, labels, x + 1).loss
        difference = ((rebuilt - x.reshape(rebuilt.shape)) ** 2).mean() - (
            (rebuilt - (x + 1).reshape(rebuilt.shape)) ** 2
        ).mean()
        torch.testing.assert_close(whole - other, 0.4 * difference)


@pytest.mark.parametrize("form", ALL_LOCAL)
def test_training_changes_what_is_learned_and_nothing_else(form: str) -> None:
    stage = Stage(blocks_of(ALL_LOCAL[form]), None)
    before = [{k: v.clone() for k, v in block.state_dict().items()} for block in stage.blocks]
    x, labels = batch()
    for step in (1, 2):
        stage.train(x, labels, batch_id=step, lr=0.01, send=ignored)
    for block, old in zip(stage.blocks, before, strict=True):
        fixed = {"projection.weight", "pred.feedback"}
        if block.spec.pred and block.spec.pred.feedback in ("transpose", "random", "sign"):
            fixed |= {"pred.weight", "pred.bias"}
        for name, tensor in block.state_dict().items():
            # the bias before a batch norm has no effect, so no gradient but rounding
            if name != "encoder.bias":
                assert torch.equal(tensor, old[name]) == (name in fixed), name


@pytest.mark.parametrize("local", ["pred", "sim", "predsim"])
def test_glob_plus_learns_from_the_sum_of_all_losses(local: str) -> None:
    blocks = blocks_of({"name": f"glob+{local}", "beta": 0.5})
    for block in blocks:
        stir(block)
    x, labels = batch()
    twin = blocks_of({"name": f"glob+{local}", "beta": 0.5})
    for block, other in zip(blocks, twin, strict=True):
        other.load_state_dict(block.state_dict())
    losses, h = [], x
    for other in twin:
        arrived, h = h, other(h, batch_id=1)
        losses.append(loss_of(other, h, labels, arrived).loss)
        h = other.transfer(h, batch_id=1)
    total = sum(losses[1:], start=losses[0])
    gradients = torch.autograd.grad(total, [p for other in twin for p in other.learned])
    iterator = iter(gradients)
    for other in twin:
        other.update([next(iterator) for _ in other.learned], 0.01)
    Stage(blocks, None).train(x, labels, batch_id=1, lr=0.01, send=ignored)
    for block, other in zip(blocks, twin, strict=True):
        for name, tensor in block.state_dict().items():
            torch.testing.assert_close(tensor, other.state_dict()[name])


def test_a_linear_blocks_input_is_flat_before_its_similarities_are_taken() -> None:
    """Not the standard deviation over space, as for feature maps that a convolution takes."""
    linear = blocks_of({"name": "sim", "unsupervised": "sim", "alpha": 1.0})[2]
    h, x = activation(linear), received(linear)
    assert x.dim() == 4
    loss = loss_of(linear, h, torch.arange(EXAMPLES) % CLASSES, x).loss
    assert linear.sim is not None
    mapped = similarity_matrix(linear.sim(h))
    torch.testing.assert_close(loss, F.mse_loss(mapped, similarity_matrix(x.flatten(1))))


@pytest.mark.parametrize("size", [15, 16])
def test_strided_layers_are_rebuilt_in_the_size_of_their_input(size: int) -> None:
    loss = {"name": "pred", "unsupervised": "recon", "alpha": 0.5}
    model = {"name": "resnet18", "feat_mult": 0.05}
    for spec in specs_of(model, loss, (3, size, size), CLASSES)[1:-1]:
        block = block_of(spec)
        assert block.recon is not None
        assert block.recon(activation(block)).shape == (EXAMPLES, *spec.in_shape)


def test_a_groups_unsupervised_part_looks_at_the_input_of_the_group() -> None:
    """Blocks of several layers: what comes in is what the first of them receives."""
    model = {"name": "mlp", "hidden_layers": 2, "hidden": 7, "group": 2, "nonlinearity": "relu"}
    loss = {"name": "pred", "unsupervised": "sim", "alpha": 1.0}
    stage = stage_of(specs_of(model, loss, (1, 3, 4), CLASSES))
    blocks = stage.blocks
    x = torch.randn(EXAMPLES, 1, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        h = blocks[1](blocks[0](x, batch_id=1), batch_id=1)
        assert blocks[1].sim is not None
        mapped = similarity_matrix(blocks[1].sim(h))
        expected = F.mse_loss(mapped, similarity_matrix(x)).item() * EXAMPLES
    stage.train(x, torch.arange(EXAMPLES) % CLASSES, batch_id=1, lr=0.1, send=ignored)
    assert stage.training.read()[0].loss_sum == pytest.approx(expected)
