"""Multiply-adds of whatever modules do, counted where PyTorch multiplies matrices or convolves."""

from __future__ import annotations

from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATEN: Any = torch.ops.aten
_PRODUCTS = {_ATEN.mm: 0, _ATEN.bmm: 0, _ATEN.addmm: 1, _ATEN.baddbmm: 1}
"""Products of matrices, with the place of the left one among the arguments."""


class MultiplyAdds(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside; non-linearities, normalisation and the like count as nothing.

    PyTorch's own counter (torch.utils.flop_counter) would import triton, which takes half a second.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch imports its compiler when the first operation is counted, which takes every
        process 1.5 s and 150 MB; nothing is compiled while it counts."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation in _PRODUCTS:
            self.count += result.numel() * args[_PRODUCTS[operation]].shape[-1]
        elif operation is _ATEN.convolution:
            x, weight, is_transposed = args[0], args[1], args[6]
            # transposed, it uses its weights for each pixel that it reads, not for each it gives
            pixels = x if is_transposed else result
            self.count += weight.numel() * len(pixels) * prod(pixels.shape[2:])
        return result


@contextmanager
def multiply_adds() -> Iterator[MultiplyAdds]:
    """Inside, they are counted; attention takes the way through products of matrices."""
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with MultiplyAdds() as counted, sdpa_kernel(SDPBackend.MATH):
            yield counted
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
