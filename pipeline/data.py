"""Deterministic batches: the images of (seed, epoch, index), whatever was asked for before.

The only file that imports torchvision and sklearn, and each inside the function that needs it:
importing torchvision takes 5 s, and `digits` and `synthetic` need neither it nor torch.

Images are uint8 in NCHW order: n images, C channels, height, width. Normalisation, crop with
padding, flip and cutout are done later, on stage 0's device (`augment.py`).
"""

from __future__ import annotations

import math
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pipeline.datasets import DataFacts, data_facts
from pipeline.errors import ConfigError
from pipeline.imagefiles import ImageFiles
from pipeline.sampling import ClassLimit
from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.config import DataConfig

Pair: TypeAlias = "tuple[NDArray[np.uint8], NDArray[np.int64]]"
_Part: TypeAlias = "_Arrays | ImageFiles"

_WHOLE = ({"train": True},), ({"train": False},)
_SPLITS: dict[str, Any] = {  # torchvision's arguments for the parts of a training and a test set
    "svhn": (({"split": "train"}, {"split": "extra"}), ({"split": "test"},)),
    "stl10": (({"split": "train"},), ({"split": "test"},)),
}
_TRAIN, _TEST, _LEVELS = 0, 1, 2  # the parts of `synthetic`
_DOWNLOAD_TIMEOUT_S = 60.0  # of one read, not of the whole file
_DECODING_THREADS = min(8, os.cpu_count() or 1)


class Batches:
    """The batches of one data set, by position alone: resume and replay are exact."""

    def __init__(
        self,
        facts: DataFacts,
        batch_size: int,
        seed: int,
        training: _Part,
        test: _Part,
        limit: ClassLimit | None = None,
    ) -> None:
        self.facts = facts
        self.batch_size = batch_size
        self.steps_per_epoch = math.ceil(len(training) / batch_size)
        self.evaluation_batches = math.ceil(len(test) / batch_size)
        self._seed, self._limit = seed, limit
        self._training, self._test = training, test
        self._order_of_epoch: tuple[int, NDArray[np.int64]] | None = None

    def train(self, epoch: int, index: int) -> Pair:
        """Batch `index` (from 0) of `epoch` (from 1), the smaller last one included.

        Returns:
            uint8 images (n, C, H, W) and int64 labels (n,), both C-contiguous.

        Raises:
            RunError: where an image file can't be decoded (`imagefolder` only).
        """
        assert epoch >= 1, f"epochs count from 1, not {epoch}"
        assert 0 <= index < self.steps_per_epoch, f"batch {index} of {self.steps_per_epoch}"
        return self._training.take(self._order(epoch)[self._span(index)], epoch)

    def evaluation(self, index: int) -> Pair:
        """Test batch `index` (from 0) in file order; as `train`, but with nothing random."""
        assert 0 <= index < self.evaluation_batches, f"batch {index} of {self.evaluation_batches}"
        return self._test.take(np.arange(len(self._test))[self._span(index)], None)

    def _span(self, index: int) -> slice:
        return slice(index * self.batch_size, (index + 1) * self.batch_size)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        known = self._order_of_epoch  # another thread may ask for another epoch meanwhile
        if known is None or known[0] != epoch:
            known = self._order_of_epoch = (epoch, self._drawn_order(epoch))
        return known[1]

    def _drawn_order(self, epoch: int) -> NDArray[np.int64]:
        draws, limit = generator(self._seed, Purpose.ORDER, epoch), self._limit
        if limit is not None and limit.holds_in(epoch):
            return limit.ordered(self._training.labels, self.batch_size, draws)
        return draws.permutation(len(self._training)).astype(np.int64)


def load_batches(config: DataConfig, seed: int) -> Batches:
    """Read (and where `config.download` says so, fetch) the data set, checked against its facts.

    Raises:
        ConfigError: for a data set that is missing, damaged or can't be fetched, or that holds
            other images than its facts say.
    """
    facts = data_facts(config)
    training, test = _parts(config, facts, seed)
    _check_count(config, "training", facts.train_images, len(training))
    _check_count(config, "test", facts.test_images, len(test))
    return Batches(facts, config.batch_size, seed, training, test, _limit(config))


def _limit(config: DataConfig) -> ClassLimit | None:
    if config.classes_per_batch is None:
        return None
    until = config.classes_per_batch_until_epoch
    return ClassLimit(config.classes_per_batch, until, config.class_order)


def _check_count(config: DataConfig, part: str, expected: int, found: int) -> None:
    if expected != found:
        raise ConfigError(
            f"data.name {config.name}: expected {expected} {part} images in {_folder(config)},"
            f" found {found}; fetch the data set again or use the copy in another folder"
            " (--set data.root=DIR)"
        )


def _parts(config: DataConfig, facts: DataFacts, seed: int) -> tuple[_Part, _Part]:
    if config.name == "imagefolder":
        return _folders(config, facts, seed)
    if config.name == "digits":
        training, test = _digits()
    elif config.name == "synthetic":
        training, test = _synthetic(config, seed)
    else:
        training, test = _published(config, facts)
    return training.first(config.train_limit), test.first(config.test_limit)


class _Arrays:
    """Images held in memory: uint8 (N, C, H, W), with int64 labels (N,)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, limit: int | None) -> _Arrays:
        return _Arrays(self._images[:limit], self.labels[:limit])

    def take(self, indices: NDArray[np.int64], epoch: int | None) -> Pair:
        return self._images[indices], self.labels[indices]


def _digits() -> tuple[_Arrays, _Arrays]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    testing = np.arange(len(labels)) % 5 == 0
    return _Arrays(images[~testing], labels[~testing]), _Arrays(images[testing], labels[testing])


def _synthetic(config: DataConfig, seed: int) -> tuple[_Arrays, _Arrays]:
    # a limit must give the first images of the same set, so the whole set is made
    facts = data_facts(config.model_copy(update={"train_limit": None, "test_limit": None}))
    levels = np.linspace(0, 255, facts.classes).astype(np.uint8)
    draws = generator(seed, Purpose.IMAGES, _LEVELS)
    levels_of_class = np.stack([draws.permutation(levels) for _ in range(facts.channels)], axis=1)
    training = _noise(facts, facts.train_images, levels_of_class, seed, _TRAIN)
    return training, _noise(facts, facts.test_images, levels_of_class, seed, _TEST)


def _noise(
    facts: DataFacts, images: int, levels_of_class: NDArray[np.uint8], seed: int, part: int
) -> _Arrays:
    """A quarter of the pixels show the level of class and channel; the others are noise."""
    draws = generator(seed, Purpose.IMAGES, part)
    shape = (images, *facts.shape)
    labels = draws.integers(0, facts.classes, images, dtype=np.int64)
    noise = draws.integers(0, 256, shape, dtype=np.uint8)
    shown = draws.integers(0, 4, shape, dtype=np.uint8) == 0
    return _Arrays(np.where(shown, levels_of_class[labels][:, :, None, None], noise), labels)


def _published(config: DataConfig, facts: DataFacts) -> tuple[_Arrays, _Arrays]:
    training, test = _SPLITS.get(config.name, _WHOLE)
    return (
        _read(config, facts, training, config.train_limit),
        _read(config, facts, test, config.test_limit),
    )


def _read(
    config: DataConfig, facts: DataFacts, splits: tuple[Any, ...], limit: int | None
) -> _Arrays:
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    for split in splits:
        # so that a limit spares the 1.3 GB of svhn's extra images
        if limit is None or sum(map(len, labels)) < limit:
            opened = _open(config, split)
            images.append(_channels_first(opened.data)[:limit])
            targets = opened.labels if "split" in split else opened.targets
            labels.append(np.asarray(targets, dtype=np.int64)[:limit])
            _check_images(config, facts, images[-1], labels[-1])
    whole = np.empty((sum(map(len, images)), *facts.shape), dtype=np.uint8)
    return _Arrays(np.concatenate(images, out=whole), np.concatenate(labels))


def _check_images(
    config: DataConfig, facts: DataFacts, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    shapes = (images.shape, labels.shape) == ((len(labels), *facts.shape), (len(images),))
    if not shapes or not np.isin(labels, np.arange(facts.classes)).all():
        raise ConfigError(
            f"data.name {config.name}: expected images of shape {facts.shape} with a label from 0"
            f" to {facts.classes - 1} each in {_folder(config)}, found {images.shape} and"
            f" {len(labels)} labels up to {labels.max(initial=0)}; fetch the data set again"
        )


def _channels_first(data: Any) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = np.asarray(data)
    if images.ndim == 3:
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if images.shape[-1] == 3 else images


def _open(config: DataConfig, split: dict[str, Any]) -> Any:
    from torchvision import datasets

    known = {
        "mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST,
        "kmnist": datasets.KMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN, "stl10": datasets.STL10,
    }  # fmt: skip
    try:
        with _network_timeout():
            return known[config.name](config.root, download=config.download, **split)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise ConfigError(_unavailable(config, error)) from error


@contextmanager
def _network_timeout() -> Iterator[None]:
    # torchvision opens its URLs without one
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unavailable(config: DataConfig, error: Exception) -> str:
    problem, cure = "can't be read from or fetched into", "check the network"
    if not config.download:
        problem, cure = "missing or damaged, with data.download false, in", "set data.download true"
    return (
        f"data.name {config.name}: {problem} {_folder(config)} ({_one_line(error)}); {cure}, or"
        " name the folder where it lies (--set data.root=DIR), or use data.name digits or"
        " synthetic, which need no download"
    )


def _folder(config: DataConfig) -> Path:
    return Path(config.root).expanduser().absolute()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:239] + "…"


def _folders(config: DataConfig, facts: DataFacts, seed: int) -> tuple[ImageFiles, ImageFiles]:
    from torchvision.datasets import ImageFolder

    try:
        training, test = (ImageFolder(_folder(config) / part) for part in ("train", "val"))
    except OSError as error:
        raise ConfigError(f"data.root {config.root}: {_one_line(error)}") from error
    if training.classes != test.classes:
        odd = ", ".join(sorted(set(training.classes) ^ set(test.classes)))
        raise ConfigError(f"data.root {config.root}: in only one of train and val: {odd}")
    pool = ThreadPoolExecutor(_DECODING_THREADS, thread_name_prefix="decode")
    return (
        ImageFiles(training.samples[: config.train_limit], facts.size, seed, pool),
        ImageFiles(test.samples[: config.test_limit], facts.size, seed, pool),
    )
