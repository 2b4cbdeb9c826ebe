"""The peak of a record is that worked out by hand."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import torch

from benchmarks.lib.allocations import (
    Change,
    Event,
    Gradients,
    MarkingOptimizer,
    Peaks,
    measure,
    peak,
    pieces_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

RECORD: list[Event] = [
    Change(1, 100),
    Change(2, 30),  # 130
    Change(2, -30),
    Change(2, 50),  # 150: the same address once more
    Change(3, 7),  # 157: the most
    Change(1, -100),
    Change(9, -1000),  # was there before the record began
    Change(4, 20),  # 77
    Gradients((2, 4, 8)),
    Change(2, -50),
    Change(4, -20),
    Change(2, 60),  # 67: no gradient any more
]
"""Without the gradients, 50 and 20 bytes: 100, 130, 100, 107, 7, 67."""


def test_the_peak_is_that_worked_out_by_hand() -> None:
    pieces = pieces_of(RECORD)
    assert [(p.nbytes, p.taken, p.given_back) for p in pieces] == [
        (100, 0, 5),
        (30, 1, 2),
        (50, 3, 9),
        (7, 4, inf),
        (20, 7, 10),
        (60, 11, inf),
    ]
    assert peak(pieces) == 157


def test_gradients_are_the_pieces_at_their_addresses_when_they_are_used() -> None:
    pieces = pieces_of(RECORD)
    assert [p.nbytes for p in pieces if p.is_gradient] == [50, 20]
    assert peak(piece for piece in pieces if not piece.is_gradient) == 130


def test_an_empty_record_has_no_peak() -> None:
    assert peak(pieces_of([])) == 0


class Taken:
    """Stands for an optimizer: keeps how many numbers it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        self.given += [gradient.numel() for gradient in gradients]

    def state(self) -> dict[str, Tensor]:
        return {}

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass


def test_what_tensors_take_is_recorded() -> None:
    """Numbers of 4 bytes: 300 + 500, of which 500 are a gradient, then 300 + 400; the 1000 that
    were there before do not count, nor that they go."""
    kept, optimizer = [torch.ones(1000)], Taken()

    def work() -> None:
        small, gradient = torch.ones(300), torch.ones(500)
        MarkingOptimizer(optimizer).step([gradient], 0.1)
        del gradient
        kept[0] = torch.ones(400)
        assert len(small) == 300

    assert measure(work, torch.device("cpu")) == Peaks(total=4 * 800, activations=4 * 700)
    assert optimizer.given == [500]
