"""A plain module of torch's own layers as Python that builds it anew, for who has only torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pipeline.api.plain import Residual

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMPORTS = """\
from collections import OrderedDict

from torch import nn
"""
_RESIDUAL = '''

class Residual(nn.Module):
    """tail(body(x) + shortcut(x))"""

    def __init__(self, body, shortcut, tail):
        super().__init__()
        self.body, self.shortcut, self.tail = body, shortcut, tail

    def forward(self, x):
        return self.tail(self.body(x) + self.shortcut(x))

'''


def code_of(module: nn.Module) -> str:
    """Lines that end with `network = …`, untrained, of the very names in its state dict.

    Args:
        module: as `pipeline.api.plain.built_in` makes them.
    """
    shortcuts = any(isinstance(each, Residual) for each in module.modules())
    lines = "\n".join(_lines(module, "network = ", ""))
    return f"{_IMPORTS}{_RESIDUAL if shortcuts else ''}\n{lines}\n"


def _lines(module: nn.Module, before: str, after: str) -> Iterator[str]:
    """An expression between what is written before and after it."""
    if isinstance(module, Residual):
        yield f"{before}Residual("
        for child in module.children():
            yield from _indented(child, "", ",")
        yield f"){after}"
    elif type(module) is nn.Sequential:
        yield f"{before}nn.Sequential(OrderedDict(["
        for name, child in module.named_children():
            yield from _indented(child, f'("{name}", ', "),")
        yield f"])){after}"
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):  # PyTorch's versions show it unlike
        yield f"{before}nn.{type(module).__name__}({module.num_features}){after}"
    else:  # torch's layers are shown as they are called
        yield f"{before}nn.{module!r}{after}"


def _indented(module: nn.Module, before: str, after: str) -> Iterator[str]:
    for line in _lines(module, before, after):
        yield f"    {line}"
