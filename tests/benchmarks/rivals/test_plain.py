"""The plain baseline, and the layers of 1F1B, learn what our stages learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from support import blocks
from support.blocks import specs_of
from torch import Tensor

from benchmarks.rivals.onef1b import Part, loss_of
from benchmarks.rivals.plain import PlainBlock, PlainTrainer

if TYPE_CHECKING:
    from pipeline.learning.stage import Stage

LR, STEPS, CPU = 5e-4, 3, torch.device("cpu")
MODELS = {
    "mlp": {"name": "mlp", "hidden_layers": 2, "hidden": 12},
    # a decoder that pools, one that pads, both poolings
    "vgg": {"name": "vgg", "layers": [5, "M", 6, "A3", 6], "hidden": 8},
    "vgg, whole maps decoded": {"name": "vgg", "layers": [5, "M", 6, "A3", 6], "hidden": 8},
}
DECODED = {"vgg, whole maps decoded": 1024}
"""Inputs of a decoder, at most; 24 of others."""


def stage_of(model: str, loss: str) -> Stage:
    """A stage of ours that holds the whole network, in float64."""
    section = {"name": loss, "dim_in_decoder": DECODED.get(model, 24)}
    return blocks.stage_of(specs_of(MODELS[model], section, (3, 9, 9), 4), optimizer="adam")


def losses_of(stage: Stage, x: Tensor, labels: Tensor, batch_id: int) -> list[float | None]:
    """Train a batch; the loss of every block that has one."""
    stage.training.reset()
    stage.train(x, labels, batch_id=batch_id, lr=LR, send=lambda sent: None)
    return [tally.loss for tally in stage.training.read()]


def batches() -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(7, 3, 9, 9, generator=draws, dtype=torch.float64),
            torch.randint(4, (7,), generator=draws),
        )
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", ["pred", "sim", "predsim"])
def test_the_plain_baseline_is_the_same_method(model: str, loss: str) -> None:
    stage = stage_of(model, loss)
    trainer = PlainTrainer([PlainBlock(block.spec).double() for block in stage.blocks], LR)
    for block, copy in zip(stage.blocks, trainer.blocks, strict=True):
        copy.load_state_dict(block.state_dict())
    for batch_id, (x, labels) in enumerate(batches(), 1):
        ours = losses_of(stage, x, labels, batch_id)
        assert trainer.step(x, labels) == pytest.approx(ours, rel=1e-9)
    for block, copy in zip(stage.blocks, trainer.blocks, strict=True):
        for name, tensor in copy.state_dict().items():
            torch.testing.assert_close(tensor, block.state_dict()[name])


@pytest.mark.parametrize("model", MODELS)
def test_1f1b_has_the_layers_of_our_global_backprop(model: str) -> None:
    stage = stage_of(model, "glob")
    halves = (stage.blocks[:2], stage.blocks[2:])
    parts = [Part(tuple(block.spec for block in half), CPU, bf16=False).double() for half in halves]
    for part, half in zip(parts, halves, strict=True):
        for layer, block in zip(part.layers, half, strict=True):
            layer.load_state_dict(block.state_dict())
    optimizers = [torch.optim.Adam(part.parameters(), LR, fused=True) for part in parts]
    for batch_id, (x, labels) in enumerate(batches(), 1):
        sent = parts[0](x)
        received = sent.detach().requires_grad_()
        loss = loss_of(parts[1](received), labels)
        (gradient,) = torch.autograd.grad(loss, received, retain_graph=True)
        assert sent.is_contiguous()
        assert gradient.is_contiguous()
        loss.backward()
        sent.backward(gradient)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert [loss.item()] == pytest.approx(losses_of(stage, x, labels, batch_id), rel=1e-5)


def test_the_plain_baseline_refuses_what_it_does_not_know() -> None:
    specs = specs_of({"name": "resnet18"}, {"name": "pred"}, (3, 32, 32), 10)
    with pytest.raises(SystemExit, match="only an MLP or a VGG"):
        [PlainBlock(spec) for spec in specs]
