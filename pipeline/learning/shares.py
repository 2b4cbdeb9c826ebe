"""Which examples of a batch a member of a team learns from.

Shares are contiguous, in order of member, and differ by one example at most:

    10 examples, 3 members     0 1 2 3 | 4 5 6 | 7 8 9
     5 examples, 3 members     0 1 2   | 3 4   |            one example has no variance, and is
     1 example                 0       |       |            like no other: none is left alone
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.schedule.items import Turn

LEAST = 2
"""Examples of a share, if it has any, of a batch that has as many."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a member's gradients count for in the sum. `whole`: the same for changes of whole
    numbers; `later`: how many batches of its round come after its own, None for a share: running
    statistics take batches one after the other, and a share's are a part of those of one batch."""

    weight: float
    whole: int
    later: int | None


NOTHING = Contribution(0.0, 0, 0)
"""Of a member without a batch or share."""


@dataclass(frozen=True, slots=True)
class Share:
    """Examples `first` to `first + count` of a batch of `of`."""

    first: int
    count: int
    of: int

    @property
    def rows(self) -> slice:
        """Where the examples of this share are in the whole batch."""
        return slice(self.first, self.first + self.count)

    @property
    def weight(self) -> float:
        """What a mean over them counts for in that over the batch."""
        return self.count / self.of

    @property
    def contribution(self) -> Contribution:
        """What is found of them, beside what others find of the rest."""
        # whole numbers, such as the count of batches, change as with the first member
        return Contribution(self.weight, int(self.first == 0), None)


def contribution_of(turn: Turn) -> Contribution:
    """Of the mean over the batches of a round."""
    return Contribution(1 / turn.size, 1, turn.size - 1 - turn.place)


def share_of(examples: int, member: int, members: int) -> Share:
    """The share of one member; it may have no examples."""
    parts = max(1, min(members, examples // LEAST))
    if member >= parts:
        return Share(examples, 0, examples)
    each, longer = divmod(examples, parts)
    return Share(member * each + min(member, longer), each + (member < longer), examples)
