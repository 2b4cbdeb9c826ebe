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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OptimizerName: TypeAlias = Literal["adam", "amsgrad", "adamw", "sgd"]

fused_adam, fused_adamw = torch._fused_adam_, torch._fused_adamw_

_LEAST_NORM = 1e-6
"""Added to the norm of gradients before it divides, as in torch.nn.utils.clip_grad_norm_."""


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
    """Kingma & Ba (2015); `amsgrad` after Reddi et al. (2018). Weight decay is an L2 penalty, or,
    `decoupled`, shrinks the parameters by itself (Loshchilov & Hutter 2019, algorithm 2).

    State: `exp_avg`, `exp_avg_sq`, `step`, and with AMSGrad `max_exp_avg_sq`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        weight_decay: float,
        amsgrad: bool = False,
        decoupled: bool = False,
    ) -> None:
        super().__init__(parameters)
        self._weight_decay, self._amsgrad, self._decoupled = weight_decay, amsgrad, decoupled
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
        fused = fused_adamw if self._decoupled else fused_adam
        fused(
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
    """Stochastic gradient descent with momentum, which `nesterov` (Sutskever et al. 2013) looks
    ahead by; weight decay is an L2 penalty.

    State: `momentum`; none without momentum.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        weight_decay: float,
        momentum: float,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters)
        self._weight_decay, self._momentum = weight_decay, momentum
        self._nesterov = nesterov

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
            nesterov=self._nesterov,
            maximize=False,
        )

    def _zeros(self) -> dict[str, list[Tensor]]:
        # a buffer of zeros gives the same first step as PyTorch's own, which starts at none
        return {"momentum": _zeros_like(self._parameters)} if self._momentum else {}


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Some parameters of a block, by name, and the optimizer that holds just these, in this order.

    `factor`: on the learning rate that arrives with each step.
    """

    names: Sequence[str]
    optimizer: Optimizer
    factor: float = 1.0


class ParameterGroups:
    """The optimizers of the parts of a block as one. Each parameter is of one part.

    State: that of the parts, by the same names.
    """

    def __init__(self, names: Iterable[str], parts: Sequence[ParameterGroup]) -> None:
        """`names`: of all parameters, in the order in which gradients come."""
        place = {name: at for at, name in enumerate(names)}
        self._parts = [(part, [place.pop(name) for name in part.names]) for part in parts]
        assert not place, f"no optimizer has {list(place)}"

    def step(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        for part, at in self._parts:
            rate = lr if part.factor == 1.0 else lr * part.factor
            part.optimizer.step([gradients[place] for place in at], rate)

    def state(self) -> dict[str, Tensor]:
        states = (part.optimizer.state() for part, _ in self._parts)
        return {name: tensor for state in states for name, tensor in state.items()}

    def hold(self) -> None:
        for part, _ in self._parts:
            part.optimizer.hold()

    def release(self) -> None:
        for part, _ in self._parts:
            part.optimizer.release()


class Clipped:
    """Another optimizer, whose gradients are scaled down together to a norm of at most `most`: the
    Euclidean norm of all numbers of all of them (Pascanu et al. 2013). It asks the device nothing.

    State: that of the other optimizer.
    """

    def __init__(self, optimizer: Optimizer, most: float) -> None:
        self._optimizer, self._most = optimizer, most
        self.state, self.hold, self.release = optimizer.state, optimizer.hold, optimizer.release

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float | Tensor) -> None:
        at = _places(gradients)
        if at:
            # not in place: of a user's own network two gradients may be the same tensor
            clipped = iter(_clipped(_of(gradients, at), self._most))
            gradients = [None if gradient is None else next(clipped) for gradient in gradients]
        self._optimizer.step(gradients, lr)


def _clipped(gradients: list[Tensor], most: float) -> Sequence[Tensor]:
    """The gradients times most / norm, where that is less than 1."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return torch._foreach_mul(gradients, (most / (norm + _LEAST_NORM)).clamp(max=1.0))


def make_optimizer(
    name: OptimizerName,
    parameters: Mapping[str, Tensor],
    *,
    weight_decay: float,
    momentum: float,
    nesterov: bool = False,
) -> Optimizer:
    """The optimizer of one block; `momentum` and `nesterov` matter to `sgd` only."""
    if name == "sgd":
        return SGD(parameters, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)
    return Adam(
        parameters,
        weight_decay=weight_decay,
        amsgrad=name == "amsgrad",
        decoupled=name == "adamw",
    )


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
