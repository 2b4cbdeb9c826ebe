"""Clocks that tests set: of this process, and of a device that is only handed its work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """In seconds; goes on only when it is told."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Device:
    """What it was given so far ends at `given`; it has come to `reached` (seconds)."""

    given: float = 0.0
    reached: float = 0.0

    def mark(self) -> Moment:
        return Moment(self, self.given)


@dataclass
class Moment:
    """A mark in the order of a device's work."""

    device: Device
    at: float

    def query(self) -> bool:
        return self.device.reached >= self.at

    def elapsed_time(self, later: Moment) -> float:
        return 1000 * (later.at - self.at)
