"""How results are told: numbers beside what was asked for, and Markdown tables."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

Result: TypeAlias = "Mapping[str, Any]"
"""What a kept file holds."""
Thing = TypeVar("Thing")


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


def range_text(values: Sequence[float], unit: str = "") -> str:
    """The median, of how many, from the least to the largest."""
    low, high = min(values), max(values)
    return f"{median(values):.3f}{unit} (of {len(values)}, {low:.3f} to {high:.3f})"


def in_turn(ways: Mapping[str, Thing], number: int) -> list[tuple[str, Thing]]:
    """In the order of a round, the first of which is 1: every second one goes backwards, so that
    what comes first, or warms a machine up, is not always the same."""
    found = list(ways.items())
    return found if number % 2 else found[::-1]


def speeds(laps: Iterable[Mapping[str, Any]]) -> list[float]:
    """Images/s of the laps that did not fail."""
    return [one["images_per_s"] for one in laps if "failed" not in one]


def ratio_findings(
    result: Result, way: str, other: str, at_least: float, named: str = "{}"
) -> list[Finding]:
    """By network, how fast one way is beside another, of rounds in which neither failed.

    Args:
        named: what to call a way.
    """
    found = []
    for network, ways in result["networks"].items():
        ratios = [
            one["images_per_s"] / beside["images_per_s"]
            for one, beside in zip(ways[way], ways[other], strict=True)
            if not {"failed"} & {*one, *beside}
        ]
        if ratios:
            met = median(ratios) >= at_least
            what = f"{network}: {named.format(way)} to {named.format(other)}"
            found.append(Finding(what, range_text(ratios, " ×"), f"≥ {at_least}", met))
    return found
