"""Deterministic batches: the images of (seed, epoch, index), whatever was asked for before.

    load_batches ─┬─ digits, synthetic             made here
                  ├─ mnist, cifar10, …             published.py: fetched and read
                  └─ imagefolder                   image_folder.py: decoded as they are needed

The only file that imports sklearn, inside the function that needs it; `published.py` does so with
torchvision, whose import takes 5 s. `digits` and `synthetic` need neither it nor torch.

Images are uint8 in NCHW order: n images, C channels, height, width. Normalisation, crop with
padding, flip and cutout are done later, on stage 0's device (`augment.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.data.class_limited import ClassLimit
from pipeline.data.facts import DataFacts, data_facts
from pipeline.data.image_folder import ImageFiles, read_folder
from pipeline.data.image_list import PARTS
from pipeline.data.published import read_published
from pipeline.data.record import DataRecord, PartRecord
from pipeline.errors import ConfigError
from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.config.sections import DataConfig
    from pipeline.data.image_folder import BadImage, Progress
    from pipeline.data.image_list import ImageFolder

Pair: TypeAlias = "tuple[NDArray[np.uint8], NDArray[np.int64]]"
_Part: TypeAlias = "_Arrays | ImageFiles"

_TRAIN, _TEST, _LEVELS = 0, 1, 2  # the parts of `synthetic`
_MOST_MEASURED, _MEASURED_AT_ONCE = 10_000, 64


class Batches:
    """The batches of one data set, by position alone: resume and replay are exact."""

    def __init__(
        self,
        facts: DataFacts,
        batch_size: int,
        seed: int,
        training: _Part,
        test: _Part,
        limit: ClassLimit | None,
        folder: ImageFolder | None,
    ) -> None:
        self.facts, self.batch_size = facts, batch_size
        self.classes = folder.classes if folder else ()
        self.passed_over = folder.passed_over() if folder else []
        self.steps_per_epoch = math.ceil(len(training) / batch_size)
        self.evaluation_batches = math.ceil(len(test) / batch_size)
        self._seed, self._limit = seed, limit
        self.training, self.test = training, test
        self._order_of_epoch: tuple[int, NDArray[np.int64]] | None = None

    @property
    def in_memory(self) -> bool:
        """Whether nothing is read any more: no batch is waited for."""
        return isinstance(self.training, _Arrays)

    def train(self, epoch: int, index: int) -> Pair:
        """Batch `index` (from 0) of `epoch` (from 1), the smaller last one included.

        Returns:
            uint8 images (n, C, H, W) and int64 labels (n,), both C-contiguous.

        Raises:
            RunError: where an image file can't be decoded (`imagefolder` only).
        """
        assert epoch >= 1, f"epochs count from 1, not {epoch}"
        assert 0 <= index < self.steps_per_epoch, f"batch {index} of {self.steps_per_epoch}"
        return self.training.take(self._order(epoch)[self._span(index)], epoch)

    def evaluation(self, index: int) -> Pair:
        """Test batch `index` (from 0) in file order; as `train`, but with nothing random."""
        assert 0 <= index < self.evaluation_batches, f"batch {index} of {self.evaluation_batches}"
        return self.test.take(np.arange(len(self.test))[self._span(index)], None)

    @property
    def left_out(self) -> tuple[BadImage, ...]:
        """Image files that can't be decoded, where the config says to skip these."""
        parts = (self.training, self.test)
        return tuple(
            bad for part in parts if isinstance(part, ImageFiles) for bad in part.checked.bad
        )

    def files(self) -> Iterator[tuple[str, str, int, str]]:
        """Of an image folder: part, path below it, bytes and digest of each image."""
        for name, part in zip(PARTS, (self.training, self.test), strict=True):
            if isinstance(part, ImageFiles):
                checked = zip(part.checked.images.files, part.checked.samples, strict=True)
                for file, sample in checked:
                    yield name, file.path, sample.nbytes, sample.digest

    def record(self, name: str) -> DataRecord:
        """Which images these are; looks at every byte of those that are in memory."""
        training, test = (
            PartRecord(
                tuple(np.bincount(part.labels, minlength=self.facts.classes).tolist()),
                part.digest(),
            )
            for part in (self.training, self.test)
        )
        return DataRecord(name, self.classes, training, test)

    def _span(self, index: int) -> slice:
        return slice(index * self.batch_size, (index + 1) * self.batch_size)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        known = self._order_of_epoch  # another thread may ask for another epoch meanwhile
        if known is None or known[0] != epoch:
            draws = generator(self._seed, Purpose.ORDER, epoch)
            if self._limit is not None and self._limit.holds_in(epoch):
                order = self._limit.ordered(self.training.labels, self.batch_size, draws)
            else:
                order = draws.permutation(len(self.training)).astype(np.int64)
            known = self._order_of_epoch = (epoch, order)
        return known[1]


def load_batches(
    config: DataConfig, seed: int, progress: Progress = lambda what, done, of: None
) -> Batches:
    """Read (and where `config.download` says so, fetch) the data set, checked against its facts.

    Args:
        progress: called with what is done, how many images, and of how many, while that takes time.

    Raises:
        ConfigError: for a data set that is missing, damaged or can't be fetched, or that holds
            other images than its facts say.
    """
    training: _Part
    test: _Part
    folder = None
    if config.name == "imagefolder":
        folder, facts, training, test = read_folder(config, seed, progress)
    else:
        facts = data_facts(config)
        if config.name == "digits":
            both = _digits()
        elif config.name == "synthetic":
            both = _synthetic(config, seed)
        else:
            both = read_published(config)
        training, test = _Arrays(*both[0], config.train_limit), _Arrays(*both[1], config.test_limit)
    if config.normalise == "measured":
        mean, std = measured(training, progress)
        facts = replace(facts, mean=mean, std=std)
    limit = None
    if config.classes_per_batch is not None:
        until = config.classes_per_batch_until_epoch
        limit = ClassLimit(config.classes_per_batch, until, config.class_order)
    return Batches(facts, config.batch_size, seed, training, test, limit, folder)


def measured(images: _Part, progress: Progress) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1, to four places.

    Of at most 10,000 images, evenly spaced, as they are seen in a test; summed in whole numbers,
    so that nothing is rounded before the end.

    Raises:
        ConfigError: where all pixels of a channel are the same.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), _MOST_MEASURED)).astype(np.int64)
    sums = squares = 0
    pixels = 0
    for start in range(0, len(chosen), _MEASURED_AT_ONCE):
        seen = images.take(chosen[start : start + _MEASURED_AT_ONCE], None)[0].astype(np.int64)
        sums, squares = sums + seen.sum((0, 2, 3)), squares + (seen * seen).sum((0, 2, 3))
        pixels += seen.size // seen.shape[1]
        progress("measuring mean and deviation", start + len(seen), len(chosen))
    mean = sums / pixels
    deviation = np.sqrt(np.maximum(squares / pixels - mean * mean, 0))
    found = np.round(mean / 255, 4).tolist(), np.round(deviation / 255, 4).tolist()
    if min(found[1]) <= 0:
        raise ConfigError(
            f"data.normalise measured: the standard deviation of a channel is 0 ({found[1]}); "
            "these training images show one value: look at them, or give data.mean and data.std"
        )
    return tuple(found[0]), tuple(found[1])


class _Arrays:
    """Images held in memory: uint8 (N, C, H, W), with int64 labels (N,), the first `limit`."""

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], limit: int | None
    ) -> None:
        self._images, self.labels = images[:limit], labels[:limit]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64], epoch: int | None) -> Pair:
        return self._images[indices], self.labels[indices]

    def digest(self) -> str:
        """SHA-256 of all images and labels."""
        whole = sha256(repr(self._images.shape).encode())
        whole.update(np.ascontiguousarray(self._images).data.cast("B"))
        whole.update(np.ascontiguousarray(self.labels).data.cast("B"))
        return whole.hexdigest()


def _digits() -> tuple[Pair, Pair]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    testing = np.arange(len(labels)) % 5 == 0
    return (images[~testing], labels[~testing]), (images[testing], labels[testing])


def _synthetic(config: DataConfig, seed: int) -> tuple[Pair, Pair]:
    # a limit must give the first images of the same set, so the whole set is made
    facts = data_facts(config.model_copy(update={"train_limit": None, "test_limit": None}))
    levels = np.linspace(0, 255, facts.classes).astype(np.uint8)
    draws = generator(seed, Purpose.IMAGES, _LEVELS)
    levels_of_class = np.stack([draws.permutation(levels) for _ in range(facts.shape[0])], axis=1)
    training = _noise(facts, facts.train_images, levels_of_class, seed, _TRAIN)
    return training, _noise(facts, facts.test_images, levels_of_class, seed, _TEST)


def _noise(
    facts: DataFacts, images: int, levels_of_class: NDArray[np.uint8], seed: int, part: int
) -> Pair:
    """A quarter of the pixels show the level of class and channel; the others are noise."""
    draws = generator(seed, Purpose.IMAGES, part)
    shape = (images, *facts.shape)
    labels = draws.integers(0, facts.classes, images, dtype=np.int64)
    noise = draws.integers(0, 256, shape, dtype=np.uint8)
    shown = draws.integers(0, 4, shape, dtype=np.uint8) == 0
    return np.where(shown, levels_of_class[labels][:, :, None, None], noise), labels
