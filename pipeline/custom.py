"""A block made of a user's own modules (`factory.py`), with the heads of every other block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pipeline.block import Block
from pipeline.seeding import Purpose, derived_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pipeline.factory import Part
    from pipeline.specs import BlockSpec

_BODY, _TAIL = 0, 1


class CustomBlock(Block):
    """State keys: `encoder.*` (up to what the heads see), `tail.*` (from there to the next
    block), and those of `heads.py`. Initial weights are as the user's function made them."""

    def __init__(self, spec: BlockSpec, part: Part, **placing: Any) -> None:
        super().__init__(spec, **placing)
        self.encoder, self.tail = part
        self.to(device=self.device, dtype=self.dtype)

    def forward(self, x: Tensor, *, batch_id: int | None, shortcut: Tensor | None = None) -> Tensor:
        """As `Block.forward`."""
        self.train(batch_id is not None)
        with self._autocast(), self._drawing(batch_id, _BODY):
            h: Tensor = self.encoder(x)
        return h

    def transfer(self, h: Tensor, *, batch_id: int | None) -> Tensor:
        """As `Block.transfer`."""
        self.train(batch_id is not None)
        with self._autocast(), self._drawing(batch_id, _TAIL):
            passed: Tensor = self.tail(h)
        return passed.contiguous()

    @contextmanager
    def _drawing(self, batch_id: int | None, where: int) -> Iterator[None]:
        """Whatever the modules draw from torch's own generators, as nn.Dropout does, belongs to
        (seed, block, batch id); in evaluation nothing is drawn that changes the next."""
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            if batch_id is not None:
                position = (self.spec.index, batch_id, where)
                seed = derived_seed(self.seed, Purpose.DROPOUT, *position)
                torch.default_generator.manual_seed(seed)
                if cuda:
                    torch.cuda.manual_seed(seed)
            yield
