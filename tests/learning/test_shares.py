"""Shares of a batch, and what each example of one has of the whole batch."""

from __future__ import annotations

import pytest
import torch
from support.blocks import block_of, specs_of

from pipeline.learning.augment import Preprocess
from pipeline.learning.shares import Share, share_of


@pytest.mark.parametrize(
    ("examples", "members", "counts"),
    [
        (10, 3, [4, 3, 3]), (5, 3, [3, 2, 0]), (4, 4, [2, 2, 0, 0]), (3, 2, [3, 0]),
        (2, 2, [2, 0]), (1, 2, [1, 0]), (128, 1, [128]), (7, 3, [3, 2, 2]),
    ],
)  # fmt: skip
def test_shares_are_contiguous_and_none_is_of_one_example(
    examples: int, members: int, counts: list[int]
) -> None:
    shares = [share_of(examples, member, members) for member in range(members)]
    assert [share.count for share in shares] == counts
    rows = [row for share in shares for row in range(examples)[share.rows]]
    assert rows == list(range(examples))
    assert sum(share.weight for share in shares) == pytest.approx(1.0)


@pytest.mark.parametrize("block", [0, 1])  # of channels, of units
@pytest.mark.parametrize("first", [0, 1, 3, 6])
def test_an_example_has_the_dropout_that_it_has_in_the_whole_batch(block: int, first: int) -> None:
    model = {"name": "vgg", "layers": [5], "hidden": 7, "dropout": 0.4}
    spec = specs_of(model, {"name": "pred"}, (2, 6, 6), 3)[block]
    h = torch.ones(9, *spec.shape)
    whole = block_of(spec, dtype=torch.float32).transfer(h, batch_id=5)
    shared = block_of(spec, dtype=torch.float32)
    shared.take(Share(first, 3, 9))
    assert torch.equal(shared.transfer(h[first : first + 3], batch_id=5), whole[first : first + 3])


def test_an_example_is_augmented_as_in_the_whole_batch() -> None:
    cpu = torch.device("cpu")
    preprocess = Preprocess((0.5,), (0.2,), crop_padding=2, flip=True, cutout=3, seed=3, device=cpu)
    images = torch.randint(0, 256, (8, 1, 9, 9), dtype=torch.uint8)
    share = Share(3, 4, 8)
    found = preprocess.train(images[share.rows], 6, share)
    assert torch.equal(found, preprocess.train(images, 6)[share.rows])
