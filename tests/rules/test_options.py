"""What checks of options let through and refuse."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.rules.options import check_choice, check_classes, check_number, check_whole
from pipeline.rules.rule import Place


def test_what_is_allowed() -> None:
    check_choice("kind", "a", ("a", "b"))
    check_number("rate", 1, above=0)
    check_number("rate", 0.0, least=0)
    check_whole("width", 1)


@pytest.mark.parametrize("value", [0, -1.0, "1", None, True, float("nan"), float("inf"), 10**400])
def test_numbers_that_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^rate: .* is not allowed: use a number above 0 to 10$"):
        check_number("rate", value, above=0, most=10)


@pytest.mark.parametrize("value", [0, 1.0, "1", True, 1 << 21])
def test_whole_numbers_that_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"use a whole number from 1 to 1,048,576$"):
        check_whole("width", value)


@pytest.mark.parametrize("value", ["c", None, ["a"]])
def test_choices_that_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is not allowed: use one of a, b$"):
        check_choice("kind", value, ("a", "b"))


@pytest.mark.parametrize(("classes", "target_shape"), [(0, ()), (1, ()), (5, (7,))])
def test_targets_that_are_refused(classes: int, target_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one class for each example"):
        check_classes(Place(0, 1, (4,), (4,), classes, (4,), target_shape))
