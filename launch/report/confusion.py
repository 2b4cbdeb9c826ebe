"""Which classes are taken for which, and the images that were surest and wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from launch.display.format import class_text, counted
from launch.drawing import png
from launch.report.pieces import Card, Cell, Gallery, Image, Matrix, Section, Table, Words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from launch.report.looks import Wrong
    from launch.report.pieces import Piece
    from launch.report.run import Run
    from pipeline.trained.evaluation import Evaluation

_MOST_SHOWN = 20
"""Classes of a matrix that can still be read; of more, the pairs that are confused most."""
_PAIRS = 12
_MOST_PIXELS = 64
"""Of an image's side: larger ones are made smaller, so that the page stays small."""
_IMAGE_WIDTH = 96
_LEAD = (
    "Rows are what an example is, columns what the last block takes it for. Right answers lie "
    "on the diagonal (green); the stronger a colour, the larger the share of the row. Below are "
    "the images that the network was surest about and wrong."
)
_LOOK_FOR = (
    "strong cells beside the diagonal, the pairs of classes that it can't tell apart. Of the "
    "images some are odd, and some may be labelled wrongly."
)


def section(runs: Sequence[Run], most_images: int) -> Section:
    """By run; so many images of each at most."""
    cards = [Card(run.name, tuple(_of_run(run, most_images))) for run in runs]
    return Section("confusion", "What is taken for what", _LEAD, _LOOK_FOR, cards)


def _of_run(run: Run, most_images: int) -> Iterable[Piece]:
    found, trained = run.looks.evaluation, run.looks.trained
    if isinstance(found, str) or isinstance(trained, str):
        yield Words(str(found))
        return
    names = trained.classes
    if found.confusion and len(names) <= _MOST_SHOWN:
        yield _matrix(found, names)
    if found.confusion:
        yield _pairs(found, names)
    elif trained.network.facts.classes and found.error_pct is not None:
        yield Words(f"{len(names)} classes are too many for a table of confusions.")
    worst = run.looks.worst
    if isinstance(worst, str):
        yield Words(worst)
    elif not worst:
        yield Words("No example was taken for another class.")
    else:
        yield Gallery(
            "Surest and wrong: what it is → what it was taken for, and how probable both seemed",
            tuple(_image(wrong, names) for wrong in worst[:most_images]),
            _IMAGE_WIDTH,
        )


def _matrix(found: Evaluation, names: Sequence[str]) -> Matrix:
    short = tuple(map(class_text, names))
    rows = []
    for k, (name, row) in enumerate(zip(short, found.confusion, strict=True)):
        total = max(1, sum(row))
        cells = [Cell(str(n) if n else "·", n / total, k == j) for j, n in enumerate(row)]
        rows.append((name, tuple(cells)))
    return Matrix(
        f"{counted(found.examples, 'examples')}, by class", "is \\ taken for", short, tuple(rows)
    )


def _pairs(found: Evaluation, names: Sequence[str]) -> Piece:
    counts = np.array(found.confusion)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]
    pairs = [
        (k, j) for k, j in zip(*np.unravel_index(order, counts.shape), strict=True) if counts[k, j]
    ]
    if not pairs:
        return Words("No class is taken for another.")
    rows = tuple(
        (names[k], names[j], str(counts[k, j]), f"{100 * counts[k, j] / totals[k]:.1f}")
        for k, j in pairs
    )
    return Table(
        ("is", "taken for", "times", "of its class, %"), rows, words=2,
    )  # fmt: skip


def _image(wrong: Wrong, names: Sequence[str]) -> Image:
    label, other = class_text(names[wrong.label]), class_text(names[wrong.taken_for])
    p = f"{100 * wrong.of_label:.0f} % → {100 * wrong.probability:.0f} %"
    lines = (f"{label} → {other}", p)
    return Image(png(shown(wrong.image)), f"{label}, taken for {other}", lines)


def shown(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(C, height, width) as a picture (height, width, 3), of no more pixels than the page needs;
    numbers that are no bytes from their least to their largest."""
    pixels = np.asarray(image, np.float64)
    every = -(-max(pixels.shape[1:]) // _MOST_PIXELS)
    if every > 1:  # means of squares of so many pixels
        rows, columns = (side // every for side in pixels.shape[1:])
        whole = pixels[:, : rows * every, : columns * every]
        pixels = whole.reshape(-1, rows, every, columns, every).mean(axis=(2, 4))
    if image.dtype != np.uint8:
        least, most = pixels.min(), pixels.max()
        pixels = 255 * (pixels - least) / (most - least or 1.0)
    colors = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
    return np.ascontiguousarray(np.rint(colors), np.uint8)
