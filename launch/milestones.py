"""Whether milestones fit the epochs of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config.recipe import ScheduleConfig

_PAPERS_SHARES = (0.5, 0.75, 0.89, 0.94)
"""Of the epochs, at which the learning rate drops (section 4 of the paper)."""


def misplaced(schedule: ScheduleConfig, written_for: int | None = None) -> list[str]:
    """What a user should hear of the milestones, if anything, with milestones that fit.

    Args:
        written_for: the epochs that stand beside them in the config, where only these were changed.
    """
    epochs, given = schedule.epochs, list(schedule.milestones)
    said = ", and ".join(_oddities(schedule, written_for))
    if not said:
        return []
    if written_for is None:
        shares, like = _PAPERS_SHARES[: len(given)], "as in the paper"
    else:
        shares = tuple(milestone / written_for for milestone in schedule.milestone_epochs)
        like = "as there"
    placed = (round(share * epochs) for share in shares)
    wanted = sorted({milestone for milestone in placed if 0 < milestone < epochs})
    return [
        f"schedule.milestones {given} don't fit schedule.epochs {epochs}: {said}; at the same "
        f"shares of the run {like}: --set 'schedule.milestones={wanted}'"
    ]


def _oddities(schedule: ScheduleConfig, written_for: int | None) -> Iterator[str]:
    """A milestone from the last epoch on has no effect. Where the last that has one is before half
    of the epochs, or the epochs were changed, the milestones were mostly forgotten; but not where
    they are shares of the run."""
    epochs, milestones, given = schedule.epochs, schedule.milestone_epochs, schedule.milestones
    are_epochs = not schedule.milestones_are_shares
    early = [milestone for milestone in milestones if milestone < epochs]
    if are_epochs and milestones and written_for not in (None, epochs):
        yield f"they stand in the config beside schedule.epochs {written_for}"
    if len(early) < len(milestones):
        late = ", ".join(map(str, given[len(early) :]))
        at = "after epoch" if are_epochs else "at"
        yield f"the run is over before the learning rate drops {at} {late}"
    if are_epochs and early and early[-1] < epochs // 2:
        yield f"after epoch {early[-1]} the rate stays the same for {epochs - early[-1]}"
