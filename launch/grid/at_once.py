"""Runs of a sweep at once: each a pipeline-launch in a process of its own, so many at a time.

Their only words are why they failed. The first signal ends all of them, with checkpoints.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from launch.child_commands import carry_out
from launch.engines.interrupts import INTERRUPTED
from launch.launcher import placement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from launch.child_commands import Ended
    from launch.grid.combinations import Combination
    from launch.grid.sweeps import Planned, Sweep


def train_at_once(
    sweep: Sweep,
    runs: Sequence[Planned],
    folder: Path,
    jobs: int,
    ended: Callable[[Planned, int, str], None],
) -> bool:
    """Train runs in the sweep's folder; whether none was interrupted.

    Args:
        ended: is told of each run that has ended its exit status, and why it failed.

    Raises:
        KeyboardInterrupt: where it was interrupted twice.
    """
    by_run, left = {one.run: one for one in runs}, deque(runs)

    def next_one(others: bool) -> tuple[Combination, list[str]] | None:
        if not left:
            return None
        one = left.popleft()
        return one.run, ["pipeline-launch", "launch.cli", *_words(one, sweep, folder)]

    def told(one: Ended[Combination]) -> None:
        status = INTERRUPTED if one.was_interrupted else one.status
        ended(by_run[one.task], status, one.why)

    return carry_out(next_one, told, jobs)


def _words(one: Planned, sweep: Sweep, folder: Path) -> list[str]:
    words = ["--run-dir", str(folder / one.run.name), "--view", "quiet"]
    words += ["--resume"] if one.is_begun else []
    words += placement(one.options)
    for override in one.options.overrides:
        words += ["--set", override]
    return [*words, str(sweep.config)]
