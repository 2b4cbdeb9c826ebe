"""What is known of each data set before it is read: shapes, sizes, the paper's normalisation.

Pure facts (design of the paper, section 4; values per data set as published with it), so that
a plan can be made and a config refused without loading an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import DataConfig


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Shapes and counts of a data set, and mean and standard deviation per channel in [0, 1]."""

    channels: int
    size: int
    classes: int
    train_images: int
    test_images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.channels, self.size, self.size)


_KNOWN = {
    # digits: every fifth image is for testing; mean and deviation of the 1437 training images
    "digits": DataFacts(1, 8, 10, 1437, 360, (0.3053,), (0.3762,)),
    "mnist": DataFacts(1, 28, 10, 60000, 10000, (0.1307,), (0.3081,)),
    "fashion_mnist": DataFacts(1, 28, 10, 60000, 10000, (0.286,), (0.353,)),
    "kmnist": DataFacts(1, 28, 10, 60000, 10000, (0.1904,), (0.3475,)),
    "cifar10": DataFacts(
        3, 32, 10, 50000, 10000, (0.424, 0.415, 0.384), (0.283, 0.278, 0.284)
    ),
    "cifar100": DataFacts(
        3, 32, 100, 50000, 10000, (0.438, 0.418, 0.377), (0.300, 0.287, 0.294)
    ),
    # svhn: 73257 training images and the 531131 of the extra set, as in section 4.6
    "svhn": DataFacts(3, 32, 10, 604388, 26032, (0.431, 0.430, 0.446), (0.197, 0.198, 0.199)),
    "stl10": DataFacts(3, 96, 10, 5000, 8000, (0.447, 0.440, 0.407), (0.260, 0.257, 0.271)),
}  # fmt: skip
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def data_facts(config: DataConfig) -> DataFacts:
    """Facts of the configured data set, `train_limit` and `test_limit` applied.

    Raises:
        ConfigError: where the folders of an `imagefolder` are missing.
    """
    facts = _made_or_known(config)
    train, test = facts.train_images, facts.test_images
    return DataFacts(
        facts.channels,
        facts.size,
        facts.classes,
        min(train, config.train_limit or train),
        min(test, config.test_limit or test),
        facts.mean,
        facts.std,
    )


def check_data(config: DataConfig, facts: DataFacts, *, batch_norm: bool) -> None:
    """Refuse what the shapes and counts of a data set make impossible; reads no image.

    Args:
        batch_norm: whether the network normalises by batches, which takes several images.

    Raises:
        ConfigError: for crops or holes larger than an image, for batches limited to more
            classes than there are, and where one image is left for the last batch of an epoch.
    """
    for key, pixels in (("crop_padding", config.crop_padding), ("cutout", config.cutout)):
        if pixels > facts.size:
            raise ConfigError(
                f"data.{key} {pixels}: more than the {facts.size} pixels of an image's side"
                f" ({config.name}); allowed: 0 to {facts.size}"
            )
    if (config.classes_per_batch or 0) > facts.classes:
        raise ConfigError(
            f"data.classes_per_batch {config.classes_per_batch}: more than the {facts.classes}"
            f" classes of {config.name}; allowed: 2 to {facts.classes}, or leave it out"
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


def _made_or_known(config: DataConfig) -> DataFacts:
    if config.name == "synthetic":
        return _synthetic(config)
    if config.name == "imagefolder":
        return _imagefolder(config)
    return _KNOWN[config.name]


def _synthetic(config: DataConfig) -> DataFacts:
    channels = config.channels or 3
    return DataFacts(
        channels,
        config.size or 32,
        config.classes or 10,
        config.train_images or 1024,
        config.test_images or 256,
        (0.5,) * channels,
        (0.29,) * channels,
    )


def _imagefolder(config: DataConfig) -> DataFacts:
    counts = {}
    for part in ("train", "val"):
        folder = Path(config.root).expanduser() / part
        if not folder.is_dir():
            raise ConfigError(
                f"data.root {config.root}: imagefolder needs {folder} with one folder per class"
            )
        counts[part] = _count_images(folder)
    classes, train = counts["train"]
    return DataFacts(
        3, config.size or 224, classes, train, counts["val"][1], IMAGENET_MEAN, IMAGENET_STD
    )


def _count_images(folder: Path) -> tuple[int, int]:
    classes = [entry for entry in folder.iterdir() if entry.is_dir()]
    images = sum(
        path.suffix.lower() in IMAGE_SUFFIXES for entry in classes for path in entry.rglob("*")
    )
    if not classes or not images:
        raise ConfigError(f"{folder}: expected one folder per class, holding images")
    return len(classes), images
