"""Options of a rule: checks of whatever YAML or Python hands over."""

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


def between(option: str, ends: Any, place: Place) -> float:
    """What an option of two numbers, one for the first block and one for the last, is at a place:
    on the line between them.

    Raises:
        ValueError: for what is no two numbers from 0 on.
    """
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise ValueError(
            f"{option}: {ends!r} is not allowed: use two numbers, first and last block"
        )
    for end in ends:
        check_number(option, end, least=0)
    first, last = map(float, ends)
    return first + (last - first) * place.nth / max(1, place.rules - 1)


def check_classes(place: Place) -> None:
    """
    Raises:
        ValueError: where examples don't have one of several classes each.
    """
    if place.classes < 2 or place.target_shape:
        raise ValueError(
            "the rule learns from one class for each example, which the data don't have"
        )
