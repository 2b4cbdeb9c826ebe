"""A block: one layer with its heads and its own optimizer; the unit of learning.

`forward` gives the activation h that the heads see; `transfer` gives what is sent downstream
(after dropout and pooling); `learn` updates the weights from the local loss alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import CheckpointError
from pipeline.losses import (
    LossValue,
    PredHead,
    pool,
    prediction_loss,
    similarity_loss,
    similarity_map,
    wide,
)
from pipeline.seeding import Purpose, derived_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.models import BlockSpec, LayerSpec
    from pipeline.optimizers import Optimizer

LEAKY_SLOPE = 0.01  # section 4 of the paper


class Block(nn.Module):
    """One hidden layer with its local heads, or the output layer with its cross-entropy.

    State keys: `encoder.*` (the layer), `bn.*`, `pred.*` (local classifier), `sim.*` (g).
    Initial weights are PyTorch's defaults, drawn for (seed, block index).
    """

    def __init__(
        self, spec: BlockSpec, *, seed: int, device: torch.device, dtype: torch.dtype, bf16: bool
    ) -> None:
        super().__init__()
        self.spec, self.seed, self.device, self.bf16 = spec, seed, device, bf16
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, Purpose.INITIAL, spec.index))
            self._build(spec)
        self.to(device=device, dtype=dtype)
        self._dropout_generator = torch.Generator(device)
        self._optimizer: Optimizer | None = None

    def _build(self, spec: BlockSpec) -> None:
        self.encoder = _layer(spec.layer)
        self.bn = _batch_norm(spec) if spec.batch_norm else None
        self.pred = PredHead(spec.pred, spec.classes) if spec.pred else None
        self.sim = similarity_map(spec.sim) if spec.sim else None

    def attach(self, make_optimizer: Callable[[Mapping[str, Tensor]], Optimizer]) -> None:
        """Give the block the optimizer of its own parameters."""
        self._optimizer = make_optimizer(dict(self.named_parameters()))

    def forward(self, x: Tensor, *, training: bool) -> Tensor:
        """The activation h (logits for the output block), before dropout and pooling.

        Args:
            x: (n, *spec.in_shape), of the block's dtype (bfloat16 allowed under bf16).
            training: use and update the batch statistics; else the running ones, unchanged.
        """
        self.train(training)
        with self._autocast():
            h: Tensor = self.encoder(x.flatten(1) if self.spec.layer.kind == "linear" else x)
            if self.spec.is_output:
                return h
            if self.bn is not None:
                h = self.bn(h)
            return F.relu(h) if self.spec.nonlinearity == "relu" else F.leaky_relu(h, LEAKY_SLOPE)

    def transfer(self, h: Tensor, *, batch_id: int | None) -> Tensor:
        """What the next block receives: h after dropout and pooling, contiguous.

        Dropout draws for (seed, block, batch id); None, in evaluation, drops nothing.
        """
        if batch_id is not None and self.spec.dropout > 0:
            h = h * self._dropout_mask(h, batch_id)
        return pool(h, self.spec.pool).contiguous()

    def local_loss(self, h: Tensor, labels: Tensor) -> LossValue:
        """The loss of this block for its activation (equations 4, 6 and 7)."""
        if self.spec.output_weight is not None:
            value = prediction_loss(wide(h), labels)
            return LossValue(self.spec.output_weight * value.loss, value.errors)
        terms: list[Tensor] = []
        errors = None
        if self.pred is not None and self.spec.pred is not None:
            with self._autocast():
                logits = self.pred(h)
            value = prediction_loss(wide(logits), labels)
            terms.append(self.spec.pred.weight * value.loss)
            errors = value.errors
        if self.sim is not None and self.spec.sim is not None:
            with self._autocast():
                mapped = self.sim(h)
            loss = similarity_loss(wide(mapped), labels, self.spec.classes)
            terms.append(self.spec.sim.weight * loss)
        return LossValue(sum(terms[1:], start=terms[0]), errors)

    def learn(self, loss: Tensor, lr: float) -> None:
        """One step on this block's own parameters; gradients are freed at once."""
        self.update(torch.autograd.grad(loss, list(self.parameters())), lr)

    def update(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Let the optimizer use `gradients`, one per parameter in order."""
        assert self._optimizer is not None, "attach an optimizer before training"
        with torch.no_grad():
            self._optimizer.step(gradients, lr)

    def state(self) -> dict[str, Tensor]:
        """Every live tensor of the block by name: weights, heads, statistics, optimizer."""
        tensors = dict(self.state_dict())
        if self._optimizer is not None:
            named = self._optimizer.state().items()
            tensors.update({f"optimizer.{name}": tensor for name, tensor in named})
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the whole state.

        Raises:
            CheckpointError: where names, shapes or dtypes are not this block's.
        """
        own = self.state()
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())
            raise CheckpointError(
                f"block {self.spec.index}: checkpoint and network differ in {odd}"
            )
        for name, tensor in own.items():
            self._check_alike(name, tensor, tensors[name])
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _check_alike(self, name: str, own: Tensor, given: Tensor) -> None:
        if own.shape != given.shape or own.dtype != given.dtype:
            raise CheckpointError(
                f"block {self.spec.index}: {name} is {given.dtype} {tuple(given.shape)} in the "
                f"checkpoint, {own.dtype} {tuple(own.shape)} in the network"
            )

    def _dropout_mask(self, h: Tensor, batch_id: int) -> Tensor:
        """Zeros and 1/(1 - p), per unit of (n, D) and per channel of (n, C, H, W)."""
        seed = derived_seed(self.seed, Purpose.DROPOUT, self.spec.index, batch_id)
        self._dropout_generator.manual_seed(seed)
        keep = 1.0 - self.spec.dropout
        shape = h.shape[:2] + (1,) * (h.dim() - 2)
        mask = torch.empty(shape, dtype=h.dtype, device=h.device)
        return mask.bernoulli_(keep, generator=self._dropout_generator).div_(keep)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def _layer(spec: LayerSpec) -> nn.Module:
    if spec.kind == "linear":
        return nn.Linear(spec.in_features, spec.out_features)
    return nn.Conv2d(
        spec.in_features, spec.out_features, spec.kernel, stride=spec.stride, padding=spec.padding
    )


def _batch_norm(spec: BlockSpec) -> nn.Module:
    make = nn.BatchNorm1d if spec.layer.kind == "linear" else nn.BatchNorm2d
    return make(spec.layer.out_features)
