"""Where a forward that is a chain can be cut, and where its blocks begin.

A cut is legal where a single value goes on; what lies between two legal cuts is a part. A block
begins with each part that has parameters to learn, but for normalisations, PReLU and parameters
that a forward uses itself: these belong to the layer before. Within a block, what comes after the
last of its parameters and from the first pooling, flattening or dropout on is in children of its
own: local losses see what is before (`user_network.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from pipeline.network.children import learns, passes_on
from pipeline.network.graph import NETWORK, cannot_be_cut, graph_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NORM = re.compile(r"Norm(\dd)?$")
_FLATTENS = frozenset({"flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view"})
_PICKS = frozenset({"amax", "getitem", "mean", "select"})
"""Functions that flatten, and that take one number for many, as pooling does."""


def blocks_of(module: nn.Module) -> Iterator[CutBlock]:
    """The blocks of a module, in order.

    Raises:
        ConfigError: where its forward can't be read, or gives no tensor.
    """
    block: list[_Part] = []
    for part in _parts(module):
        if part.layers and any(before.layers for before in block):
            yield CutBlock.of(block)
            block = []
        block.append(part)
    if any(part.learned for part in block):
        yield CutBlock.of(block)


@dataclass(frozen=True, slots=True)
class CutBlock:
    """`before`: parts without parameters that come first; `body`: up to what local losses see;
    `after`: from there to the next block."""

    before: Sequence[_Part]
    body: _Part
    after: Sequence[_Part]

    @classmethod
    def of(cls, parts: Sequence[_Part]) -> CutBlock:
        learning = [number for number, part in enumerate(parts) if part.learned]
        first, last = learning[0], learning[-1]
        goes_on = list(takewhile(lambda part: not passes_on(part.module()), parts[last + 1 :]))
        end = last + 1 + len(goes_on)
        body = parts[first]
        for part in parts[first + 1 : end]:
            body += part
        return cls(parts[:first], body, parts[end:])

    @property
    def parts(self) -> tuple[_Part, ...]:
        return (*self.before, self.body, *self.after)

    def children(self) -> Iterator[tuple[str, nn.Module]]:
        """Its modules in order, with the names that `append` is to give them."""
        for part in self.parts:
            yield part.name, part.module()

    @property
    def told(self) -> str:
        """What it is made of, in words."""
        return ", ".join(text for part in self.parts for text in _told(part))


@dataclass(frozen=True, slots=True)
class _Part:
    """Nodes of the graph in order: one value goes in, one comes out."""

    root: nn.Module
    received: fx.Node
    nodes: tuple[fx.Node, ...]
    given: fx.Node

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.root, self.received, (*self.nodes, *other.nodes), other.given)

    def at(self, node: fx.Node) -> Any:
        """The module or tensor that a node names."""
        return attrgetter(str(node.target))(self.root)

    @property
    def learned(self) -> list[fx.Node]:
        """Those that name a module or tensor with parameters to learn."""
        return [node for node in _with_constants(self.nodes) if self._learns(node)]

    def _learns(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return bool(getattr(self.at(node), "requires_grad", False))
        return node.op == "call_module" and learns(self.at(node))

    @property
    def layers(self) -> list[fx.Node]:
        """Of these, what a block begins with."""
        return [node for node in self.learned if not self._belongs_to_another(node)]

    def _belongs_to_another(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return True
        module = self.at(node)
        is_norm = _NORM.search(type(module).__name__) and not any(module.children())
        return bool(is_norm) or isinstance(module, nn.PReLU)

    @property
    def name(self) -> str:
        """Of the module or function that it gives the value of."""
        named = self.layers or self.learned or [self.given]
        return _path(named[0])

    def module(self) -> nn.Module:
        """What computes it: a module of the network itself, a sequence of these, or a graph."""
        before = (self.received, *self.nodes)
        is_chain = all(
            node.op == "call_module" and node.args == (last,) and not node.kwargs
            for last, node in zip(before, self.nodes, strict=False)
        )
        if not is_chain:
            return self._graph_module()
        modules = [self.at(node) for node in self.nodes]
        if len(modules) == 1:
            return modules[0]  # type: ignore[no-any-return]
        sequence = nn.Sequential()
        for node, module in zip(self.nodes, modules, strict=True):
            append(sequence, _path(node), module)
        return sequence

    def _graph_module(self) -> nn.Module:
        graph, held = fx.Graph(), dict[str, Any]()
        copies = {self.received: graph.placeholder("x")}
        for node in _with_constants(self.nodes):
            copies[node] = copy = graph.node_copy(node, lambda each: copies[each])
            if node.op in ("get_attr", "call_module"):
                copy.target = _path(node)
                held[copy.target] = self.at(node)
        graph.output(copies[self.given])
        return fx.GraphModule(held, graph, "Block" if self.learned else _class_name(self.given))


def _parts(module: nn.Module) -> list[_Part]:
    root, graph = graph_of(module)
    *nodes, output = graph.nodes
    result = output.args[0]
    if not isinstance(result, fx.Node):
        kind = type(result).__name__
        raise cannot_be_cut(module, f"its forward gives a {kind}, a tensor is needed")
    steps = [node for node in nodes if node.op != "placeholder" and not _is_constant(node)]
    last_use = {result: len(steps)}
    for number, step in enumerate(steps):
        for value in step.all_input_nodes:
            last_use[value] = max(number, last_use.get(value, 0))
    parts, begin = [], 0
    received = nodes[0]
    live = {received}
    for number, step in enumerate(steps):
        live = {value for value in (*live, step) if last_use.get(value, -1) > number}
        if len(live) == 1:
            [given] = live
            parts.append(_Part(root, received, tuple(steps[begin : number + 1]), given))
            received, begin = given, number + 1
    return parts


def _is_constant(node: fx.Node) -> bool:
    """Whether it is the same for every input: a tensor of a module, or what is made of such. Each
    part that needs it computes it for itself."""
    if node.op == "get_attr":
        return True
    changes = node.op not in ("call_function", "call_method") or _path(node).endswith("_")
    inputs = node.all_input_nodes
    return bool(inputs and node.users) and not changes and all(map(_is_constant, inputs))


def _with_constants(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes, each after the constants that it needs."""
    found = dict[fx.Node, None]()

    def add(node: fx.Node) -> None:
        for value in node.all_input_nodes:
            if _is_constant(value) and value not in found:
                add(value)
        found[node] = None

    for node in nodes:
        add(node)
    return list(found)


def _path(node: fx.Node) -> str:
    """A module or tensor by its name in the network, a function by its own."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target).removeprefix(f"{NETWORK}.")


def _class_name(node: fx.Node) -> str:
    """For a graph that computes a function: that of the module which does the same."""
    name = _path(node).strip("_")
    if name in _FLATTENS:
        return "Flatten"
    of_a_tuple = name == "getitem" and isinstance(node.args[1], int)
    if "pool" in name or (name in _PICKS and not of_a_tuple):
        return "Pool"
    return "".join(word.capitalize() for word in name.split("_"))


def _told(part: _Part) -> Iterator[str]:
    for node in _with_constants(part.nodes):
        if node.op == "call_module":
            yield f"{_path(node)} ({type(part.at(node)).__name__})"
        elif node.op == "get_attr" or _class_name(node) in ("Flatten", "Pool"):
            yield _path(node)


def append(sequence: nn.Sequential, path: str, module: nn.Module) -> None:
    """By a name that has no dots, and is still free."""
    name = free = path.replace(".", "_")
    number = 2
    while hasattr(sequence, free):
        free, number = f"{name}_{number}", number + 1
    sequence.add_module(free, module)
