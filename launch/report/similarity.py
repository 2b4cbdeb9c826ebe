"""How alike each block finds the examples of a fixed batch, beside what their labels say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from launch.drawing import png
from launch.report.pieces import Card, Gallery, Image, Key, Section, Words
from launch.report.room import evenly

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from launch.report.pieces import Piece
    from launch.report.run import Run
    from pipeline.trained.similarity import Similarities

_ALIKE, _UNLIKE = (214, 110, 20), (45, 120, 200)
"""Readable on white and on black; how strongly says how much."""
_LEVELS = 24
"""Of strength: more can't be told apart, and make larger files."""
_WIDTH = 124
_LEAD = (
    "Each square compares the same test examples with each other, in the order of their classes: "
    "row and column are examples, orange means alike, no colour unrelated, blue opposite (adjusted "
    "cosine similarity, equation 5 of the paper). S(y) is what the labels say: alike within a "
    "class, slightly opposite elsewhere; S(h) what the activations of a block say. A similarity "
    "loss pulls S(g(h)), through a map g of the block's own, towards S(y). Below each square: its "
    "mean within and between classes, and how far it is off S(y), the mean of (S − S(y))²."
)
_LOOK_FOR = (
    "squares along the diagonal that grow clearer from block to block. Two classes whose "
    "squares run together are hard to tell apart by what the block gives."
)


def section(runs: Sequence[Run], most: int) -> Section:
    """By run; so many blocks at most, from the first to the last."""
    cards = [Card(run.name, tuple(_of_run(run, most))) for run in runs]
    return Section("similarity", "What each block finds alike", _LEAD, _LOOK_FOR, cards)


def _of_run(run: Run, most: int) -> Iterable[Piece]:
    found = run.looks.similar
    if isinstance(found, str):
        yield Words(found)
        return
    shown = [_image(found, found.of_y, "S(y), the labels")]
    if found.of_x is not None:
        shown.append(_image(found, found.of_x, "S(x), the examples"))
    blocks = evenly(found.blocks, most)
    shown += [_image(found, each.of_h, run.block_name(each.block)) for each in blocks]
    title = f"{len(found.y)} test examples: by their labels, as they are, and S(h) after each block"
    keys = signs("alike, up to 1", "opposite, down to −1")
    yield Gallery(title, tuple(shown), _WIDTH, keys=keys)
    mapped = [
        _image(found, each.of_map, run.block_name(each.block))
        for each in blocks
        if each.of_map is not None
    ]
    if mapped:
        title = "S(g(h)): through each block's own map g, as its similarity loss sees them"
        yield Gallery(title, tuple(mapped), _WIDTH)
    else:
        yield Words(
            "No block of this run has a similarity loss: S(h) shows what came about without one."
        )
    if left := len(found.blocks) - len(blocks):
        where = "between the first and the last" if len(blocks) > 1 else "before the last"
        yield Words(f"Of {len(found.blocks)} blocks {left} {where} are left out.")
    if found.copies > 1:
        yield Words(
            f"This rule makes {found.copies} copies of each example; the first of each is compared."
        )


def _image(found: Similarities, matrix: Tensor, name: str) -> Image:
    # 0.0: none below zero that is so small that it is shown as -0.00
    within, between = (round(mean, 2) + 0.0 for mean in found.within_and_between(matrix))
    means = (
        f"within {within:.2f}",
        f"between {between:.2f}",
        f"off by {found.mismatch(matrix):.3f}",
    )
    lines = (name, *(mean.replace("-", "−") for mean in means))
    return Image(png(diverging(matrix.numpy())), ", ".join(lines), lines)


def diverging(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(height, width) from -1 to 1 as (height, width, 4): a colour for each sign, clear at zero."""
    values = np.nan_to_num(np.clip(values, -1, 1))
    strength = np.rint(np.abs(values) * _LEVELS) / _LEVELS
    pixels = np.where((values > 0)[..., None], np.array(_ALIKE), np.array(_UNLIKE))
    return np.concatenate([pixels, np.rint(255 * strength)[..., None]], axis=-1).astype(np.uint8)


def signs(positive: str, negative: str) -> tuple[Key, ...]:
    """The legend of `diverging`."""
    pairs = (positive, _ALIKE), (negative, _UNLIKE)
    return tuple(Key(f"rgb{color}", label, "box") for label, color in pairs)
