"""Deterministic batches: the examples of (seed, epoch, index), whatever was asked for before.

    load_batches ─┬─ digits, synthetic             made here
                  ├─ mnist, cifar10, …             published.py: fetched and read
                  ├─ imagefolder                   image_folder.py: decoded as they are needed
                  └─ factory, npz                  own_data.py: given by the user

The only file that imports sklearn, inside the function that needs it; `published.py` does so with
torchvision, whose import takes 5 s. `digits` and `synthetic` need neither of them, nor torch.

Images are uint8 in NCHW order: n images, C channels, height, width; a user's own examples are of
the shape and type that the facts say. Normalisation, crop with padding, flip and cutout are done
later, on stage 0's device (`augment.py`).
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.data.class_limited import ClassLimit
from pipeline.data.facts import DataFacts, data_facts, held_back, whole_facts
from pipeline.data.image_folder import read_folder
from pipeline.data.measured import measured
from pipeline.data.own_data import read_own
from pipeline.data.parts import Arrays, sampled, without_validation
from pipeline.data.published import read_published
from pipeline.data.record import DataRecord, PartRecord
from pipeline.seeding import Purpose, generator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.config.data import DataConfig
    from pipeline.data.image_folder import BadImage, ImageFiles, Progress
    from pipeline.data.own_data import OwnData
    from pipeline.data.parts import Pair, Part

Images: TypeAlias = "tuple[NDArray[np.uint8], NDArray[np.int64]]"

_TRAIN, _TEST, _LEVELS = 0, 1, 2  # the parts of `synthetic`


class Batches:
    """The batches of one data set, by position alone: resume and replay are exact."""

    def __init__(
        self,
        facts: DataFacts,
        batch_size: int,
        seed: int,
        training: Part,
        test: Part,
        limit: ClassLimit | None,
        *,
        classes: tuple[str, ...] = (),
        notes: Sequence[str] = (),
        files: Sequence[ImageFiles] = (),
        validates: bool = False,
    ) -> None:
        """`classes`: their names; `notes`: what to say before training; `files`: the parts of an
        image folder, as they were read; `validates`: whether `test` is a share of the training
        set."""
        self.facts, self.batch_size = facts, batch_size
        self.classes, self.notes = classes, notes
        self._files, self._validates = files, validates
        self.steps_per_epoch = math.ceil(len(training) / batch_size)
        self.evaluation_batches = math.ceil(len(test) / batch_size)
        self._seed, self._limit = seed, limit
        self.training, self.test = training, test
        self._order_of_epoch: tuple[int, NDArray[np.int64]] | None = None

    @property
    def in_memory(self) -> bool:
        """Whether nothing is read any more: no batch is waited for."""
        return not self._files

    def train(self, epoch: int, index: int) -> Pair:
        """Batch `index` (from 0) of `epoch` (from 1), the smaller last one included.

        Returns:
            Examples (n, *shape) and targets (n, *target_shape) of the types that the facts say,
            both C-contiguous: of images uint8 (n, C, H, W) and int64 labels (n,).

        Raises:
            RunError: where an image file can't be decoded (`imagefolder` only).
        """
        assert epoch >= 1, f"epochs count from 1, not {epoch}"
        assert 0 <= index < self.steps_per_epoch, f"batch {index} of {self.steps_per_epoch}"
        return self.training.take(self._order(epoch)[self._span(index)], epoch)

    def evaluation(self, index: int) -> Pair:
        """Test (or validation) batch `index` (from 0) in file order; as `train`, but with nothing
        random."""
        assert 0 <= index < self.evaluation_batches, f"batch {index} of {self.evaluation_batches}"
        return self.test.take(np.arange(len(self.test))[self._span(index)], None)

    @property
    def left_out(self) -> tuple[BadImage, ...]:
        """Image files that can't be decoded, where the config says to skip these."""
        return tuple(bad for part in self._files for bad in part.checked.bad)

    def files(self) -> Iterator[tuple[str, str, int, str]]:
        """Of an image folder: part, path below it, bytes and digest of each image."""
        for part in self._files:
            images, samples = part.checked.images, part.checked.samples
            for file, sample in zip(images.files, samples, strict=True):
                yield images.name, file.path, sample.nbytes, sample.digest

    def record(self, name: str) -> DataRecord:
        """Which examples these are; looks at every byte of those that are in memory."""
        training, test = map(self.part_record, (self.training, self.test))
        return DataRecord(name, self.classes, training, test, self._validates)

    def part_record(self, part: Part) -> PartRecord:
        """Of one of its two parts; as `record`."""
        per_class = list[int]()
        if self.facts.classes:
            per_class = np.bincount(part.targets.ravel(), minlength=self.facts.classes).tolist()
        return PartRecord(tuple(per_class), part.digest(), len(part))

    def _span(self, index: int) -> slice:
        return slice(index * self.batch_size, (index + 1) * self.batch_size)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        known = self._order_of_epoch  # another thread may ask for another epoch meanwhile
        if known is None or known[0] != epoch:
            draws = generator(self._seed, Purpose.ORDER, epoch)
            if self._limit is not None and self._limit.holds_in(epoch):
                order = self._limit.ordered(self.training.targets, self.batch_size, draws)
            else:
                order = draws.permutation(len(self.training)).astype(np.int64)
            known = self._order_of_epoch = (epoch, order)
        return known[1]


def load_batches(
    config: DataConfig,
    seed: int,
    progress: Progress = lambda what, done, of: None,
    own: OwnData | None = None,
) -> Batches:
    """Read (and where `config.download` says so, fetch) the data set, checked against its facts.

    Args:
        progress: called with what is done, how many images, and of how many, while that takes time.
        own: a user's own data, where they were read already.

    Raises:
        ConfigError: for a data set that is missing, damaged or can't be fetched, or that holds
            other images than its facts say.
    """
    training: Part
    test: Part
    classes: tuple[str, ...] = ()
    notes: Sequence[str] = ()
    files: Sequence[ImageFiles] = ()
    if config.name == "imagefolder":
        folder, facts, *files = read_folder(config, seed, progress)
        (training, test), classes, notes = files, folder.classes, folder.passed_over()
    elif config.is_own:
        own = own or read_own(config)
        facts, classes, notes = data_facts(config, own), own.names, own.notes
        training, test = _own_parts(config, own)
    else:
        facts = data_facts(config)
        if config.name == "digits":
            both = _digits()
        elif config.name == "synthetic":
            both = _synthetic(config, seed)
        else:
            both = read_published(config)
        training, test = Arrays(*both[0], config.train_limit), Arrays(*both[1], config.test_limit)
    if config.validation is not None:
        held = held_back(len(training), config.validation)
        training, test = without_validation(training, held)
        facts = replace(facts, train_images=len(training), test_images=len(test))
    if config.normalise == "measured":
        mean, std = measured(training, facts, progress)
        facts = replace(facts, mean=mean, std=std)
    limit = None
    if config.classes_per_batch is not None:
        until = config.classes_per_batch_until_epoch
        limit = ClassLimit(config.classes_per_batch, until, config.class_order)
    return Batches(
        facts,
        config.batch_size,
        seed,
        training,
        test,
        limit,
        classes=classes,
        notes=notes,
        files=files,
        validates=config.validation is not None,
    )


def _own_parts(config: DataConfig, own: OwnData) -> tuple[Part, Part]:
    x, y = own.training.x, own.training.y
    # other numbers to normalise by make other data of the same examples
    training = Arrays(x, y, beside=f"{own.mean}{own.std}" if own.mean else "")
    test = Arrays(own.test.x, own.test.y) if own.test else Arrays(x[:0], y[:0])
    return sampled(training, config.train_limit), sampled(test, config.test_limit)


def _digits() -> tuple[Images, Images]:
    pixels, labels = _digits_of_sklearn()
    images = np.rint(pixels * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    testing = np.arange(len(labels)) % 5 == 0
    return (images[~testing], labels[~testing]), (images[testing], labels[testing])


def _digits_of_sklearn() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels of 0 to 16, a row of 64 per image, and labels; from the file that scikit-learn reads,
    as its import takes longer than many a run on these."""
    package = find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        with suppress(FileNotFoundError):
            table = np.loadtxt(Path(folder, "datasets", "data", "digits.csv.gz"), delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # of a version that has it elsewhere

    digits = load_digits()
    return digits.data, digits.target.astype(np.int64)


def _synthetic(config: DataConfig, seed: int) -> tuple[Images, Images]:
    facts = whole_facts(config)  # a limit must give the first images of the same set
    levels = np.linspace(0, 255, facts.classes).astype(np.uint8)
    draws = generator(seed, Purpose.IMAGES, _LEVELS)
    levels_of_class = np.stack([draws.permutation(levels) for _ in range(facts.shape[0])], axis=1)
    training = _noise(facts, facts.train_images, levels_of_class, seed, _TRAIN)
    return training, _noise(facts, facts.test_images, levels_of_class, seed, _TEST)


def _noise(
    facts: DataFacts, images: int, levels_of_class: NDArray[np.uint8], seed: int, part: int
) -> Images:
    """A quarter of the pixels show the level of class and channel; the others are noise."""
    draws = generator(seed, Purpose.IMAGES, part)
    shape = (images, *facts.shape)
    labels = draws.integers(0, facts.classes, images, dtype=np.int64)
    noise = draws.integers(0, 256, shape, dtype=np.uint8)
    shown = draws.integers(0, 4, shape, dtype=np.uint8) == 0
    return np.where(shown, levels_of_class[labels][:, :, None, None], noise), labels
