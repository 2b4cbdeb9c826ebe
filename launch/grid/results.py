"""What the runs of a sweep gave: of each, and mean and standard deviation over the seeds.

Only a finished run counts; beside every mean stands how many of how many do.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from launch.run_directory import epoch_lines
from pipeline.run.metrics import last_phase, tested

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from launch.grid.combinations import Combination

Status: TypeAlias = Literal["finished", "failed", "interrupted", "unfinished", "not run"]


@dataclass(frozen=True, slots=True)
class Result:
    """Of a finished run: error in percent and loss of its last test and of the best one, None where
    there was none; the median of its epochs' images/s; seconds of training, without tests."""

    epochs: int
    last_error_pct: float | None
    best_error_pct: float | None
    last_loss: float | None
    best_loss: float | None
    images_per_s: float | None
    seconds: float


class Outcome(NamedTuple):
    """One run of a sweep. `result`: of a finished one; `why`: it failed."""

    run: Combination
    status: Status
    result: Result | None = None
    why: str = ""


class Spread(NamedTuple):
    """Mean and sample standard deviation of `n` numbers; None where these are too few."""

    mean: float | None
    sd: float | None
    n: int


class Row(NamedTuple):
    """All seeds of one combination: `n` of `of` runs are finished."""

    settings: tuple[tuple[str, str], ...]
    n: int
    of: int
    spreads: dict[str, Spread]
    """By the name of a number of `Result`."""

    @property
    def is_whole(self) -> bool:
        """Whether every seed counts."""
        return self.n == self.of


NUMBERS = tuple(name for name in Result.__dataclass_fields__ if name != "epochs")


def result_in(run_dir: Path) -> Result | None:
    """What the finished run in a folder gave; None where its lines can't be read."""
    lines = epoch_lines(run_dir)
    if not lines:
        return None
    tests = [test for line in last_phase(lines) if (test := tested(line)[1])]
    last = tested(lines[-1])[1]
    errors, losses = ([test.get(key) for test in tests] for key in ("error_pct", "loss"))
    speeds = [line["images_per_s"] for line in lines if line.get("images_per_s")]
    return Result(
        epochs=lines[-1]["epoch"],
        last_error_pct=last.get("error_pct"),
        best_error_pct=_least(errors),
        last_loss=last.get("loss"),
        best_loss=_least(losses),
        images_per_s=round(median(speeds), 1) if speeds else None,
        seconds=round(sum(line.get("seconds") or 0.0 for line in lines), 3),
    )


def in_words(outcome: Outcome) -> str:
    """For a line about one run."""
    result = outcome.result
    if result is None:
        return f"{outcome.status}{f': {outcome.why}' if outcome.why else ''}"
    pairs = (
        ("error", ".2f", " %", result.last_error_pct, result.best_error_pct),
        ("loss", ".4f", "", result.last_loss, result.best_loss),
    )
    for what, form, unit, last, best in pairs:
        if last is not None and best is not None:
            return f"last {what} {last:{form}}{unit}, best {best:{form}}{unit}"
    return "finished, and not tested"


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each combination, in the order in which they are first met."""
    by_settings: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        by_settings.setdefault(outcome.run.settings, []).append(outcome)
    return [_row(settings, own) for settings, own in by_settings.items()]


def mean_and_sd(values: Iterable[float | None]) -> Spread:
    """Of those that are numbers."""
    found = [value for value in values if value is not None]
    if not found:
        return Spread(None, None, 0)
    return Spread(mean(found), stdev(found) if len(found) > 1 else None, len(found))


def _row(settings: tuple[tuple[str, str], ...], outcomes: Sequence[Outcome]) -> Row:
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    spreads = {name: mean_and_sd(getattr(one, name) for one in results) for name in NUMBERS}
    return Row(settings, len(results), len(outcomes), spreads)


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
