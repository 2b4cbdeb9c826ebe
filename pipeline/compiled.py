"""`runtime.compile`: a block's arithmetic as kernels that torch.compile makes of it.

What is compiled is the plain form of a block: the hand-written backward passes of `losses.py`,
`readout.py`, `remade.py` and `nonlinearity.py`, made for eager kernels, step aside
(`torch.compiler.is_compiling`). Every process compiles each block by itself, so how blocks are
divided into stages changes no result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Given = ParamSpec("Given")
Result = TypeVar("Result")

BACKEND = "inductor"
_VARIANTS = 1 << 16
"""Of one function, at most: for each block, its last batch, its tests."""


class Compiler:
    """Compiles functions of tensors, until it fails once; from then on they run as they are.

    Args:
        tell: hears why it failed.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._failed = tell, False
        _prepare()

    def compiled(self, function: Callable[Given, Result]) -> Callable[Given, Result]:
        """A function that does the same."""
        fast = torch.compile(function, dynamic=False, backend=BACKEND)

        def call(*given: Given.args, **named: Given.kwargs) -> Result:
            if not self._failed:
                try:
                    return fast(*given, **named)
                except Exception as error:  # of any kind: the compiler runs other programs
                    self._fail(error)
            return function(*given, **named)

        return call

    def _fail(self, error: Exception) -> None:
        self._failed = True
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().partition("\n")[0]
        self._tell(
            f"runtime.compile: the compiler failed, training goes on without it "
            f"({type(cause).__name__}: {reason:.200})"
        )


def _prepare() -> None:
    """Compile in this process, the backward pass along with the forward one, whose failure could
    not be answered later."""
    from torch import _dynamo, _functorch, _inductor

    _dynamo.config.recompile_limit = _VARIANTS
    _dynamo.config.accumulated_recompile_limit = _VARIANTS
    if hasattr(_functorch.config, "force_non_lazy_backward_lowering"):  # older ones never are lazy
        _functorch.config.force_non_lazy_backward_lowering = True
    if hasattr(_inductor.config, "deterministic"):  # else it times kernels, and takes the fastest
        _inductor.config.deterministic = True
    _inductor.config.compile_threads = 1
