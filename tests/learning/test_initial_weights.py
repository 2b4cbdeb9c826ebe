"""What classifiers start from, as the authors' do, and five steps from there in plain PyTorch.

The golden cases begin at random weights, so they can't show a start; these begin at ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import ignored, stage_of
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.loss import LossConfig
from pipeline.config.model import ModelConfig
from pipeline.network.from_config import build_specs

if TYPE_CHECKING:
    from pipeline.learning.stage import Stage


MLP: dict[str, Any] = {"name": "mlp", "hidden_layers": 2, "hidden": 9}
VGG: dict[str, Any] = {"name": "vgg", "layers": [4, "M", 6], "hidden": 7}
CLASSES, LR, STEPS = 5, 0.01, 5


def built(model: dict[str, Any], loss: dict[str, Any]) -> Stage:
    given = LossConfig.model_validate({"dim_in_decoder": 16, "target_projection": 6, **loss})
    specs = build_specs(ModelConfig.model_validate(model), given, "leaky_relu", (3, 8, 8), CLASSES)
    return stage_of(specs, seed=2, optimizer="adam")


# --- the start ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MLP, VGG], ids=["mlp", "vgg"])
@pytest.mark.parametrize(
    "loss", ["pred", "sim", "predsim", "glob+pred", "glob+sim", "glob+predsim"]
)
def test_the_output_starts_at_zero_beside_local_losses(model: dict[str, Any], loss: str) -> None:
    output = built(model, {"name": loss}).blocks[-1].state()
    assert not output["encoder.weight"].any()
    assert output["encoder.bias"].all()


@pytest.mark.parametrize("model", [MLP, VGG, {"name": "resnet18", "feat_mult": 0.05}], ids=str)
def test_the_output_starts_at_random_under_plain_global_backprop(model: dict[str, Any]) -> None:
    output = built(model, {"name": "glob"}).blocks[-1].state()
    assert output["encoder.weight"].all()
    assert output["encoder.bias"].all()


@pytest.mark.parametrize("model", [MLP, VGG], ids=["mlp", "vgg"])
@pytest.mark.parametrize("loss", ["pred", "predsim", "glob+pred"])
def test_classifiers_of_the_bio_form_start_at_zero_bias_and_all(
    model: dict[str, Any], loss: str
) -> None:
    for block in built(model, {"name": loss, "bio": True}).blocks[:-1]:
        state = block.state()
        assert not state["pred.weight"].any()
        assert not state["pred.bias"].any()
        assert state["pred.feedback"].all()


@pytest.mark.parametrize(
    "loss", [{}, {"classifier": "fixed"}, {"classifier": "fixed", "feedback": "sign"}], ids=str
)
def test_biases_of_other_classifiers_start_at_random(loss: dict[str, Any]) -> None:
    for block in built(VGG, {"name": "pred", **loss}).blocks[:-1]:
        assert block.state()["pred.bias"].all()


def test_a_zero_bias_moves_no_other_draw() -> None:
    plain, bio = (built(VGG, {"name": "pred", "bio": bio}) for bio in (False, True))
    for one, other in zip(plain.blocks, bio.blocks, strict=True):
        torch.testing.assert_close(one.encoder.weight, other.encoder.weight, rtol=0, atol=0)


# --- five steps from there ----------------------------------------------------------------


class Plain:
    """The method for MLPs, written again from the equations: plain tensors and autograd.

    State: that of the stage's blocks, by `index.key`.
    """

    def __init__(self, stage: Stage, loss: LossConfig) -> None:
        self.loss, self.last = loss, len(stage.blocks) - 1
        self.state = {
            f"{block.spec.index}.{key}": tensor.detach().clone()
            for block in stage.blocks
            for key, tensor in block.state_dict().items()
        }
        learned = [
            tensor.requires_grad_()
            for name, tensor in self.state.items()
            if name.endswith((".weight", ".bias")) and "projection" not in name
        ]
        self.adam = torch.optim.Adam(learned, LR)

    def step(self, x: Tensor, labels: Tensor) -> None:
        beta = self.loss.beta if self.loss.local == "predsim" else None
        x = x.flatten(1)
        losses = []
        for index in range(self.last):
            h = self.activation(x, index)
            losses.append(self.local_loss(h, labels, index))
            x = h if self.loss.is_global else h.detach()
        output = F.cross_entropy(self.linear(x, f"{self.last}.encoder"), labels)
        losses.append(output if beta is None else (1 - beta) * output)
        self.adam.zero_grad()
        torch.stack(losses).sum().backward()
        self.adam.step()

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def activation(self, x: Tensor, index: int) -> Tensor:
        z = self.linear(x, f"{index}.encoder")
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()
        z = z * self.state[f"{index}.bn.weight"] + self.state[f"{index}.bn.bias"]
        return torch.where(z > 0, z, 0.01 * z)

    def local_loss(self, h: Tensor, labels: Tensor, index: int) -> Tensor:
        one_hot = torch.eye(CLASSES, dtype=torch.float64)[labels]
        target = one_hot @ self.state[f"{index}.projection.weight"].T if self.loss.bio else one_hot
        pred = 0.0 if self.loss.local == "sim" else self.pred(h, labels, target, index)
        sim = 0.0 if self.loss.local == "pred" else self.sim(h, target, index)
        beta = {"pred": 0.0, "sim": 1.0}.get(str(self.loss.local), self.loss.beta)
        return (1 - beta) * pred + beta * sim  # type: ignore[return-value]

    def pred(self, h: Tensor, labels: Tensor, target: Tensor, index: int) -> Tensor:
        if not self.loss.bio:
            logits = self.linear(h, f"{index}.pred")
            return -logits.log_softmax(1)[range(len(labels)), labels].mean()
        logits = self.linear(h.detach(), f"{index}.pred")
        wanted = (target > 0).double()
        loss = -(wanted * F.logsigmoid(logits) + (1 - wanted) * F.logsigmoid(-logits)).mean()
        error = (logits.sigmoid() - wanted).detach() / wanted.numel()
        carried = (h * (error @ self.state[f"{index}.pred.feedback"])).sum()
        return loss + carried - carried.detach()

    def sim(self, h: Tensor, target: Tensor, index: int) -> Tensor:
        mapped = h if self.loss.bio else h @ self.state[f"{index}.sim.weight"].T
        return (cosines(mapped) - cosines(target)).square().mean()


def cosines(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    x = x / (1e-8 + x.square().sum(1, keepdim=True).sqrt())
    return (x @ x.T).clamp(-1, 1)


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "glob+pred"},
        {"name": "glob+sim"},
        {"name": "glob+predsim", "beta": 0.7},
        {"name": "pred", "bio": True},
        {"name": "predsim", "bio": True, "beta": 0.01},
        {"name": "glob+pred", "bio": True},
    ],
    ids=str,
)
def test_five_steps_from_the_start_are_those_of_plain_pytorch(loss: dict[str, Any]) -> None:
    stage = built(MLP, loss)
    plain = Plain(stage, LossConfig.model_validate(loss))
    draws = torch.Generator().manual_seed(6)
    for batch_id in range(1, STEPS + 1):
        x = torch.randn(11, 3, 8, 8, generator=draws, dtype=torch.float64)
        labels = torch.randint(CLASSES, (11,), generator=draws)
        stage.train(x, labels, batch_id=batch_id, lr=LR, send=ignored)
        plain.step(x, labels)
    for block in stage.blocks:
        for key, tensor in block.state_dict().items():
            if "running" in key or "tracked" in key:
                continue
            expected = plain.state[f"{block.spec.index}.{key}"].detach()
            torch.testing.assert_close(
                tensor, expected, rtol=1e-7, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
            )
