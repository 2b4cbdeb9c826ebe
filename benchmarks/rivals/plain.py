"""The same method as one would write it at first: the baseline of benchmarks.throughput.

    for each block:  h = activation(x)            x: detached, from the block before
                     loss(h).backward()           pred, sim or predsim
                     optimizer.step()             Adam of this block, parameter by parameter
                     loss.item()                  looked at, at every step
                     x = pool(dropout(h.detach()))

Correct, and in no way tuned: one process, contiguous format, fp32, no fused kernel. Its losses
are compared with ours in tests/benchmarks/test_plain.py.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.contenders import task_of
from benchmarks.lib.laps import made_up_batches, timed
from launch.machine.gpus import devices
from pipeline.data.facts import data_facts
from pipeline.learning.build import without_tf32
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.network.specs import BlockSpec, PoolSpec


class Layer(nn.Module):
    """Linear layer or convolution, batch norm, non-linearity; dropout and pooling after it.

    The names of its parts, and so of its state, are those of `pipeline.learning.block`. `linear`:
    what makes linear layers.
    """

    def __init__(self, spec: BlockSpec, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        _check_plain(spec)
        flat, layer = spec.layer.kind == "linear", spec.layer
        self.flat, self.is_output = flat, spec.is_output
        self.encoder: nn.Linear | nn.Conv2d = (
            linear(layer.in_features, layer.out_features)
            if flat
            else nn.Conv2d(
                layer.in_features, layer.out_features, layer.kernel, layer.stride, layer.padding
            )
        )
        if spec.zero_start:
            nn.init.zeros_(self.encoder.weight)
        if spec.batch_norm:
            self.bn = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(layer.out_features)
        self.nonlinearity = nn.ReLU() if spec.nonlinearity == "relu" else nn.LeakyReLU(0.01)
        self.dropout = (nn.Dropout if flat else nn.Dropout2d)(spec.dropout)
        self.pool = pooling(spec.pool)
        self.normalises = spec.batch_norm

    def activation(self, x: Tensor) -> Tensor:
        """What the heads see; of the output layer, the logits."""
        h: Tensor = self.encoder(x.flatten(1) if self.flat else x)
        if self.is_output:
            return h
        if self.normalises:
            h = self.bn(h)
        activation: Tensor = self.nonlinearity(h)
        return activation

    def passed(self, h: Tensor) -> Tensor:
        """What the next layer receives."""
        if self.is_output:
            return h
        pooled: Tensor = self.pool(self.dropout(h))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Both, as global backprop has them."""
        return self.passed(self.activation(x))


class PlainBlock(Layer):
    """A layer with its local loss."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        if spec.pred is not None:
            self.pred = nn.Linear(spec.pred.features, spec.pred.outputs)
            nn.init.zeros_(self.pred.weight)
            self.pred_pool = pooling(spec.pred.pool)
        if spec.sim is not None:
            self.sim = (
                nn.Linear(spec.sim.features, spec.sim.features, bias=False)
                if spec.sim.kind == "linear"
                else nn.Conv2d(spec.sim.features, spec.sim.features, 3, padding=1, bias=False)
            )

    def local_loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Section 3 of the paper: cross-entropy, similarity matching, or both."""
        spec, loss = self.spec, h.new_zeros(())
        if spec.output_weight is not None:
            return spec.output_weight * F.cross_entropy(h, labels)
        if spec.pred is not None:
            logits = self.pred(self.pred_pool(h).flatten(1))
            loss = loss + spec.pred.weight * F.cross_entropy(logits, labels)
        if spec.sim is not None:
            target = similarity(F.one_hot(labels, spec.classes).to(h.dtype))
            loss = loss + spec.sim.weight * F.mse_loss(similarity(self.sim(h)), target)
        return loss


class PlainTrainer:
    """All blocks, each with an optimizer of its own."""

    def __init__(self, blocks: Sequence[PlainBlock], lr: float) -> None:
        self.blocks = blocks
        self.optimizers = [
            torch.optim.Adam(block.parameters(), lr=lr, foreach=False, fused=False)
            for block in blocks
        ]

    def step(self, x: Tensor, labels: Tensor) -> list[float]:
        """Train a batch; the loss of every block."""
        losses: list[float] = []
        for block, optimizer in zip(self.blocks, self.optimizers, strict=True):
            h = block.activation(x)
            loss = block.local_loss(h, labels)
            x = block.passed(h.detach())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        return losses


def similarity(x: Tensor) -> Tensor:
    """The cosine similarity of the examples in a batch, each centred: (n, n)."""
    if x.dim() == 4 and x.shape[1] > 3 and x.shape[2] > 1:
        x = x.std(dim=(2, 3))
    x = x.flatten(1)
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (1e-8 + torch.sqrt((x**2).sum(dim=1, keepdim=True)))
    return torch.mm(x, x.t()).clamp(-1.0, 1.0)


def pooling(spec: PoolSpec | None) -> nn.Module:
    """The module of a pooling; the identity for None."""
    if spec is None:
        return nn.Identity()
    make = nn.MaxPool2d if spec.kind == "max" else nn.AvgPool2d
    return make(spec.kernel, spec.stride, spec.padding)


def _check_plain(spec: BlockSpec) -> None:
    special = spec.shortcut or spec.custom or spec.projection or spec.unsupervised != "none"
    if special or (spec.pred is not None and (spec.pred.hidden or spec.pred.feedback != "learned")):
        raise SystemExit(
            f"block {spec.index}, {spec.name}: only an MLP or a VGG with pred, sim or predsim, "
            "without their variants, has a plain baseline"
        )


@click.command()
@click.argument("task_text")
def main(task_text: str) -> None:
    """Train what TASK_TEXT says (`contenders.Task` as JSON); print how fast that was, as JSON."""
    task = task_of(task_text)
    config, device = task.config(), torch.device(devices(task.gpus)[0])
    torch.set_num_threads(task.threads)
    without_tf32()
    torch.manual_seed(config.runtime.seed)
    specs = network_specs(config, data_facts(config.data))
    trainer = PlainTrainer([PlainBlock(spec).to(device) for spec in specs], config.optimizer.lr)
    batches = made_up_batches(config, device)
    print(json.dumps(timed(trainer.step, batches, task.seconds, device)))


if __name__ == "__main__":
    main()
