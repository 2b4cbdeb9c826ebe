"""How results are told: numbers beside what was asked for, and Markdown tables."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Result: TypeAlias = "Mapping[str, Any]"
"""What a kept file holds."""


class Finding(NamedTuple):
    """A number of a result: what it is, what was asked for, if anything, and whether it was met."""

    what: str
    found: str
    asked: str = ""
    met: bool = True


class Report(NamedTuple):
    """How the results of one command are told; a `table` where there is more than findings."""

    title: str
    words: str
    findings: Callable[[Result], list[Finding]]
    table: Callable[[Result], str] | None = None

    def show(self, result: Result, path: Path) -> None:
        """Print what was found, and where it is kept."""
        if self.table:
            print(self.table(result))
        for what, found, asked, met in self.findings(result):
            print(f"{what}: {found}" + f", asked {asked}: {'yes' if met else 'NO'}" * bool(asked))
        print(f"kept in {path}; python -m benchmarks.results writes RESULTS.md anew")


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, of how many, from the least to the largest."""
    low, high = min(values), max(values)
    return f"{median(values):.3f}{unit} (of {len(values)}, {low:.3f} to {high:.3f})"
