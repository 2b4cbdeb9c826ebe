"""Image files of any size, decoded and cut to one size as they are needed.

The only file that imports Pillow. For training, a random part of the image (Szegedy et al. 2015,
"Going deeper with convolutions", section 6); for testing, its middle.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.errors import RunError
from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from numpy.random import Generator
    from numpy.typing import NDArray

_CROP_AREA, _CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_CROP_TRIES = 10  # as torchvision's RandomResizedCrop


class ImageFiles:
    """Images decoded when they are asked for; `samples` holds (path, label) each."""

    def __init__(
        self, samples: list[tuple[str, int]], size: int, seed: int, pool: Executor
    ) -> None:
        self._samples, self._size, self._seed, self._pool = samples, size, seed, pool
        self.labels = np.array([label for _, label in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._samples)

    def take(
        self, indices: NDArray[np.int64], epoch: int | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (n, 3, size, size) and labels (n,); random parts in a training `epoch`.

        Raises:
            RunError: naming the file that can't be decoded.
        """
        images = self._pool.map(lambda index: self._image(index, epoch), indices.tolist())
        return np.stack(list(images)), self.labels[indices]

    def _image(self, index: int, epoch: int | None) -> NDArray[np.uint8]:
        path = self._samples[index][0]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: a broken PNG
            raise RunError(f"{path}: can't be decoded as an image: {error}") from error
        drawn = None if epoch is None else generator(self._seed, Purpose.IMAGES, epoch, index)
        return _view(image, self._size, drawn)


def _view(image: Image.Image, size: int, draws: Generator | None) -> NDArray[np.uint8]:
    """A random part of an image, or without `draws` its middle, as (3, size, size)."""
    if draws is None:
        view = _middle(image, size)
    else:
        top, left, high, wide = crop_box(image.height, image.width, draws)
        part = image.crop((left, top, left + wide, top + high))
        view = part.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1), dtype=np.uint8)


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to 256/224 of `size`, then the middle of that."""
    shorter = size * 256 // 224
    scale = shorter / min(image.size)
    wide, high = (max(shorter, int(side * scale)) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def crop_box(height: int, width: int, draws: Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random part of an image.

    Area uniform in 8..100 % of the image's, aspect ratio log-uniform in 3/4..4/3; where ten
    draws give none that fits, the middle of the image, with the nearest allowed ratio.
    """
    least, most = _CROP_RATIO
    for _ in range(_CROP_TRIES):
        area = height * width * draws.uniform(*_CROP_AREA)
        ratio = math.exp(draws.uniform(math.log(least), math.log(most)))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            top, left = draws.integers(0, (height - high + 1, width - wide + 1))
            return int(top), int(left), high, wide
    high, wide = min(height, round(width / least)), min(width, round(height * most))
    return (height - high) // 2, (width - wide) // 2, high, wide
