"""One optimizer per block, over PyTorch's functional optimizers.

The functional forms take the learning rate with each step, which is how it arrives (in the
batch header), and their state has plain names for the checkpoint. The classes of torch.optim
also import torch._dynamo at their first use, 2 s in every process that starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Optimizer(Protocol):
    """Owns the state for a fixed list of parameters, in the order given."""

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Update the parameters in place; one gradient per parameter, of its shape."""

    def state(self) -> dict[str, Tensor]:
        """The live state tensors, named `<parameter>.<quantity>`."""


class Adam:
    """Kingma & Ba (2015); `amsgrad` after Reddi et al. (2018). Weight decay is an L2 penalty."""

    def __init__(
        self, parameters: Mapping[str, Tensor], *, weight_decay: float, amsgrad: bool
    ) -> None:
        self._names = list(parameters)
        self._parameters = [parameter.detach() for parameter in parameters.values()]
        self._weight_decay = weight_decay
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._largest = [torch.zeros_like(p) for p in self._parameters] if amsgrad else []
        self._steps = [torch.zeros((), device=p.device) for p in self._parameters]

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Update the parameters in place."""
        adam(
            self._parameters,
            list(gradients),
            self._means,
            self._squares,
            self._largest,
            self._steps,
            fused=True,
            amsgrad=bool(self._largest),
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """`exp_avg`, `exp_avg_sq`, `step`, and with AMSGrad `max_exp_avg_sq`."""
        quantities = {"exp_avg": self._means, "exp_avg_sq": self._squares, "step": self._steps}
        if self._largest:
            quantities["max_exp_avg_sq"] = self._largest
        return _named(self._names, quantities)


class SGD:
    """Stochastic gradient descent with momentum; weight decay is an L2 penalty."""

    def __init__(
        self, parameters: Mapping[str, Tensor], *, weight_decay: float, momentum: float
    ) -> None:
        self._names = list(parameters)
        self._parameters = [parameter.detach() for parameter in parameters.values()]
        self._weight_decay, self._momentum = weight_decay, momentum
        # a buffer of zeros gives the same first step as PyTorch's own, which starts at none
        self._buffers = [torch.zeros_like(p) for p in self._parameters] if momentum else []

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Update the parameters in place."""
        buffers: list[Tensor | None] = [*self._buffers] or [None] * len(self._parameters)
        sgd(
            self._parameters,
            list(gradients),
            buffers,
            fused=True,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """`momentum` per parameter; empty without momentum."""
        return _named(self._names, {"momentum": self._buffers} if self._buffers else {})


def make_optimizer(
    name: Literal["adam", "amsgrad", "sgd"],
    parameters: Mapping[str, Tensor],
    *,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """The optimizer of one block; `momentum` matters to `sgd` only."""
    if name == "sgd":
        return SGD(parameters, weight_decay=weight_decay, momentum=momentum)
    return Adam(parameters, weight_decay=weight_decay, amsgrad=name == "amsgrad")


def _named(names: list[str], quantities: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    return {
        f"{name}.{quantity}": tensor
        for quantity, tensors in quantities.items()
        for name, tensor in zip(names, tensors, strict=True)
    }
