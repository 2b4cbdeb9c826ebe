"""Linear layers and products of float32 matrices on a CPU, by the library that uses all of it.

PyTorch has MKL multiply such matrices, which uses AVX-512 on Intel's processors alone. On others
that have it oneDNN, which PyTorch brings along for convolutions, is asked instead: 1.1 times as
fast on AMD's Zen 4, the one that was measured. The processor alone decides, so all processes of a
machine round alike. Everything else is PyTorch's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.device.host import processor_fact


class Linear(nn.Linear):
    """nn.Linear for x (n, in_features), or (n, …, in_features)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias: (n, D), (K, D), (K,) to (n, K); more dimensions of x stay."""
    if torch.compiler.is_compiling() or not _is_for_onednn(x):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def product(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ, (m, k) and (n, k) to (m, n), where nobody asks for a gradient."""
    return _onednn(a, b) if _is_for_onednn(a) else a @ b.T


def _is_for_onednn(x: Tensor) -> bool:
    return (
        x.dim() == 2
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and onednn_is_wider()
    )


@lru_cache
def onednn_is_wider() -> bool:
    """Whether oneDNN uses wider instructions of this processor than MKL."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and processor_fact("vendor_id") != "GenuineIntel"
        and getattr(torch.ops.mkldnn, "_linear_pointwise", None) is not None
    )


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b, bias, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _onednn(by_y, weight.T) if for_x else None,
            _onednn(by_y.T, x.T) if for_weight else None,
            by_y.sum(dim=0) if for_bias else None,
        )
