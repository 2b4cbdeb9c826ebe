"""Examples that are no part of a run's data, read as it reads its own: to evaluate its
network on them, or to have them predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.data.image_folder import view_of
from pipeline.data.image_list import labelled_images
from pipeline.data.image_reading import DeepPixelsError, ImageError, ImageReader, cut_out
from pipeline.data.npz import read_examples, read_inputs
from pipeline.data.own_arrays import checked_inputs
from pipeline.data.own_data import count_of_classes, examples_to_test
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.config.data import DataConfig
    from pipeline.data.facts import DataFacts
    from pipeline.data.image_list import ImageList

    Labelled: TypeAlias = tuple[NDArray[np.generic], NDArray[np.generic]]

_AT_ONCE = 256
"""Images that are decoded before they are used: a batch of ImageNet's size takes 40 MB."""


def labelled_parts(
    path: Path, config: DataConfig, facts: DataFacts, classes: Sequence[str]
) -> tuple[int, Iterator[Labelled]]:
    """How many examples a file or folder holds, and these (n, *shape) with their targets, so many
    at once: of an .npz file the test part, or all where it has none; of a folder the images of each
    class.

    Args:
        classes: the names of the run's classes, which are those of the folders.

    Raises:
        ConfigError: where it can't be read, or holds other classes than the run's.
    """
    if path.is_dir():
        images = labelled_images(path, classes)
        return len(images.files), _decoded(images, ImageReader(view_of(config, facts)))
    part, named = read_examples(str(path))
    has = count_of_classes(named)
    if has not in (None, facts.classes):
        raise ConfigError(f"has {has} classes, and the run {facts.classes}")
    found = examples_to_test(part, facts.classes)
    return len(found.x), iter([(found.x, found.y)])


def _decoded(images: ImageList, reader: ImageReader) -> Iterator[Labelled]:
    for first in range(0, len(images.files), _AT_ONCE):
        files = images.files[first : first + _AT_ONCE]
        yield (
            np.stack([_image(reader, images.path(file)) for file in files]),
            np.array([file.label for file in files], dtype=np.int64),
        )


def images_at(
    paths: Sequence[str], config: DataConfig, facts: DataFacts
) -> Iterator[tuple[Sequence[str], NDArray[np.generic]]]:
    """Image files (n, C, size, size), so many at once, with their paths.

    Raises:
        ConfigError: where the run's examples are no images; naming a file that can't be decoded.
    """
    reader = ImageReader(view_of(config, facts))
    for first in range(0, len(paths), _AT_ONCE):
        part = paths[first : first + _AT_ONCE]
        yield part, np.stack([_image(reader, path) for path in part])


def inputs_at(path: Path) -> NDArray[np.generic]:
    """The examples of an .npz file, of a type that runs know.

    Raises:
        ConfigError: where it can't be read, or holds others.
    """
    return checked_inputs(read_inputs(str(path)), "X", [])


def _image(reader: ImageReader, path: str) -> NDArray[np.uint8]:
    try:
        return cut_out(reader.decode(path), reader.view, None)
    except DeepPixelsError as error:
        raise ConfigError(
            f"{path}: pixels of mode {error.mode} have more than 8 bits, and the run's config does "
            "not say which value is white (data.white): give an image of 8 bits"
        ) from None
    except ImageError as error:
        raise ConfigError(str(error)) from None
