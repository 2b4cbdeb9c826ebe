"""The images of an `imagefolder`: listed, looked at before training, decoded as they are needed.

    list_images ─▶ limits ─▶ check_images: one look at every file ─▶ ImageFiles: decodes batches

The look is in this thread as long as files come fast: threads that share Python's lock hold each
other up (64 µs a file on one, 130 on four). Where files are slow, as over a network, or have to be
decoded, several threads wait for them at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.data.class_limited import share_of_every_class
from pipeline.data.facts import data_facts, data_root
from pipeline.data.image_list import ImageFile, ImageList, list_images, shortened
from pipeline.data.image_reading import (
    DeepPixelsError,
    FileSample,
    ImageError,
    ImageReader,
    View,
    cut_out,
)
from pipeline.errors import SET, ConfigError
from pipeline.seeding import Purpose, generator
from pipeline.system.daemon_pool import DaemonPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from pipeline.config.data import DataConfig
    from pipeline.data.facts import DataFacts
    from pipeline.data.image_list import ImageFolder

    Progress: TypeAlias = Callable[[str, int, int], None]

_DECODING_THREADS = min(8, os.cpu_count() or 1)
_LOOKING_THREADS = min(16, 2 * (os.cpu_count() or 1) + 2)
_TRIED_FIRST = 64
_SLOW_S = 3e-4
"""Above this time for each of the first files, threads pay."""
_CHUNK = 32
_TOLD_EVERY = 64


def read_folder(
    config: DataConfig, seed: int, progress: Progress
) -> tuple[ImageFolder, DataFacts, ImageFiles, ImageFiles]:
    """What was listed, and facts, training and test images of what of it can be read.

    Raises:
        ConfigError: as `list_images` and `check_images`.
    """
    folder = list_images(data_root(config))
    facts = data_facts(config, folder)
    chosen = replace(
        folder,
        training=_limited(folder.training, config.train_limit, facts.classes),
        test=_limited(folder.test, config.test_limit, facts.classes),
    )
    reader = ImageReader(view_of(config, facts))
    skip = config.on_bad_image == "skip"
    checked = check_images(chosen, reader, skip=skip, progress=progress)
    pool = DaemonPool(_DECODING_THREADS, "decode")
    training, test = (ImageFiles(part, seed, reader, pool) for part in checked)
    facts = replace(facts, train_images=len(training), test_images=len(test))
    return folder, facts, training, test


def view_of(config: DataConfig, facts: DataFacts) -> View:
    """How a run sees image files: those of an image folder as its configuration says; where its
    images come from elsewhere, scaled to their size.

    Raises:
        ConfigError: where its examples are no square images of bytes, in colour or grey.
    """
    shape = facts.shape
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3) or facts.dtype != "uint8":
        raise ConfigError(
            f"image files can't be read as examples of this run, which are {facts.dtype} of shape "
            f"{shape}: give an .npz file"
        )
    channels, size, _ = shape
    if config.name != "imagefolder":
        return View(size, size, channels)
    shorter, is_random = config.resize or size * 256 // 224, config.random_crop is not False
    return View(size, shorter, channels, config.white, is_random)


def _limited(images: ImageList, limit: int | None, classes: int) -> ImageList:
    if limit is None or limit >= len(images.files):
        return images
    labels = np.array([file.label for file in images.files])
    chosen = share_of_every_class(labels, limit, classes)
    return replace(images, files=tuple(images.files[index] for index in chosen))


# --- a look at every file -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that can't be used, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """The images of a part that can be used, with a sample of each, and the others."""

    images: ImageList
    samples: tuple[FileSample, ...]
    bad: tuple[BadImage, ...]


def check_images(
    folder: ImageFolder, reader: ImageReader, *, skip: bool, progress: Progress
) -> tuple[CheckedPart, CheckedPart]:
    """Look at all images of both parts.

    Args:
        skip: decode each of them, and leave out those that can't be.
        progress: called with what is done, how many files, and of how many.

    Raises:
        ConfigError: naming the first file that can't be used, and how many there are; with
            `skip`, only for deep images without `data.white` and where a class has no image left.
    """
    parts = (folder.training, folder.test)
    check = _Check(reader, progress, sum(len(part.files) for part in parts), decode=skip)
    checked = [check.part(part) for part in parts]
    bad = [image for part in checked for image in part.bad]
    if bad and not skip:
        files = sum(len(part.files) + len(part.odd) for part in parts)
        raise ConfigError(
            f"{bad[0].path}: can't be decoded as an image: {bad[0].why}; {len(bad)} of {files} "
            "image files can't: mend or remove them, or leave them out with ",
            SET,
            " data.on_bad_image=skip",
        )
    for before, after in zip(parts, checked, strict=True):
        _check_classes(before, after, folder.classes)
    return checked[0], checked[1]


def _check_classes(before: ImageList, after: CheckedPart, classes: Sequence[str]) -> None:
    left = {file.label for file in after.images.files}
    empty = sorted({file.label for file in (*before.files, *before.odd)} - left)
    if empty:
        raise ConfigError(
            f"data.root: {before.folder}: no image of {shortened(classes[k] for k in empty)} can "
            f"be read (first of {len(after.bad)}: {after.bad[0].path}: {after.bad[0].why}); mend "
            "them, or remove these classes"
        )


class _Check:
    """Of all parts of a folder: how far it is, and whether its files are slow."""

    def __init__(
        self, reader: ImageReader, progress: Progress, files: int, *, decode: bool
    ) -> None:
        self._reader, self._progress, self._files, self._decode = reader, progress, files, decode
        self._done = 0

    def part(self, images: ImageList) -> CheckedPart:
        """Look at the images of one part, in order."""
        good: list[ImageFile] = []
        samples: list[FileSample] = []
        bad: list[BadImage] = []
        for path in map(images.path, images.odd):
            leads_somewhere = os.path.exists(path)
            why = "no regular file" if leads_somewhere else "a link that leads nowhere"
            bad.append(BadImage(path, f"it is {why}"))
        for file, found in zip(images.files, self._results(images), strict=True):
            if isinstance(found, FileSample):
                good.append(file)
                samples.append(found)
            else:
                bad.append(found)
        left = ImageList(images.name, images.folder, tuple(good))
        return CheckedPart(left, tuple(samples), tuple(bad))

    def _results(self, images: ImageList) -> Iterator[FileSample | BadImage]:
        paths = map(images.path, images.files)
        began = perf_counter()
        first = [self._counted(self._look(path)) for path in islice(paths, _TRIED_FIRST)]
        yield from first
        slow = perf_counter() - began > _SLOW_S * len(first)
        found = self._in_threads(paths) if slow or self._decode else map(self._look, paths)
        yield from map(self._counted, found)

    def _in_threads(self, paths: Iterator[str]) -> Iterator[FileSample | BadImage]:
        pool = DaemonPool(_LOOKING_THREADS, "look")
        try:
            # by rounds, so that what was asked for is bounded, and an interruption waits for little
            while round_ := list(islice(paths, _CHUNK * _LOOKING_THREADS)):
                yield from pool.map(self._look, round_)
        finally:
            pool.shutdown(cancel_futures=True)

    def _look(self, path: str) -> FileSample | BadImage:
        try:
            return self._reader.look(path, whole=self._decode)
        except ImageError as error:
            return BadImage(error.path, error.why)
        except DeepPixelsError as error:  # wrong with the config, not with the file
            raise ConfigError(*error.said) from None

    def _counted(self, found: FileSample | BadImage) -> FileSample | BadImage:
        self._done += 1
        if self._done % _TOLD_EVERY == 0 or self._done == self._files:
            self._progress("looking at images", self._done, self._files)
        return found


# --- decoded as they are needed -----------------------------------------------------------


class ImageFiles:
    """Images decoded when they are asked for."""

    def __init__(
        self, checked: CheckedPart, seed: int, reader: ImageReader, pool: Executor
    ) -> None:
        self.checked = checked
        self._seed, self._reader, self._pool = seed, reader, pool
        self.targets = np.array([file.label for file in checked.images.files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def take(
        self, indices: NDArray[np.int64], epoch: int | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (n, C, size, size) and labels (n,); random parts in a training `epoch`.

        Raises:
            RunError: naming the file that can't be decoded.
        """
        images = self._pool.map(lambda index: self._image(index, epoch), indices.tolist())
        return np.stack(list(images)), self.targets[indices]

    def digest(self, chosen: NDArray[np.int64] | None = None) -> str:
        """SHA-256 of all paths, labels and contents, as far as they were looked at; or of those
        at the indices `chosen`."""
        whole = sha256()
        for index in range(len(self)) if chosen is None else chosen.tolist():
            file, sample = self.checked.images.files[index], self.checked.samples[index]
            line = f"{file.label} {sample.nbytes} {sample.digest} {file.path}\n"
            whole.update(line.encode(errors="surrogateescape"))
        return whole.hexdigest()

    def _image(self, index: int, epoch: int | None) -> NDArray[np.uint8]:
        images = self.checked.images
        image = self._reader.decode(images.path(images.files[index]))
        draws = None
        if self._reader.view.random and epoch is not None:
            draws = generator(self._seed, Purpose.IMAGES, epoch, index)
        return cut_out(image, self._reader.view, draws)
