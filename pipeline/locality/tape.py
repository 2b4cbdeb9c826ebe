"""What a unit of blocks received in training, batch after batch, in a folder: all that it is
retrained from.

    items.jsonl      a line for each batch: its id, epoch, learning rate, learner; how tensors lie
    7.safetensors    what arrived with batch 7: x or examples, targets, what is carried
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.kernels.memory_layout import channels_last, is_channels_last
from pipeline.learning.block_file import decode_block, encode_block
from pipeline.schedule.items import TrainBatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
    from torch import Tensor

_ITEMS = "items.jsonl"


class Tape:
    """The tape of one unit. `folder` is made when the first batch is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, item: TrainBatch, tensors: tuple[Tensor, ...]) -> None:
        """Write what arrived, before anything is made of it."""
        self._folder.mkdir(exist_ok=True)
        named = {str(at): tensor for at, tensor in enumerate(tensors)}
        self._file(item).write_bytes(encode_block(named))
        line = {"item": asdict(item), "channels_last": list(map(is_channels_last, tensors))}
        with (self._folder / _ITEMS).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")

    def read(self, device: torch.device) -> Iterator[tuple[TrainBatch, tuple[Tensor, ...]]]:
        """Each batch as it arrived: the same bits, and as they lay in memory."""
        lines = (self._folder / _ITEMS).read_text(encoding="utf-8").splitlines()
        for line in map(json.loads, lines):
            item = TrainBatch(**line["item"])
            found = decode_block(self._file(item).read_bytes())
            # copies, which begin where fresh tensors do: kernels may be chosen by that
            tensors = (found[str(at)].clone().to(device) for at in range(len(found)))
            yield (
                item,
                tuple(
                    channels_last(tensor) if ordered else tensor
                    for tensor, ordered in zip(tensors, line["channels_last"], strict=True)
                ),
            )

    def _file(self, item: TrainBatch) -> Path:
        return self._folder / f"{item.batch_id}.safetensors"
