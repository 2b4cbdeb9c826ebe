"""Which images a run trains on: said at its start, kept with it, and compared where it resumes.

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


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The images of one part: how many of each class, and the SHA-256 of what they hold."""

    per_class: tuple[int, ...]
    digest: str

    @property
    def images(self) -> int:
        return sum(self.per_class)


@dataclass(frozen=True, slots=True)
class DataRecord:
    """The images of a run. `classes`: their names, empty where they are numbers."""

    name: str
    classes: tuple[str, ...]
    training: PartRecord
    test: PartRecord

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

    def summary(self) -> str:
        """Images and classes in a line."""
        classes = len(self.training.per_class)
        names = f": {shortened(self.classes)}" if self.classes else ""
        return (
            f"data {self.name}: {self.training.images} training and {self.test.images} test "
            f"images of {classes} classes{names}"
        )

    def gaps(self) -> list[str]:
        """A line for each part in which classes have no image."""
        parts = (("training", self.training), ("test", self.test))
        return [
            f"data {self.name}: {len(empty)} of {len(record.per_class)} classes have no {part} "
            f"image: {shortened(self.names(empty))}"
            for part, record in parts
            if (empty := [k for k, images in enumerate(record.per_class) if not images])
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
    training, test = (
        PartRecord(tuple(tree[part]["per_class"]), _text(tree[part]["digest"]))
        for part in ("training", "test")
    )
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in training.per_class + test.per_class):
        raise ValueError("a number of images is no count")
    counts = {len(training.per_class), len(test.per_class), len(classes) or len(test.per_class)}
    if len(counts) != 1:
        raise ValueError(f"{sorted(counts)} classes")
    return DataRecord(_text(tree["name"]), classes, training, test)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def differences(before: DataRecord, now: DataRecord) -> list[str]:
    """What is other than it was, in words; empty where nothing is."""
    found = []
    if before.classes != now.classes:
        found.append(f"classes {shortened(now.classes)} instead of {shortened(before.classes)}")
    for part in ("training", "test"):
        old: PartRecord = getattr(before, part)
        new: PartRecord = getattr(now, part)
        if old.images != new.images:
            found.append(f"{new.images} {part} images instead of {old.images}")
        elif old != new:
            found.append(f"other {part} images")
    return found
