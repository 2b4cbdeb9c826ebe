"""How much each run may take of a page, so that all of it stays below 3 MB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_BYTES = 3_000_000
MOST_RUNS = 10
"""On one page: it has so many colours."""
_STEPS = 6
"""How often it is tried with half the room."""

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True)
class Room:
    """Of one run: how many blocks have a curve, and pictures of similarities; filters; rows of a
    table by block or stage; wrong images; points of a curve; bars of a timeline; characters of a
    file."""

    curves: int
    blocks: int
    filters: int
    rows: int
    images: int
    points: int
    bars: int
    characters: int

    @property
    def text(self) -> str:
        """In a sentence, for who looks at the page."""
        return (
            f"So that this page stays below {MOST_BYTES / 1e6:g} MB, pictures of a run show at "
            f"most {self.curves} blocks as curves of {self.points} points, similarities of "
            f"{self.blocks}, {self.filters} filters, {self.images} images and {self.bars} bars, "
            f"and tables {self.rows} rows: fewer runs on a page have more."
        )


def rooms(runs: int) -> Iterator[Room]:
    """For each of so many runs, from as much as can be read to hardly anything."""
    for step in range(_STEPS + 1):
        of = runs << step
        yield Room(
            curves=max(4, 24 >> step),
            blocks=min(8, max(2 if step < _STEPS else 1, 16 // of)),
            filters=max(16, 64 >> step),
            rows=max(6, min(64, 512 // of)),
            images=min(24, max(6 >> step, 48 // of)),
            points=max(60 >> step, 300 // of, 8),
            bars=max(200 >> step, 1200 // of, 8),
            characters=max(1000, 100_000 // of),
        )


def evenly(things: Sequence[Thing], most: int) -> Sequence[Thing]:
    """At most so many: the last, the first, and as evenly as can be between."""
    if len(things) <= most:
        return things
    if most == 1:
        return things[-1:]
    places = dict.fromkeys(round(k * (len(things) - 1) / (most - 1)) for k in range(most))
    return [things[place] for place in places]
