"""Which files of an image folder are images of which class.

    ROOT/train/CLASS/….png   ROOT/val/CLASS/….jpg   folders within CLASS as deep as one likes
    ROOT/train/CLASS/….png   ROOT/test/CLASS/….jpg
    ROOT/CLASS/….png                                none to test on but `data.validation`

In the order of torchvision's ImageFolder. Links are followed. What an operating system or an
editor keeps for itself (`.ipynb_checkpoints`, `@eaDir`, `._0.png`) is neither class nor image.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import ConfigError, cut, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TRAINING = "train"
TESTS = ("val", "valid", "validation", "test")
"""Folders of what is tested on during training; of several, the first of these."""
WHOLE = "."
"""In place of their names, where the root itself holds the classes."""
ACCEPTED = (
    f"{TRAINING}/CLASS/… with {TESTS[0]}/CLASS/… or {TESTS[-1]}/CLASS/…, or CLASS/… alone, of "
    "which data.validation keeps a share to test on"
)
_MOST_ENDS = 5
"""Of names of files that are not read, in a message."""
_SYSTEMS_OWN = frozenset(
    {"@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX", "lost+found",
     "System Volume Information"}
)  # fmt: skip
"""Folders that a system makes; those that begin with a dot are left out, too."""


class ImageFile(NamedTuple):
    """One image: its path below the part's folder, and the number of its class."""

    path: str
    label: int


@dataclass(frozen=True, slots=True)
class ImageList:
    """The images of one part. `name`: of its folder in the root, or `WHOLE`; empty where there is
    no such part. `odd`: what is called like an image but is no file. `others`: how many files are
    not, by the end of their names. `beside`: how many images are in no class."""

    name: str
    folder: str
    files: tuple[ImageFile, ...]
    odd: tuple[ImageFile, ...] = ()
    others: tuple[tuple[str, int], ...] = ()
    beside: int = 0

    def path(self, file: ImageFile) -> str:
        return os.path.join(self.folder, file.path)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Class names in order of their numbers, and the images of both parts, of which that for tests
    may be empty. `unread`: folders beside these parts."""

    classes: tuple[str, ...]
    training: ImageList
    test: ImageList
    unread: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """What people call the folders of those parts that there are."""
        names = (part.name for part in (self.training, self.test) if part.name)
        return tuple("data.root" if name == WHOLE else name for name in names)

    def passed_over(self) -> list[str]:
        """A line for each kind of files that people may take for images of the run."""
        others: Counter[str] = Counter()
        for part in (self.training, self.test):
            others.update(dict(part.others))
        beside = self.training.beside + self.test.beside
        said = []
        if others:
            said.append(
                f"data.root: not read: files in class folders whose names end in "
                f"{_counted(others)}; images are {' '.join(IMAGE_SUFFIXES)}"
            )
        if beside:
            said.append(
                f"data.root: not read: {beside} image file{'s' * (beside > 1)} in "
                f"{' or '.join(self.parts)} itself, beside the folders of classes"
            )
        if self.unread:
            parts = " and ".join(self.parts)
            said.append(f"data.root: not read: {shortened(self.unread)}, beside {parts}")
        return said


def list_images(root: Path) -> ImageFolder:
    """List an image folder; no image is opened.

    Raises:
        ConfigError: where a folder is missing or can't be read, is none of those above, where both
            parts hold other classes, a class has no image, or there is only one class.
    """
    parts, unread = _parts(root)
    classes = _classes(root, parts)
    training, *tests = (_part(root, name, classes) for name in parts)
    test = tests[0] if tests else ImageList("", "", ())
    return ImageFolder(classes, training, test, unread)


def _parts(root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Names of the folders of both parts, or of the one that there is; and those beside them."""
    there = _folders_in(root)
    parts = [name for name in (TRAINING, *TESTS) if name in there and not _is_class(root / name)]
    if TRAINING in parts:
        used = parts[:2]
        return used, tuple(name for name in there if name not in used)
    if parts or len(there) < 2:
        found = shortened(f"{name}/" for name in there) if there else "no folder"
        raise ConfigError(
            f"data.root {root}: holds {found}, and imagefolder needs {ACCEPTED}; a CLASS is a "
            "folder that holds images, and there are at least 2"
        )
    return [WHOLE], ()


def _is_class(folder: Path) -> bool:
    """Whether a folder holds images itself and none that could be a class, though it is called as
    a part is: as of trains."""
    entries = _listed(folder)
    has_images = any(_is_called_image(entry) for entry in entries)
    return has_images and not any(_is(entry.is_dir) for entry in entries)


def labelled_images(root: Path, classes: Sequence[str]) -> ImageList:
    """The images of a folder with a folder for each of some known classes; those of the part that
    is tested on, where the folder has parts.

    Raises:
        ConfigError: where it can't be read, or has folders of other classes, or no image.
    """
    tests = [name for name in TESTS if name not in classes and (root / name).is_dir()]
    folder = root.joinpath(*tests[:1])
    try:
        found = sorted(entry.name for entry in _visible(folder) if _is(entry.is_dir))
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror or error}") from None
    if odd := [name for name in found if name not in classes]:
        raise ConfigError(
            f"has folders that are none of the run's {len(classes)} classes: "
            f"{shortened(odd)}; these are {shortened(classes)}"
        )
    files = [
        ImageFile(os.path.join(name, os.path.relpath(path, folder / name)), classes.index(name))
        for name in found
        for path in images_below(folder / name)
    ]
    if not files:
        raise ConfigError(
            f"has no image in a folder of a class ({shortened(classes)}); images are "
            f"{' '.join(IMAGE_SUFFIXES)}"
        )
    return ImageList(folder.name, str(folder), tuple(files))


def images_below(folder: Path) -> list[str]:
    """Paths of all images in a folder and in those within it.

    Raises:
        ConfigError: where it can't be read.
    """
    return _images_below(str(folder), set(), Counter())[0]


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return _visible(folder)
    except FileNotFoundError:
        raise ConfigError(f"data.root {folder}: is not there; it is to hold {ACCEPTED}") from None
    except OSError as error:
        raise _unreadable(folder, error) from None


def _folders_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _listed(folder) if _is(entry.is_dir))


def _classes(root: Path, parts: Sequence[str]) -> tuple[str, ...]:
    training, *tests = (_folders_in(root / name) for name in parts)
    for test in tests:
        if odd := sorted({*training} ^ {*test}):
            raise ConfigError(
                f"data.root {root}: in only one of {' and '.join(parts)}: {shortened(odd)}; both "
                "must hold the same classes"
            )
    if len(training) < 2:
        found = f"one class ({training[0]})" if training else "no class"
        raise ConfigError(
            f"data.root {root}: {found} in {root / parts[0]}, and training needs at least 2; each "
            f"class is a folder in {' and '.join(parts)} that holds images, none of them hidden"
        )
    return tuple(training)


def _part(root: Path, part: str, classes: Sequence[str]) -> ImageList:
    folder = root / part
    files: list[ImageFile] = []
    odd: list[ImageFile] = []
    empty: list[str] = []
    others: Counter[str] = Counter()
    # a link from a class to a folder that holds it would bring in all the other classes
    above = {_identity(path) for path in (folder, *folder.resolve().parents)}
    start = len(os.path.join(folder, ""))
    for label, name in enumerate(classes):
        images, not_files = _images_below(os.path.join(folder, name), set(above), others)
        files += [ImageFile(path[start:], label) for path in images]
        odd += [ImageFile(path[start:], label) for path in not_files]
        if not images and not not_files:
            empty.append(name)
    if empty:
        there = f" (files not read end in {_counted(others)})" if others else ""
        raise ConfigError(
            f"data.root: {folder} has classes without an image: {shortened(empty)}{there}; put "
            f"images ({' '.join(IMAGE_SUFFIXES)}) into these folders, or remove them"
        )
    beside = sum(_is_called_image(entry) and _is(entry.is_file) for entry in _visible(folder))
    found = tuple(files), tuple(odd), tuple(others.items()), beside
    return ImageList(part, str(folder), *found)


def _counted(others: Counter[str]) -> str:
    most = others.most_common(_MOST_ENDS)
    more = f" and {len(others) - len(most)} more" if len(others) > len(most) else ""
    return ", ".join(f"{cut(end, 20)} ({files})" for end, files in most) + more


def _images_below(
    top: str, seen: set[tuple[int, int]], others: Counter[str]
) -> tuple[list[str], list[str]]:
    """Images of a class, and what only has the name of one; the ends of other files' names are
    counted in `others`.

    Each folder counts once, however many links lead to it: so there are no loops, and no more
    folders than the disk has.
    """
    found: list[tuple[str, list[str]]] = []
    odd: list[str] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            identity = _identity(folder)
            if identity in seen:
                continue
            seen.add(identity)
            entries = sorted(_visible(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(folder, error) from None
        inner, images = list[str](), list[str]()
        for entry in entries:
            if _is(entry.is_dir):
                inner.append(entry.path)
            elif not _is_called_image(entry):
                others[os.path.splitext(entry.name)[1].lower() or "nothing"] += 1
            else:
                (images if _is(entry.is_file) else odd).append(entry.path)
        waiting += reversed(inner)
        found.append((folder, images))
    # torchvision's order: by the folders' whole paths, not as a walk meets them
    return [path for _, paths in sorted(found) for path in paths], odd


def _is_called_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES)


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name not in _SYSTEMS_OWN
        ]


def _is(what: Callable[[], bool]) -> bool:
    try:
        return what()
    except OSError:  # a link that leads to itself, or to a folder that may not be read
        return False


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _unreadable(folder: str | Path, error: OSError) -> ConfigError:
    return ConfigError(f"data.root: {folder}: can't be read: {error.strerror or error}")


def shortened(names: Iterable[str], most: int = 8) -> str:
    """Names in a line, the first `most` of them; what would break it is escaped."""
    known = list(names)
    more = [f"… ({len(known)} in all)"] if len(known) > most else []
    return ", ".join([*(cut(printable(name), 40) for name in known[:most]), *more])
