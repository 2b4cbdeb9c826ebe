"""One optimizer per block, over PyTorch's fused kernels.

They take the learning rate with each step, which is how it arrives (in the batch header), and
their state has plain names for the checkpoint. A parameter without a gradient gets no step, and
its state none either; steps are counted for each parameter, as in torch.optim. The classes of
torch.optim also import torch._dynamo at their first use, 2 s in every process that starts; its
function `adam` takes four times as long as the kernel where a layer is small, most of it to count
steps one by one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

fused_adam = torch._fused_adam_


class Optimizer(Protocol):
    """Owns the state for a fixed list of parameters, in the order given."""

    def step(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        """Update the parameters in place; one gradient per parameter, of its shape, or None, which
        leaves the parameter and its state as they are. A rate may lie in memory, as a scalar."""

    def state(self) -> dict[str, Tensor]:
        """The state tensors, named `<parameter>.<quantity>`; live ones, once it is held."""

    def hold(self) -> None:
        """Take memory for the state, all zeros, unless that has been done."""

    def release(self) -> None:
        """Forget the state and give its memory back: the parameters learn no more."""


class _WithState(ABC):
    """The state of an optimizer by quantity, one tensor per parameter."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._held: dict[str, list[Tensor]] = {}

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{quantity}": tensor
            for quantity, tensors in (self._held or self._zeros()).items()
            for name, tensor in zip(self._names, tensors, strict=True)
        }

    def hold(self) -> None:
        self._held = self._held or self._zeros()

    def release(self) -> None:
        self._held = {}

    @abstractmethod
    def _zeros(self) -> dict[str, list[Tensor]]:
        """The state before the first step."""


class Adam(_WithState):
    """Kingma & Ba (2015); `amsgrad` after Reddi et al. (2018). Weight decay is an L2 penalty.

    State: `exp_avg`, `exp_avg_sq`, `step`, and with AMSGrad `max_exp_avg_sq`.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, weight_decay: float, amsgrad: bool
    ) -> None:
        super().__init__(parameters)
        self._weight_decay, self._amsgrad = weight_decay, amsgrad
        self._steps = torch.zeros(0)
        """All of `held["step"]`, views of it: a file of tensors takes no memory under two names."""

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        at = _places(gradients)
        if not at:  # a layer that only reshapes, under global backprop; or one that was not used
            return
        self.hold()
        parameters, steps = _real(self._parameters, at), _of(self._held["step"], at)
        if len(at) == len(self._parameters):
            self._steps.add_(1)
        else:
            torch._foreach_add_(steps, 1)
        fused_adam(
            parameters,
            _laid_out(_real(gradients, at), parameters),
            _of(self._held["exp_avg"], at),
            _of(self._held["exp_avg_sq"], at),
            _of(self._held.get("max_exp_avg_sq", []), at),
            steps,
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self._weight_decay,
            eps=1e-8,
            amsgrad=self._amsgrad,
            maximize=False,
        )

    def _zeros(self) -> dict[str, list[Tensor]]:
        places = {p.device for p in self._parameters}  # one, or none
        self._steps = torch.zeros(len(self._names), device=next(iter(places), None))
        quantities = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self._amsgrad else [])]
        zeros = {name: _zeros_like(self._parameters) for name in quantities}
        return {**zeros, "step": list(self._steps.unbind())}


class SGD(_WithState):
    """Stochastic gradient descent with momentum; weight decay is an L2 penalty.

    State: `momentum`; none without momentum.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(parameters)
        self._weight_decay, self._momentum = weight_decay, momentum

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        at = _places(gradients)
        self.hold()
        momenta: list[Tensor | None] = [*_of(self._held.get("momentum", []), at)]
        parameters = _real(self._parameters, at)
        sgd(
            parameters,
            _laid_out(_real(gradients, at), parameters),
            momenta or [None] * len(at),
            fused=True,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def _zeros(self) -> dict[str, list[Tensor]]:
        # a buffer of zeros gives the same first step as PyTorch's own, which starts at none
        return {"momentum": _zeros_like(self._parameters)} if self._momentum else {}


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


def _places(gradients: Sequence[Tensor | None]) -> list[int]:
    """Of the parameters that got a gradient."""
    return [i for i, gradient in enumerate(gradients) if gradient is not None]


def _of(tensors: Sequence[Tensor | None], at: Sequence[int]) -> list[Tensor]:
    """Those at these places: nearly always all of them, in every step of every block."""
    chosen = tensors if len(at) >= len(tensors) else [tensors[i] for i in at]
    return list(cast("Sequence[Tensor]", chosen))


def _real(tensors: Sequence[Tensor | None], at: Sequence[int]) -> list[Tensor]:
    """Those at these places; complex ones as pairs of real numbers, over the same memory."""
    return [torch.view_as_real(t) if t.is_complex() else t for t in _of(tensors, at)]


def _zeros_like(parameters: Sequence[Tensor]) -> list[Tensor]:
    real = [torch.view_as_real(p.detach()) if p.is_complex() else p for p in parameters]
    return [torch.zeros_like(p) for p in real]


def _laid_out(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients that lie in memory as their parameters do: fused kernels go by that alone."""
    return [
        gradient if gradient.stride() == p.stride() else torch.empty_like(p).copy_(gradient)
        for gradient, p in zip(gradients, parameters, strict=True)
    ]
