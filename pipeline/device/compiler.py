"""`runtime.compile`: a block's arithmetic as kernels that torch.compile makes of it.

What is compiled is the plain form of a block: the hand-written backward passes of `losses.py`,
`spatial_std.py`, `recompute.py` and `nonlinearity.py`, made for eager kernels, step aside
(`torch.compiler.is_compiling`). Every process compiles each block by itself, and where the
compiler fails that part alone stays as it is, so how blocks are divided into stages changes no
result, nor does resuming a run. A function is compiled as a whole or not at all: of one that
breaks apart, the first piece would have moved statistics and drawn numbers before another fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import torch
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

Given = ParamSpec("Given")
Result = TypeVar("Result")

BACKEND = "inductor"
_VARIANTS = 1 << 16
"""Of one function, at most: for each block, its last batch, its tests."""


class FunctionCaller(Protocol):
    """How functions of tensors are called: plainly, or compiled (`Compiler.run`)."""

    def __call__(
        self, function: Callable[Given, Result], *given: Given.args, **named: Given.kwargs
    ) -> Result:
        """The result of `function`."""


def run_plainly(
    function: Callable[Given, Result], *given: Given.args, **named: Given.kwargs
) -> Result:
    """The result of `function`, as Python runs it."""
    return function(*given, **named)


class Compiler:
    """Compiles functions of tensors. What it fails at runs as it is: that function, for tensors
    such as these, which depends neither on the stage's other blocks nor on what was before.

    Args:
        tell: hears why it failed, once.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._has_failed = tell, False
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        _prepare()

    def run(
        self, function: Callable[Given, Result], *given: Given.args, **named: Given.kwargs
    ) -> Result:
        """The result of `function`, by kernels that are compiled for tensors such as these."""
        if function not in self._compiled:
            self._compiled[function] = self.compiled(function)
        result: Result = self._compiled[function](*given, **named)
        return result

    def compiled(self, function: Callable[Given, Result]) -> Callable[Given, Result]:
        """A function that does the same."""
        fast = torch.compile(function, fullgraph=True, dynamic=False, backend=BACKEND)
        failures = _failures()
        refused: set[object] = set()

        def call(*given: Given.args, **named: Given.kwargs) -> Result:
            kind = _kind(given, named)
            if kind not in refused:
                try:
                    return fast(*given, **named)
                except failures as error:  # nothing has run: there are no pieces
                    refused.add(kind)
                    self._fail(error)
            return function(*given, **named)

        return call

    def _fail(self, error: Exception) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().partition("\n")[0]
        self._tell(
            "runtime.compile: the compiler failed, what it failed at runs as it is "
            f"({type(cause).__name__}: {reason:.200})"
        )


def _kind(*given: object) -> object:
    """What decides whether the compiler is asked again: of a function among the arguments only
    that there is one, which is another for each batch."""
    return torch.is_grad_enabled(), *map(_trait, tree_leaves(given))


def _trait(x: object) -> object:
    if isinstance(x, torch.Tensor):
        return x.shape, x.dtype, x.requires_grad
    return callable if callable(x) else x


def _failures() -> tuple[type[Exception], ...]:
    """What the compiler raises, of whatever kind the cause is; a device that has no memory left
    while compiled kernels run raises its own."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


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
