"""What kernels a step runs, and how long each kind of them takes, on the CPU.

    a step   |.[conv].[norm].[relu]..[conv]...[fused adam].|    kernels, and what is between

Each kernel is timed where PyTorch dispatches it. Of the same kernel on the same shapes the median
counts for all: machines drift, and the first touch of fresh memory takes its time.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONVOLUTIONS, PRODUCTS, OPTIMIZER, OTHERS = "convolutions", "products", "optimizer", "other kernels"
_PARTS: Mapping[str, Sequence[str]] = {
    CONVOLUTIONS: ("convolution",),
    PRODUCTS: ("mm", "linear_pointwise"),
    "batch norm": ("batch_norm",),
    "activation, pooling": ("relu", "threshold", "pool", "maximum"),
    "copies, casts": ("copy", "clone"),
    OPTIMIZER: ("fused_adam",),
}
"""What the name of a kernel contains; the first one that fits."""
KINDS = (*_PARTS, OTHERS)


class KernelClock(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every kernel of this thread is timed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._laps: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._optimizing = False

    def __torch_dispatch__(
        self,
        kernel: Any,
        types: Sequence[type],
        given: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        began = perf_counter()
        result = kernel(*given, **(named or {}))
        took = perf_counter() - began
        kind = OPTIMIZER if self._optimizing else kind_of(kernel.overloadpacket.__name__)
        self._laps[kind, f"{kernel} {_forms(given)}"].append(took)
        return result

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Whatever its steps run belongs to the optimizer."""
        optimizer.register_step_pre_hook(lambda *given: self._set_optimizing(True))
        optimizer.register_step_post_hook(lambda *given: self._set_optimizing(False))

    def _set_optimizing(self, optimizing: bool) -> None:
        self._optimizing = optimizing

    def seconds(self, steps: int) -> dict[str, float]:
        """Of each kind, in one of the steps that were timed."""
        found = dict.fromkeys(KINDS, 0.0)
        for (kind, _), laps in self._laps.items():
            found[kind] += median(laps) * len(laps) / steps
        return found


def kind_of(name: str) -> str:
    """The kind that a kernel is counted to."""
    fitting = (kind for kind, parts in _PARTS.items() if any(part in name for part in parts))
    return next(fitting, OTHERS)


def _forms(given: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [(x.shape, x.stride(), x.dtype) for x in given if isinstance(x, torch.Tensor)]
