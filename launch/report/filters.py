"""The filters of the first layer, where it sees images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from launch.drawing import png
from launch.report.pieces import Card, Gallery, Image, Section, Words
from launch.report.similarity import diverging, signs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from launch.report.pieces import Piece
    from launch.report.run import Run
    from pipeline.trained.network import TrainedNetwork

_COLUMNS = 16
_SMALLEST = 8
"""Pixels of a side: filters of fewer are drawn with larger ones."""
_LEAD = (
    "What the units of the first layer respond to: each small picture is the weights of one "
    "unit or channel, as it lies over the image, scaled by its largest weight."
)
_LOOK_FOR = (
    "edges, blobs, strokes and colours, which are learned. Noise all over is what random "
    "weights, or far too little training, look like."
)


def section(runs: Sequence[Run], most: int) -> Section:
    """By run; so many at most."""
    cards = [Card(run.name, tuple(_of_run(run, most))) for run in runs]
    return Section("filters", "Filters of the first layer", _LEAD, _LOOK_FOR, cards)


def _of_run(run: Run, most: int) -> Iterable[Piece]:
    trained = run.looks.trained
    if isinstance(trained, str):
        yield Words(trained)
        return
    found = first_filters(trained.network)
    if isinstance(found, str):
        yield Words(found)
        return
    largest = np.argsort(-np.square(found).sum(axis=(1, 2, 3)), kind="stable")[:most]
    kept = found[np.sort(largest)]
    n, channels, height, width = found.shape
    of = f"the {len(kept)} with the largest weights of {n}" if n > len(kept) else f"all {n}"
    size = f"{height}×{width}" + (" in colour" if channels == 3 else "")
    tiles = montage(kept)
    yield Gallery(
        f"{run.block_name(0)}: {of}, {size}",
        (Image(png(tiles), f"Weights of {len(kept)} filters of the first layer"),),
        width=min(len(kept), _COLUMNS) * (60 if width > _SMALLEST else 40),
        keys=signs("positive", "negative") if channels == 1 else (),
    )


def first_filters(network: TrainedNetwork) -> NDArray[np.floating] | str:
    """(n, C, height, width): weights of the first layer over an image; or why there are none."""
    from torch import nn

    facts = network.facts
    if len(facts.shape) != 3 or facts.dtype == "int64" or facts.shape[0] not in (1, 3):
        shape = ", ".join(map(str, facts.shape))
        return f"Examples of shape ({shape}) are no images: the first layer has no filters to show."
    block = network.stage.blocks[0]
    for layer in block.encoder.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            return _over_image(layer, facts.shape)
    return "The first block holds neither a convolution nor a linear layer: no filters to show."


def _over_image(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> NDArray[np.floating] | str:
    weight = layer.weight.detach().float().cpu()
    if weight.dim() == 4 and weight.shape[1] == shape[0]:
        return weight.numpy()
    if weight.dim() == 2 and weight.shape[1] == np.prod(shape):
        return weight.reshape(-1, *shape).numpy()
    return "The first layer does not see the image as it is: it has no filters to show."


def montage(filters: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(n, C, height, width) as one picture (height, width, 4): in rows, with gaps between."""
    n, channels, height, width = filters.shape
    scale = max(1, -(-_SMALLEST // min(height, width)))
    scaled = filters / np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    if channels == 1:
        tiles = diverging(scaled[:, 0])
    else:
        colors = np.rint(127.5 * (1 + scaled)).transpose(0, 2, 3, 1)
        tiles = np.concatenate([colors, np.full((n, height, width, 1), 255.0)], axis=-1)
    tiles = tiles.astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    columns = min(n, _COLUMNS)
    rows = -(-n // columns)
    gap = max(2, scale)
    tall, wide = tiles.shape[1] + gap, tiles.shape[2] + gap
    sheet = np.zeros((rows * tall - gap, columns * wide - gap, 4), np.uint8)
    for k, tile in enumerate(tiles):
        top, left = k // columns * tall, k % columns * wide
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
