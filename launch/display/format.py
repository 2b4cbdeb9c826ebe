"""How numbers, sizes and times are said in words, and tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

NOTHING = "–"
"""Stands where there is no number."""


def number_text(value: float | None, form: str, below: float = 1e4) -> str:
    """`value` in `form`, in four digits from `below` on, a dash where it is not known."""
    if value is None:
        return NOTHING
    return format(value, form if abs(value) < below else ".4g")


def class_text(name: str, most: int = 16) -> str:
    """The name of a class for a table; of a long one beginning and end, by which it can be told
    from others."""
    shown = printable(name)
    end = (most - 1) // 2
    return shown if len(shown) <= most else f"{shown[: most - 1 - end]}…{shown[-end:]}"


def lr_text(value: float | None) -> str:
    """As 5e-04 or 1.25e-04: at most three decimals, and no zeros at their end."""
    if value is None:
        return NOTHING
    mantissa, sign, exponent = f"{value:.3e}".partition("e")
    return mantissa.rstrip("0").rstrip(".") + sign + exponent if sign else mantissa


def counted(number: int, things: str) -> str:
    """As "2 epochs", or "1 epoch"; `things`: in the plural, which ends in s."""
    return f"{number} {things if number != 1 else things[:-1]}"


def count_text(number: int) -> str:
    """As 512, 1.33 M or 21.3 G: three digits."""
    return _three_digits(number, 1000, ("", "k", "M", "G"))


def size_text(nbytes: float) -> str:
    """As 512 B or 1.81 GiB: three digits."""
    return _three_digits(nbytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def markdown(
    columns: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[str] = ()
) -> str:
    """A table; the columns named in `texts` are aligned to the left, numbers to the right."""
    rule = ["---" if column in texts else "---:" for column in columns]
    escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in (columns, rule, *rows))
    lines = [f"| {' | '.join(cells)} |" for cells in escaped]
    return "\n".join(lines) + "\n"


def _three_digits(number: float, step: int, units: Sequence[str]) -> str:
    exponent = 0
    while number >= step and exponent < len(units) - 1:
        number, exponent = number / step, exponent + 1
    digits = f"{number:.0f}" if number >= 100 else f"{number:.3g}"
    return f"{digits} {units[exponent]}".rstrip()
