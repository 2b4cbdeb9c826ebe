"""What a module's forward does, as a graph: which of its blocks it calls, and what in between.

Blocks stay whole, with their own code. Only the forwards around them are read, by letting them run
on a stand-in for a tensor (`torch.fx`): all sizes of a batch stay possible, and nothing may depend
on values of the input. They are read twice, as in training and as in a test, and must do the same.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections import Counter
from contextlib import contextmanager
from dis import get_instructions
from functools import wraps
from itertools import islice
from pathlib import Path
from threading import Lock
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from pipeline.errors import ConfigError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from torch import Tensor

NETWORK = "network"
"""The name that the module has in the graph's root, before the names of all within."""
_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


_LOOKS = frozenset({
    *("dim", "getattr", "getitem", "numel", "size"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "mod"),
})  # fmt: skip
"""Functions that only look: left out where nobody uses what they see."""
_MAKERS = ("arange", "empty", "full", "linspace", "ones", "rand", "randn", "zeros")
_STEPS_TO_RAISE = 4
"""Instructions of Python from the truth of a condition to the error, if it is an assertion's."""


_ONE_AT_A_TIME = Lock()
"""Reading replaces how modules are called, in the whole process."""


class Root(nn.Module):
    """Holds the module, so that the module itself is called as any other: with what its forward
    has by default, and with its hooks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        return self.network(x)


def cannot_be_cut(module: nn.Module, why: str) -> ConfigError:
    """In one line, with the way out."""
    return ConfigError(
        f"{type(module).__name__} can't be cut into blocks: {why}; give an nn.Sequential of your "
        "own whose children are the blocks"
    )


def graph_of(module: nn.Module) -> tuple[Root, fx.Graph]:
    """What the module's forward does with one tensor. The modules in it are the module's own.

    Raises:
        ConfigError: where that can't be read off its forward.
    """
    _check_takes_one_tensor(module)
    with _ONE_AT_A_TIME, modes_kept(module):
        root, graph = _traced(module.train())
        _, in_tests = _traced(module.eval())
    _join(module, root, graph, in_tests)
    for node in reversed(graph.nodes):
        if not node.users and getattr(node.target, "__name__", node.target) in _LOOKS:
            graph.erase_node(node)
    return root, graph


def is_sequence(module: nn.Module) -> bool:
    """Whether it only calls its children one after the other."""
    return type(module).forward is nn.Sequential.forward and "forward" not in vars(module)


def _check_takes_one_tensor(module: nn.Module) -> None:
    given = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        each.name
        for each in given
        if each.default is each.empty and each.kind in (*positional, each.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        raise cannot_be_cut(
            module, f"its forward needs {', '.join(needed)}, and one tensor is what a block gets"
        )


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Inside, `train` and `eval` may be called: all is as before afterwards."""
    modes = {own: own.training for own in module.modules()}
    try:
        yield
    finally:
        for own, mode in modes.items():
            own.training = mode


def _traced(module: nn.Module) -> tuple[Root, fx.Graph]:
    """A module inside that can't be read, as its forward looks at values, is a block."""
    whole = set[str]()
    while True:
        root = Root(module)
        tracer = _Tracer(root, whole)
        drawn = _generators()
        try:
            with _sizes_read():
                graph = tracer.trace(root)
        except Exception as error:  # whatever the user's forward raises
            if tracer.failed in ("", NETWORK, *whole):
                raise cannot_be_cut(module, _why(error)) from error
            whole.add(tracer.failed)
            continue
        if _generators() != drawn:
            raise cannot_be_cut(
                module, "its forward draws random numbers itself, once for all batches"
            )
        return root, graph


class _Tracer(fx.Tracer):
    """Reads the forwards of the module, of sequences, and of what is no block."""

    proxy_buffer_attributes = True

    def __init__(self, root: Root, whole: set[str]) -> None:
        super().__init__()
        self._whole = whole
        self._classes = Counter(type(module) for module in root.modules())
        self.failed = ""
        """The innermost module whose forward could not be read."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == NETWORK or module_qualified_name in self._whole:
            return module_qualified_name != NETWORK
        if is_sequence(m):
            return False
        if super().is_leaf_module(m, module_qualified_name) or not any(m.children()):
            return True
        return self._classes[type(m)] > 1 and not _lists_blocks(m)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """An assertion about the input is taken as true; else its values would decide."""
        if _is_asserted(sys._getframe(2)):
            return True
        return super().to_bool(obj)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def _lists_blocks(module: nn.Module) -> bool:
    """Whether it holds a list of several modules of one class, with forwards of their own; one such
    list alone, as several are rather branches of a block."""
    lists = (each for each in module.children() if isinstance(each, nn.Sequential | nn.ModuleList))
    classes = (
        Counter(type(inner) for inner in each if any(inner.children()) and not is_sequence(inner))
        for each in lists
    )
    return sum(max(found.values(), default=0) > 1 for found in classes) == 1


def _is_asserted(frame: FrameType) -> bool:
    """Whether what runs there is the condition of an `assert`."""
    following = (step for step in get_instructions(frame.f_code) if step.offset >= frame.f_lasti)
    return any(
        "ASSERTION_ERROR" in step.opname or step.argrepr == "AssertionError"
        for step in islice(following, _STEPS_TO_RAISE)
    )


def _generators() -> list[Any]:
    """The states of the generators that all share, to compare."""
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


@contextmanager
def _sizes_read() -> Iterator[None]:
    """Inside, torch's functions that make tensors of given sizes can be read like all others, which
    are given tensors."""
    kept = {name: getattr(torch, name) for name in _MAKERS}
    for name, make in kept.items():
        setattr(torch, name, _readable(make))
    try:
        yield
    finally:
        for name, make in kept.items():
            setattr(torch, name, make)


def _readable(make: Callable[..., Tensor]) -> Callable[..., Any]:
    @wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        sizes = list[fx.Proxy]()
        map_aggregate(
            (args, kwargs), lambda each: sizes.append(each) if isinstance(each, fx.Proxy) else None
        )
        if not sizes:
            return make(*args, **kwargs)
        return sizes[0].tracer.create_proxy("call_function", make, args, kwargs)

    return made


def _why(error: Exception) -> str:
    if isinstance(error, fx.proxy.TraceError) and "control flow" in str(error):
        return f"{_place(error)}its forward decides by values of its input"
    return f"{_place(error)}{one_line(error)}"


def _place(error: Exception) -> str:
    """Where in a user's code it was raised; empty where it was not in any."""
    own = [
        frame
        for frame in extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and Path(frame.filename).parent != Path(__file__).parent
    ]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""


def _join(module: nn.Module, root: Root, graph: fx.Graph, in_tests: fx.Graph) -> None:
    """Refuses what differs between training and tests, but for dropout, which becomes a module."""
    if len(graph.nodes) != len(in_tests.nodes):
        raise _differs(module)
    pairs = zip(list(graph.nodes), in_tests.nodes, strict=True)
    differing = [(node, other) for node, other in pairs if _told(node) != _told(other)]
    for number, (node, other) in enumerate(differing):
        make = _DROPOUTS.get(node.target)
        if make is None or node.target is not other.target or other.kwargs["training"]:
            raise _differs(module)
        name = f"dropout_{number}"
        root.add_module(name, make(node.kwargs["p"], node.kwargs["inplace"]))
        with graph.inserting_before(node):
            drops = graph.call_module(name, node.args[:1])
        node.replace_all_uses_with(drops)
        graph.erase_node(node)


def _told(node: fx.Node) -> Any:
    return node.op, str(node.target), str(node.args), str(node.kwargs)


def _differs(module: nn.Module) -> ConfigError:
    return cannot_be_cut(
        module, "its forward does other things in training than in tests, outside of its modules"
    )
