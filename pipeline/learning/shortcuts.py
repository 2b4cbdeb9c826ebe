"""The inputs that residual connections carry past the blocks they span."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from pipeline.network.specs import BlockSpec


class Shortcuts:
    """Of the blocks of one stage, which holds the whole span of each."""

    def __init__(self, specs: Iterable[BlockSpec]) -> None:
        self._sources = {spec.shortcut.source for spec in specs if spec.shortcut}
        self._carried: dict[int, Tensor] = {}

    def at(self, spec: BlockSpec, x: Tensor) -> Tensor | None:
        """Keeps the input x of a block where a shortcut begins; gives what ends in this block."""
        if spec.index in self._sources:
            self._carried[spec.index] = x
        return self._carried.pop(spec.shortcut.source) if spec.shortcut else None

    def clear(self) -> None:
        """Forget what greedy training, which may end within a span, has left behind."""
        self._carried.clear()

    def detach(self) -> None:
        """At the end of a group: what goes past it brings no gradient back to it."""
        self._carried = {source: x.detach() for source, x in self._carried.items()}
