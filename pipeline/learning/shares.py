"""Which examples of a batch a member of a team learns from.

Shares are contiguous, in order of member, and differ by one example at most:

    10 examples, 3 members     0 1 2 3 | 4 5 6 | 7 8 9
     5 examples, 3 members     0 1 2   | 3 4   |            one example has no variance, and is
     1 example                 0       |       |            like no other: none is left alone
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 2
"""Examples of a share, if it has any, of a batch that has as many."""


@dataclass(frozen=True, slots=True)
class Share:
    """Examples `first` to `first + count` of a batch of `of`."""

    first: int
    count: int
    of: int

    @property
    def rows(self) -> slice:
        """Where they are."""
        return slice(self.first, self.first + self.count)

    @property
    def weight(self) -> float:
        """What a mean over them counts for in that over the batch."""
        return self.count / self.of


def share_of(examples: int, member: int, members: int) -> Share:
    """The share of one member; it may have no examples."""
    parts = max(1, min(members, examples // LEAST))
    if member >= parts:
        return Share(examples, 0, examples)
    each, longer = divmod(examples, parts)
    return Share(member * each + min(member, longer), each + (member < longer), examples)
