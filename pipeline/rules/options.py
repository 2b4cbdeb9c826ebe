"""Checks of what a rule's options may be: whatever YAML or Python hands over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.rules.rule import Place


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    """
    Raises:
        ValueError: for what is none of `choices`.
    """
    if value not in choices:
        raise ValueError(f"{option}: {value!r} is not allowed: use one of {', '.join(choices)}")


def check_number(
    option: str, value: Any, *, above: float | None = None, least: float = -1e9, most: float = 1e9
) -> None:
    """
    Raises:
        ValueError: for what is no number, not over `above`, or out of bounds, as NaN is of all.
    """
    low, start = ("from", least) if above is None else ("above", above)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or (above is not None and value <= above):
        raise ValueError(
            f"{option}: {value!r} is not allowed: use a number {low} {start:g} to {most:g}"
        )


def check_whole(option: str, value: Any, *, least: int = 1, most: int = 1 << 20) -> None:
    """
    Raises:
        ValueError: for what is no whole number, or out of bounds.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(
            f"{option}: {value!r} is not allowed: use a whole number from {least:,} to {most:,}"
        )


def check_classes(place: Place) -> None:
    """
    Raises:
        ValueError: where examples don't have one of several classes each.
    """
    if place.classes < 2 or place.target_shape:
        raise ValueError(
            "the rule learns from one class for each example, which the data don't have"
        )
