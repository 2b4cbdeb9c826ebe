"""Any module whose forward is a chain, cut at its own blocks into an `nn.Sequential`.

    forward   conv1  bn1  relu  maxpool   layer1.0   layer1.1  …  layer4.1  avgpool  flatten   fc
              ──────── block 0 ────────   block 1    block 2   …  ──────── block 8 ────────  output

`graph.py` reads the forward, `chain.py` finds the blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, one_line
from pipeline.network.chain import append, blocks_of
from pipeline.network.graph import cannot_be_cut, modes_kept
from pipeline.seeding import seeded_draws

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    blocks = list(blocks_of(module))
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
        append(network, name, child)
    network.names = _names(module, network)
    network.versions = getattr(module.state_dict(), "_metadata", None)
    network.training = module.training
    if example is not None:
        _check_same(module, network, example)
    return network


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
