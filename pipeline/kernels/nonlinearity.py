"""The non-linearity of hidden layers, in place: forward over its input, backward over its error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    Nonlinearity: TypeAlias = Literal["relu", "leaky_relu"]

LEAKY_SLOPE = 0.01  # section 4 of the paper


def activate(x: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """The non-linearity of x, in place of x; its gradient in place of that of h.

    Nobody else may need x, as after a batch norm, nor the gradient, which is so for what heads,
    pooling and layers give back.
    """
    if torch.compiler.is_compiling():
        return F.relu(x) if nonlinearity == "relu" else F.leaky_relu(x, LEAKY_SLOPE)
    activated: Tensor = _Activate.apply(x, nonlinearity)
    return activated


def activate_(x: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """The values alone, in place of x."""
    return F.relu_(x) if nonlinearity == "relu" else F.leaky_relu_(x, LEAKY_SLOPE)


def activate_backward_(by_h: Tensor, h: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """The gradient of what was activated to h, in place of that of h."""
    if nonlinearity == "relu":
        torch.ops.aten.threshold_backward.grad_input(by_h, h, 0, grad_input=by_h)
    else:
        backward = torch.ops.aten.leaky_relu_backward.grad_input
        backward(by_h, h, LEAKY_SLOPE, True, grad_input=by_h)
    return by_h


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, nonlinearity: Nonlinearity) -> Tensor:
        h = activate_(x, nonlinearity)
        ctx.mark_dirty(h)
        ctx.save_for_backward(h)
        ctx.nonlinearity = nonlinearity
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_h: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        return activate_backward_(by_h, h, ctx.nonlinearity), None
