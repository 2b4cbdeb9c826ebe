"""A part of a block's file is what would have been written of that part alone."""

from __future__ import annotations

import pytest
import torch

from pipeline.learning.block_file import decode_block, encode_block
from pipeline.storage.block_bytes import tensors_only

TENSORS = {
    "encoder.weight": torch.arange(6.0).reshape(2, 3),
    "encoder.bias": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
    "bn.num_batches_tracked": torch.tensor(7),
    "bn.empty": torch.zeros(0, 4),
    "tail.mask": torch.tensor([True, False, True]),
    "tail.größe": torch.ones(3, dtype=torch.float64),
    "optimizer.encoder.weight.exp_avg": torch.ones(2, 3),
    "optimizer.encoder.weight.step": torch.tensor(3.0),
}


@pytest.mark.parametrize("prefix", ["encoder.", "optimizer.", "bn.", "tail.", "", "nothing"])
def test_the_bytes_are_those_of_the_tensors_alone(prefix: str) -> None:
    part = {name: tensor for name, tensor in TENSORS.items() if name.startswith(prefix)}
    found = tensors_only(memoryview(encode_block(TENSORS)), lambda name: name in part)
    assert found == encode_block(part)
    assert decode_block(found).keys() == part.keys()
