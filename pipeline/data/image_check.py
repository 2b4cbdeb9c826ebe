"""A look at every image file before training begins: what can't be read is found now.

In this thread as long as files come fast: threads that share Python's lock hold each other up
(64 µs a file on one, 130 on four). Where files are slow, as over a network, or have to be
decoded, several threads wait for them at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from pipeline.data.image_list import ImageFile, ImageFolder, ImageList, shortened
from pipeline.data.image_reading import DeepPixelsError, ImageError, Seen
from pipeline.errors import ConfigError
from pipeline.system.daemon_pool import DaemonPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.data.image_reading import ImageReader

    Progress: TypeAlias = Callable[[str, int, int], None]

_TRIED_FIRST = 64
_SLOW_S = 3e-4
"""Above this time for each of the first files, threads pay."""
_THREADS = min(16, 2 * (os.cpu_count() or 1) + 2)
_CHUNK = 32
_TOLD_EVERY = 64


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that can't be used, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """The images of a part that can be used, with what was seen of each, and the others."""

    images: ImageList
    seen: tuple[Seen, ...]
    bad: tuple[BadImage, ...]


def check_images(
    folder: ImageFolder, reader: ImageReader, *, skip: bool, told: Progress
) -> tuple[CheckedPart, CheckedPart]:
    """Look at all images of both parts.

    Args:
        skip: decode each of them, and leave out those that can't be.
        told: called with what is done, how many files, and of how many.

    Raises:
        ConfigError: naming the first file that can't be used, and how many there are; with
            `skip`, only for deep images without `data.white` and where a class has no image left.
    """
    parts = (folder.training, folder.test)
    of = sum(len(part.files) for part in parts)
    looking = _Looking(reader, told, of, whole=skip)
    checked = [looking.part(part) for part in parts]
    bad = [image for part in checked for image in part.bad]
    if bad and not skip:
        raise ConfigError(
            f"{bad[0].path}: can't be decoded as an image: {bad[0].why}; {len(bad)} of "
            f"{of + sum(len(part.odd) for part in parts)} image files can't: mend or remove them, "
            "or leave them out with --set data.on_bad_image=skip"
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
            "them, or remove these classes from train and val"
        )


class _Looking:
    """Through all parts of a folder: how far it is, and whether its files are slow."""

    def __init__(self, reader: ImageReader, told: Progress, of: int, *, whole: bool) -> None:
        self._reader, self._told, self._of, self._whole = reader, told, of, whole
        self._done = 0

    def part(self, images: ImageList) -> CheckedPart:
        """Look at the images of one part, in order."""
        good: list[ImageFile] = []
        seen: list[Seen] = []
        odd = [images.path(file) for file in images.odd]
        bad = [BadImage(path, _what_it_is(path)) for path in odd]
        for file, found in zip(images.files, self._seen(images), strict=True):
            if isinstance(found, Seen):
                good.append(file)
                seen.append(found)
            else:
                bad.append(found)
        return CheckedPart(ImageList(images.folder, tuple(good)), tuple(seen), tuple(bad))

    def _seen(self, images: ImageList) -> Iterator[Seen | BadImage]:
        paths = map(images.path, images.files)
        began = perf_counter()
        first = [self._counted(self._look(path)) for path in islice(paths, _TRIED_FIRST)]
        yield from first
        slow = perf_counter() - began > _SLOW_S * len(first)
        found = self._in_threads(paths) if slow or self._whole else map(self._look, paths)
        yield from map(self._counted, found)

    def _in_threads(self, paths: Iterator[str]) -> Iterator[Seen | BadImage]:
        pool = DaemonPool(_THREADS, "look")
        try:
            # by rounds, so that what was asked for is bounded, and an interruption waits for little
            while round_ := list(islice(paths, _CHUNK * _THREADS)):
                yield from pool.map(self._look, round_)
        finally:
            pool.shutdown(cancel_futures=True)

    def _look(self, path: str) -> Seen | BadImage:
        try:
            return self._reader.look(path, whole=self._whole)
        except ImageError as error:
            return BadImage(error.path, error.why)
        except DeepPixelsError as error:  # wrong with the config, not with the file
            raise ConfigError(str(error)) from None

    def _counted(self, found: Seen | BadImage) -> Seen | BadImage:
        self._done += 1
        if self._done % _TOLD_EVERY == 0 or self._done == self._of:
            self._told("looking at images", self._done, self._of)
        return found


def _what_it_is(path: str) -> str:
    return "it is no regular file" if os.path.exists(path) else "it is a link that leads nowhere"
