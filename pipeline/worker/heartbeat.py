"""What a worker is doing, for the thread that tells it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Activity:
    """What the worker is doing; written by its main thread, read by the heartbeat's.

    `phase`: starting; waiting (for input); working; blocked (the next stage has no room, or
    what was sent last has not arrived).
    """

    handled: int = 0
    batch_id: int = 0
    phase: str = "starting"

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Be in `phase` for a while."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before
