"""Image files of any size, decoded and cut to one size as they are needed.

For training, by default, a random part of the image (Szegedy et al. 2015, "Going deeper with
convolutions", section 6); for testing, its middle. With `image_reading.py` the door to Pillow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from numpy.random import Generator
    from numpy.typing import NDArray

    from pipeline.data.image_check import CheckedPart
    from pipeline.data.image_reading import ImageReader

_CROP_AREA, _CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_CROP_TRIES = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True, slots=True)
class View:
    """What is shown of an image: `size` × `size` pixels.

    `shorter`: pixels of the shorter side when the middle is cut out. `random`: whether training
    looks at random parts instead.
    """

    size: int
    shorter: int
    random: bool = True


class ImageFiles:
    """Images decoded when they are asked for."""

    def __init__(
        self, checked: CheckedPart, view: View, seed: int, reader: ImageReader, pool: Executor
    ) -> None:
        self.checked = checked
        self._view, self._seed, self._reader, self._pool = view, seed, reader, pool
        self.labels = np.array([file.label for file in checked.images.files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def take(
        self, indices: NDArray[np.int64], epoch: int | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (n, C, size, size) and labels (n,); random parts in a training `epoch`.

        Raises:
            RunError: naming the file that can't be decoded.
        """
        images = self._pool.map(lambda index: self._image(index, epoch), indices.tolist())
        return np.stack(list(images)), self.labels[indices]

    def digest(self) -> str:
        """SHA-256 of all paths, labels and contents, as far as they were looked at."""
        whole = sha256()
        for file, seen in zip(self.checked.images.files, self.checked.seen, strict=True):
            line = f"{file.label} {seen.nbytes} {seen.digest} {file.path}\n"
            whole.update(line.encode(errors="surrogateescape"))
        return whole.hexdigest()

    def _image(self, index: int, epoch: int | None) -> NDArray[np.uint8]:
        images = self.checked.images
        image = self._reader.decode(images.path(images.files[index]))
        drawn = None
        if self._view.random and epoch is not None:
            drawn = generator(self._seed, Purpose.IMAGES, epoch, index)
        return _seen(image, self._view, drawn)


def _seen(image: Image.Image, view: View, draws: Generator | None) -> NDArray[np.uint8]:
    """A random part of an image, or without `draws` its middle, as (C, size, size)."""
    if draws is None:
        part = _middle(image, view)
    else:
        top, left, high, wide = crop_box(image.height, image.width, draws)
        part = image.crop((left, top, left + wide, top + high))
        part = part.resize((view.size, view.size), Image.Resampling.BILINEAR)
    pixels = np.atleast_3d(np.asarray(part))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.uint8)


def _middle(image: Image.Image, view: View) -> Image.Image:
    """The image scaled until its shorter side is `view.shorter`, then the middle of that."""
    size, shorter = view.size, view.shorter
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
