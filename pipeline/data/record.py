"""Which examples a run trains on: said at its start, kept with it, and compared where it resumes.

Of array data sets the digest is that of all bytes; of image folders, of all paths and sizes, and
of the beginning, middle and end of each file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pipeline.data.image_list import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGITS = 12
_OWN = ("factory", "npz")
"""Names of data sets that need not be images."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The examples of one part: how many targets of each class, empty where targets are numbers;
    the SHA-256 of what they hold; and how many there are."""

    per_class: tuple[int, ...]
    digest: str
    images: int


@dataclass(frozen=True, slots=True)
class DataRecord:
    """The examples of a run. `classes`: their names, empty where they are numbers. `validates`:
    whether `test` is a share of the training set, kept from training."""

    name: str
    classes: tuple[str, ...]
    training: PartRecord
    test: PartRecord
    validates: bool = False

    @property
    def parts(self) -> tuple[tuple[str, PartRecord], ...]:
        """The parts, by what people call them."""
        return (
            ("training", self.training),
            ("validation" if self.validates else "test", self.test),
        )

    @property
    def noun(self) -> str:
        """What its examples are, in the plural."""
        return "examples" if self.name in _OWN else "images"

    @property
    def digest(self) -> str:
        """Short, for people: what `data.accept` takes."""
        text = json.dumps([self.classes, self.training.digest, self.test.digest])
        return f"sha256:{sha256(text.encode()).hexdigest()[:_DIGITS]}"

    @property
    def tree(self) -> dict[str, Any]:
        """Plain JSON values; `record_of_tree` reads them."""
        counts = {"training_images": self.training.images, "test_images": self.test.images}
        return {**counts, "digest": self.digest, **asdict(self)}

    def summary(self, title: str) -> str:
        """Examples and classes in a line; `title`: what people call the data."""
        counts = " and ".join(f"{part.images} {name}" for name, part in self.parts if part.images)
        classes = len(self.training.per_class)
        names = f": {shortened(self.classes)}" if self.classes else ""
        kinds = f" of {classes} classes{names}" if classes else ""
        return f"data {title}: {counts} {self.noun}{kinds}"

    def gaps(self, title: str) -> list[str]:
        """A line for each part in which classes have no example."""
        return [
            f"data {title}: {len(empty)} of {len(record.per_class)} classes have no {part} "
            f"{self.noun[:-1]}: {shortened(self.names(empty))}"
            for part, record in self.parts
            if record.images
            and (empty := [k for k, images in enumerate(record.per_class) if not images])
        ]

    def names(self, labels: Sequence[int]) -> list[str]:
        """Of classes, by their numbers."""
        return [self.classes[label] if self.classes else str(label) for label in labels]


def record_of_tree(tree: Any) -> DataRecord:
    """The record whose `DataRecord.tree` this is.

    Raises:
        ValueError, LookupError, TypeError: for anything else.
    """
    classes = tuple(_text(name) for name in tree["classes"])
    training, test = (_part_of_tree(tree[part]) for part in ("training", "test"))
    counts = {len(training.per_class), len(test.per_class), len(classes) or len(test.per_class)}
    if len(counts) != 1:
        raise ValueError(f"{sorted(counts)} classes")
    validates = tree.get("validates", False) is True
    return DataRecord(_text(tree["name"]), classes, training, test, validates)


def _part_of_tree(tree: Any) -> PartRecord:
    per_class, digest = tuple(tree["per_class"]), _text(tree["digest"])
    # earlier versions knew only data with one class for each image, and kept no total
    images = tree["images"] if "images" in tree else sum(per_class)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*per_class, images)):
        raise ValueError("a number of images is no count")
    return PartRecord(per_class, digest, images)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def differences(before: DataRecord, now: DataRecord) -> list[str]:
    """What is other than it was, in words; empty where nothing is."""
    found = []
    if before.classes != now.classes:
        found.append(f"classes {shortened(now.classes)} instead of {shortened(before.classes)}")
    if before.validates != now.validates:
        kinds = [record.parts[1][0] for record in (now, before)]
        found.append(f"tests on {kinds[0]} {now.noun} instead of {kinds[1]} {before.noun}")
    for (_, old), (part, new) in zip(before.parts, now.parts, strict=True):
        if old.images != new.images:
            found.append(f"{new.images} {part} {now.noun} instead of {old.images}")
        elif old != new:
            found.append(f"other {part} {now.noun}")
    return found
