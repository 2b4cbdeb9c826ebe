"""Any module whose forward is a chain, cut at its own blocks into an `nn.Sequential`.

    forward   conv1  bn1  relu  maxpool   layer1.0   layer1.1  …  layer4.1  avgpool  flatten   fc
              ──────── block 0 ────────   block 1    block 2   …  ──────── block 8 ────────  output

A cut is legal where a single value goes on; what lies between two legal cuts is a part. A block
begins with each part that has parameters to learn, but for normalisations, PReLU and parameters
that a forward uses itself: these belong to the layer before. Within a block, what comes after the
last of its parameters and from the first pooling, flattening or dropout on is in children of its
own: local losses see what is before (`user_network.py`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain, takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from pipeline.errors import ConfigError, one_line
from pipeline.network.children import learns, passes_on
from pipeline.network.graph import NETWORK, cannot_be_cut, graph_of, modes_kept
from pipeline.seeding import seeded_draws

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NORM = re.compile(r"Norm(\dd)?$")
_FLATTENS = frozenset({"flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view"})
_PICKS = frozenset({"amax", "getitem", "mean", "select"})
"""Functions that flatten, and that take one number for many, as pooling does."""


class LocalisedNetwork(nn.Sequential):
    """What `localise` gives: a module's blocks, and what each of them is made of.

    `cuts`: a line for each block. `names`: for each name in the module's state dict, that of the
    same tensor in this one's. `versions`: of the modules in that state dict, as PyTorch has them.
    """

    cuts: tuple[str, ...] = ()
    names: dict[str, str]
    versions: Any = None

    def original_state_dict(self) -> dict[str, Tensor]:
        """The state by the names of the module that was cut, whose `load_state_dict` takes it. What
        its forward does not use is missing."""
        state = self.state_dict()
        original = OrderedDict((name, state[here]) for name, here in self.names.items())
        original._metadata = self.versions  # type: ignore[attr-defined]  # read by load_state_dict
        return original


def localise(module: nn.Module, example: Tensor | None = None) -> LocalisedNetwork:
    """Cut a module at its own blocks; they share its parameters, and say what they hold (`cuts`).

    Args:
        module: takes one tensor (n, …) and gives one. Its forward is a chain: in between are places
            where a single tensor goes on. Its blocks may do what they like.
        example: (n, …), what the network gets. Where it is given, both are tried on it, in
            evaluation.

    Raises:
        ConfigError: where it can't be cut, two blocks would share a tensor, or the blocks do not
            give the very bits that the module gives.
    """
    blocks = list(_blocks(_parts(module)))
    if len(blocks) < 2:
        held = blocks[0].told if blocks else "without parameters"
        raise cannot_be_cut(
            module,
            f"it is a single one ({held}); at least a hidden one and the output are needed",
        )
    network = LocalisedNetwork()
    network.cuts = tuple(f"block {index}: {block.told}" for index, block in enumerate(blocks))
    children = [list(block.children()) for block in blocks]
    _check_apart(module, children, network.cuts)
    for name, child in chain.from_iterable(children):
        _append(network, name, child)
    network.names = _names(module, network)
    network.versions = getattr(module.state_dict(), "_metadata", None)
    network.training = module.training
    if example is not None:
        _check_same(module, network, example)
    return network


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
            _append(sequence, _path(node), module)
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


@dataclass(frozen=True, slots=True)
class _Block:
    """`before`: parts without parameters that come first; `body`; `after`: the way on."""

    before: Sequence[_Part]
    body: _Part
    after: Sequence[_Part]

    @classmethod
    def of(cls, parts: Sequence[_Part]) -> _Block:
        learning = [number for number, part in enumerate(parts) if part.learned]
        first, last = learning[0], learning[-1]
        goes_on = list(takewhile(lambda part: not passes_on(part.module()), parts[last + 1 :]))
        end = last + 1 + len(goes_on)
        body = parts[first]
        for part in parts[first + 1 : end]:
            body += part
        return cls(parts[:first], body, parts[end:])

    def children(self) -> Iterator[tuple[str, nn.Module]]:
        for part in (*self.before, self.body, *self.after):
            yield part.name, part.module()

    @property
    def told(self) -> str:
        """What it is made of, in words."""
        return ", ".join(
            text for part in (*self.before, self.body, *self.after) for text in _told(part)
        )


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


def _blocks(parts: Sequence[_Part]) -> Iterator[_Block]:
    block: list[_Part] = []
    for part in parts:
        if part.layers and any(before.layers for before in block):
            yield _Block.of(block)
            block = []
        block.append(part)
    if any(part.learned for part in block):
        yield _Block.of(block)


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


def _append(sequence: nn.Sequential, path: str, module: nn.Module) -> None:
    """By a name that has no dots, and is still free."""
    name = free = path.replace(".", "_")
    number = 2
    while hasattr(sequence, free):
        free, number = f"{name}_{number}", number + 1
    sequence.add_module(free, module)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }


def _names(module: nn.Module, network: nn.Module) -> dict[str, str]:
    here = {id(tensor): name for name, tensor in _tensors(network).items()}
    named = _tensors(module).items()
    return {name: here[id(tensor)] for name, tensor in named if id(tensor) in here}


def _check_apart(
    module: nn.Module,
    children: Sequence[Sequence[tuple[str, nn.Module]]],
    cuts: Sequence[str],
) -> None:
    """No two blocks hold the same parameter or buffer."""
    names = {id(tensor): name for name, tensor in _tensors(module).items()}
    owners = dict[int, str]()
    for block, cut in zip(children, cuts, strict=True):
        for tensor in chain.from_iterable(_tensors(child).values() for _, child in block):
            other = owners.setdefault(id(tensor), cut)
            if other != cut:
                raise ConfigError(
                    f"{type(module).__name__} can't be cut into blocks that share a tensor "
                    f"({names.get(id(tensor), 'a constant')}): {other}; and {cut}; every block "
                    "learns alone, so make one of its own for each"
                )


def _check_same(module: nn.Module, network: nn.Module, x: Tensor) -> None:
    given = []
    with modes_kept(module), modes_kept(network), torch.no_grad():
        for each in (module.eval(), network.eval()):
            with seeded_draws(0, x.device):
                given.append(_given(each, x.clone()))
    want, got = given
    if want.shape != got.shape or not torch.equal(want.nan_to_num(), got.nan_to_num()):
        raise cannot_be_cut(
            module, "its blocks, one after the other, do not compute what its forward does"
        )


def _given(module: nn.Module, x: Tensor) -> Tensor:
    try:
        given = module(x)
    except Exception as error:  # whatever the user's modules raise
        shape = tuple(x.shape[1:])
        raise ConfigError(f"for inputs of shape {shape}: {one_line(error)}") from error
    if not isinstance(given, Tensor):
        raise ConfigError(f"gives a {type(given).__name__}, a tensor is needed")
    return given
