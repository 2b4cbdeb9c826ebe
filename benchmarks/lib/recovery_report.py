"""What `benchmarks.recovery` found, for people, and whether it is enough."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ASKED_RATIO = 0.97
ASKED_S = 3.0


@dataclass(frozen=True, slots=True)
class Kill:
    """Seconds from the kill of a stage's worker until it was noticed, all were back, and had
    trained; `said_s` is what the run itself says that they took to be back."""

    stage: int
    said_s: float
    noticed_s: float
    back_s: float
    trained_s: float


def show_kills(found: Sequence[Kill]) -> None:
    """All clocks, and whether they stopped in time."""
    for name in ("said_s", "noticed_s", "back_s", "trained_s"):
        _show(f"kill: {name}", [getattr(kill, name) for kill in found])
    _answer(f"trained again within {ASKED_S:g} s", max(kill.trained_s for kill in found) <= ASKED_S)


def show_speeds(speeds: Mapping[str, Sequence[float]]) -> None:
    """The ratios, and whether the first are what is asked for."""
    for name, values in speeds.items():
        _show(f"speed, snapshots {name}", values)
    usual, values = next(iter(speeds.items()))
    _answer(f"{usual}: at least {ASKED_RATIO}", median(values) >= ASKED_RATIO)


def _show(name: str, values: Sequence[float]) -> None:
    print(f"{name:32} median {median(values):7.3f}   {min(values):.3f} … {max(values):.3f}")


def _answer(asked: str, fulfilled: bool) -> None:
    print(f"{asked}: {'yes' if fulfilled else 'NO'}", flush=True)
