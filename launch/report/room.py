"""How much each run may take of a page, so that all of it stays below 3 MB."""

from __future__ import annotations

from dataclasses import dataclass

MOST_RUNS = 8
"""On one page: it has so many colours."""


@dataclass(frozen=True, slots=True)
class Room:
    """Of one run: how many blocks have pictures of similarities, how many wrong images are shown,
    points of a curve, and bars of a timeline."""

    blocks: int
    images: int
    points: int
    bars: int


def room_for(runs: int) -> Room:
    """For each of so many runs."""
    return Room(
        blocks=min(8, max(2, 16 // runs)),
        images=min(24, max(6, 48 // runs)),
        points=max(60, 300 // runs),
        bars=max(200, 1200 // runs),
    )
