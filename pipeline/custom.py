"""A block made of a user's own modules (`factory.py`), with the heads of every other block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pipeline.block import Block
from pipeline.errors import ConfigError
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
        self._changes_its_input = any(getattr(m, "inplace", False) for m in self.tail.modules())
        self._check_same(spec)
        self.to(device=self.device, dtype=self.dtype)

    def _check_same(self, spec: BlockSpec) -> None:
        found = sum(p.numel() for own in (self.encoder, self.tail) for p in own.parameters())
        if spec.custom is not None and found != spec.custom.parameters:
            raise ConfigError(
                f"model.factory: block {spec.index} has {found} parameters, it had "
                f"{spec.custom.parameters} before: the function must give the same network each "
                "time, in every process"
            )

    def forward(self, x: Tensor, *, batch_id: int | None, shortcut: Tensor | None = None) -> Tensor:
        """As `Block.forward`."""
        self.train(batch_id is not None)
        with self._autocast(), self._drawing(batch_id, _BODY):
            return self._activation(x, shortcut)

    def _activation(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        assert shortcut is None, "a user's own modules have no shortcuts that we know of"
        h: Tensor = self.encoder(x)
        return h

    def transfer(self, h: Tensor, *, batch_id: int | None) -> Tensor:
        """As `Block.transfer`."""
        self.train(batch_id is not None)
        with self._autocast(), self._drawing(batch_id, _TAIL):
            passed: Tensor = self.tail(h.clone() if self._changes_its_input else h)
        return passed.contiguous()

    @contextmanager
    def _drawing(self, batch_id: int | None, where: int) -> Iterator[None]:
        """Whatever the modules draw from torch's own generators, as nn.Dropout does, belongs to
        (seed, block, batch id); in evaluation every batch sees the same draws."""
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            position = (self.spec.index, batch_id or 0, where)
            seed = derived_seed(self.seed, Purpose.DROPOUT, *position)
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            yield
