"""What is known of each data set before it is read: shapes, sizes, the paper's normalisation.

Pure facts (design of the paper, section 4; values per data set as published with it), so that
a plan can be made and a config refused without loading an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import TYPE_CHECKING, Any, get_args

from pipeline.config.data import DataConfig, DataName
from pipeline.data.image_list import ACCEPTED, ImageFolder, list_images
from pipeline.dtypes import ITEM_BYTES
from pipeline.errors import ConfigError
from pipeline.system.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.data.own_data import OwnData


_MOST_PLACES = 1 << 14
"""Numbers of a mean, which goes to every process that is started."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Shapes, types and counts of a data set.

    `shape`, `dtype`: of one example as it leaves the data set: (channels, height, width) of uint8
    for images; uint8, float32, or int64 for token ids, which count from 0 to `tokens` - 1.
    `target_shape`, `target_dtype`: of its target: () for one label, int64 for classes and float32
    for numbers. `classes`: 0 where the targets are numbers.
    `mean`, `std`: what examples are normalised by (of uint8: their values in [0, 1]): for each
    channel of (C, H, W), else for each place of the last dimension; one for all; or empty.
    """

    shape: tuple[int, ...]
    classes: int
    train_images: int
    test_images: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: str = "uint8"
    target_shape: tuple[int, ...] = ()
    target_dtype: str = "int64"
    tokens: int = 0

    @property
    def normalised_places(self) -> int:
        """How many numbers a mean has: one for each channel, or place of the last dimension."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    @property
    def example_bytes(self) -> int:
        """Bytes of an example as it leaves the data set."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def target_bytes(self) -> int:
        """Bytes of the target of an example."""
        return prod(self.target_shape) * ITEM_BYTES[self.target_dtype]


def facts_of_tree(tree: Mapping[str, Any]) -> DataFacts:
    """The facts that `dataclasses.asdict` has made a tree of, which JSON may have kept.

    Raises:
        TypeError: for the tree of anything else.
    """
    lists = {key: tuple(value) for key, value in tree.items() if isinstance(value, list)}
    return DataFacts(**{**tree, **lists})


def _images(
    channels: int,
    size: int,
    classes: int,
    train_images: int,
    test_images: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DataFacts:
    """Square images of bytes, each of a class."""
    return DataFacts((channels, size, size), classes, train_images, test_images, mean, std)


_KNOWN = {
    # digits: every fifth image is for testing; mean and deviation of the 1437 training images
    "digits": _images(1, 8, 10, 1437, 360, (0.3053,), (0.3762,)),
    "mnist": _images(1, 28, 10, 60000, 10000, (0.1307,), (0.3081,)),
    "fashion_mnist": _images(1, 28, 10, 60000, 10000, (0.286,), (0.353,)),
    "kmnist": _images(1, 28, 10, 60000, 10000, (0.1904,), (0.3475,)),
    "cifar10": _images(
        3, 32, 10, 50000, 10000, (0.424, 0.415, 0.384), (0.283, 0.278, 0.284)
    ),
    "cifar100": _images(
        3, 32, 100, 50000, 10000, (0.438, 0.418, 0.377), (0.300, 0.287, 0.294)
    ),
    # svhn: 73257 training images and the 531131 of the extra set, as in section 4.6
    "svhn": _images(3, 32, 10, 604388, 26032, (0.431, 0.430, 0.446), (0.197, 0.198, 0.199)),
    "stl10": _images(3, 96, 10, 5000, 8000, (0.447, 0.440, 0.407), (0.260, 0.257, 0.271)),
}  # fmt: skip
_IMAGENET = {  # mean and deviation by the number of channels: of colours, or of their luma
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.459,), (0.226,)),
}


def data_facts(config: DataConfig, read: ImageFolder | OwnData | None = None) -> DataFacts:
    """Facts of the configured data set, limits and `validation` applied: `test_images` are those
    that are tested on.

    Images of an `imagefolder` are counted, not opened; where `data.normalise` is `measured`, mean
    and deviation are not known yet.

    Args:
        read: the list of an `imagefolder`, or the user's own data, where that was read already.

    Raises:
        ConfigError: where the folders of an `imagefolder` are missing or hold no classes, for own
            data as `read_own`, for a mean that has not a number for each channel, and where
            nothing is left to train on.
    """
    if config.name == "synthetic":
        facts = _synthetic(config)
    elif config.name == "imagefolder":
        folder = read if isinstance(read, ImageFolder) else list_images(data_root(config))
        facts = _imagefolder(config, folder)
    elif config.is_own:
        facts = _own(config, None if isinstance(read, ImageFolder) else read)
    else:
        facts = _KNOWN[config.name]
    train, test = facts.train_images, facts.test_images
    train, test = min(train, config.train_limit or train), min(test, config.test_limit or test)
    if config.validation is not None:
        test = held_back(train, config.validation)
        train -= test
    facts = replace(facts, train_images=train, test_images=test)
    if config.mean is not None and config.std is not None:
        facts = replace(facts, mean=config.mean, std=config.std)
    _check_normalised(config, facts)
    return facts


def held_back(images: int, share: float) -> int:
    """How many of so many training images `data.validation` keeps from training: at least one.

    Raises:
        ConfigError: where none is left to train on.
    """
    if images < 2:
        raise ConfigError(
            f"data.validation {share:g}: of {images} training image none would be left to train "
            "on: use 2 or more, or leave it out"
        )
    return min(images - 1, max(1, round(images * share)))


def _check_normalised(config: DataConfig, facts: DataFacts) -> None:
    """Raises ConfigError where mean and deviation don't fit what is normalised by them."""
    if facts.dtype == "int64" and (facts.mean or config.normalise == "measured"):
        raise ConfigError(
            "data: examples of int64 are token ids, which have no mean: leave data.mean, data.std "
            "and data.normalise out"
        )
    own, places = config.is_own, facts.normalised_places
    if places > _MOST_PLACES and (len(facts.mean) == places or config.normalise == "measured"):
        raise ConfigError(
            f"data.mean: {places} places of the last dimension, at most {_MOST_PLACES} can have a "
            "number each: give data.mean and data.std one for all, or normalise in your own "
            "function"
        )
    if len(facts.mean) in (places, *((0, 1) if own else ())):
        return
    each = "channels" if len(facts.shape) == 3 else "places of the last dimension"
    name = f"examples of shape {facts.shape}" if own else config.name
    raise ConfigError(
        f"data.mean: {len(facts.mean)} numbers for the {places} {each} of {name}: give one for "
        f"each{', or one for all,' if own else ','} in data.std too"
    )


def whole_facts(config: DataConfig) -> DataFacts:
    """As `data_facts`, without limits and a validation share."""
    whole = {"train_limit": None, "test_limit": None, "validation": None}
    return data_facts(config.model_copy(update=whole))


def known_facts(name: str) -> DataFacts:
    """Facts of a published data set, without limits."""
    return _KNOWN[name]


def about(name: str) -> str:
    """A data set that is not a user's own, in a line."""
    if name == "imagefolder":
        return f"image files in data.root: {ACCEPTED}"
    facts = data_facts(DataConfig(name=name))  # type: ignore[arg-type]
    kind = "random, " if name == "synthetic" else ""
    return (
        f"{kind}{' × '.join(map(str, facts.shape))} pixels, {facts.classes} classes, "
        f"{facts.train_images:,} images to train on, {facts.test_images:,} to test on"
    )


def keys_of(data: str) -> dict[str, str]:
    """The keys of a section `data` that a word for data stands for: the name of a data set, an .npz
    file, or a folder of images."""
    if data.endswith(".npz"):
        return {"file": data}
    if data not in get_args(DataName) and expanded("data", data).is_dir():
        return {"name": "imagefolder", "root": data}
    return {"name": data}


def data_root(config: DataConfig) -> Path:
    """The folder of the data sets.

    Raises:
        ConfigError: where it begins with a home folder that is not known.
    """
    return expanded("data.root", config.root).absolute()


def check_data(config: DataConfig, facts: DataFacts, *, batch_norm: bool) -> None:
    """Refuse what the shapes and counts of a data set make impossible; reads no image.

    Args:
        batch_norm: whether the network normalises by batches, which takes several images.

    Raises:
        ConfigError: for crops, flips or holes in what is no image, crops or holes larger than an
            image, for batches limited to more classes than there are, for fewer images than a
            batch, and where one image is left for the last batch of an epoch.
    """
    augmented = [key for key in ("crop_padding", "flip", "cutout") if getattr(config, key)]
    if augmented and (len(facts.shape) != 3 or facts.dtype == "int64"):
        raise ConfigError(
            f"data.{augmented[0]}: is for images of (channels, height, width), and an example is "
            f"{facts.dtype} of shape {facts.shape}: leave it out, or reshape the examples"
        )
    for key, pixels in (("crop_padding", config.crop_padding), ("cutout", config.cutout)):
        if pixels and pixels > (side := min(facts.shape[1:])):
            raise ConfigError(
                f"data.{key} {pixels}: more than the {side} pixels of an image's side"
                f" ({config.name}); allowed: 0 to {side}"
            )
    if config.classes_per_batch and (facts.target_shape or not facts.classes):
        raise ConfigError(
            "data.classes_per_batch: the targets are not one class for each example: leave it out"
        )
    if (config.classes_per_batch or 0) > facts.classes:
        raise ConfigError(
            f"data.classes_per_batch {config.classes_per_batch}: more than the {facts.classes}"
            f" classes of {config.name}; allowed: 2 to {facts.classes}, or leave it out"
        )
    if 1 < facts.train_images < config.batch_size:  # of a single image is more to be said
        raise ConfigError(
            f"data.batch_size {config.batch_size}: more than the {facts.train_images} training"
            f" examples, so no batch would be full; use {facts.train_images} or fewer"
        )
    if batch_norm:
        _check_last_batch(facts.train_images, config.batch_size)


def _check_last_batch(images: int, batch_size: int) -> None:
    # the variance that batch normalisation divides by is that of several images
    if images == 1:
        raise ConfigError(
            "data: 1 training image; batch normalisation can't train on one image: use at least 2"
            " (data.train_limit 2 or more, data.train_images 2 or more for synthetic)"
        )
    if batch_size > 1 and images % batch_size == 1:
        other = next(size for size in count(batch_size + 1) if images % size != 1)
        raise ConfigError(
            f"data.batch_size {batch_size}: leaves 1 of {images} training images for the last"
            " batch of an epoch, and batch normalisation can't train on one image; use"
            f" data.batch_size {other} or data.train_limit {images - 1}"
        )


def _synthetic(config: DataConfig) -> DataFacts:
    channels = config.channels or 3
    return _images(
        channels,
        config.size or 32,
        config.classes or 10,
        config.train_images or 1024,
        config.test_images or 256,
        (0.5,) * channels,
        (0.29,) * channels,
    )


def _own(config: DataConfig, read: OwnData | None) -> DataFacts:
    from pipeline.data.own_data import read_own  # numpy, which planning can do without

    own = read or read_own(config)
    x, y = own.training.x, own.training.y
    return DataFacts(
        shape=x.shape[1:],
        classes=own.classes,
        train_images=len(x),
        test_images=len(own.test) if own.test else 0,
        mean=own.mean,
        std=own.std,
        dtype=str(x.dtype),
        target_shape=y.shape[1:],
        target_dtype=str(y.dtype),
        tokens=own.tokens,
    )


def _imagefolder(config: DataConfig, folder: ImageFolder) -> DataFacts:
    channels = config.channels or 3
    return _images(
        channels,
        config.size or 224,
        len(folder.classes),
        len(folder.training.files),
        len(folder.test.files),
        *_IMAGENET[channels],
    )
