"""How members of a team add up what each has found of a batch, in order of member.

    member 0   found ─┐
    member 1   found ─┼─▶ ((0 + 1) + 2) + …  on every member, so all make the same step
    member 2   found ─┘

What they see of each other while they compute (`whole_batch.py`) is not added: each gets what all
have found, in that order.

Within one process members take turns (`Turns`); between processes a thread of each exchanges over
links (`worker/team_links.py`). Both add by the same function.
"""

from __future__ import annotations

from threading import Condition
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from pipeline.errors import CalledOffError
from pipeline.seeding import draws_kept

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Found: TypeAlias = Sequence[Tensor]
    """Of one member, for the blocks of a group: as many tensors, of the same types, shapes and
    strides, as every other member's."""
    Key: TypeAlias = tuple[int, int]
    """Training batch and last block of the group."""
    GatherPlace: TypeAlias = tuple[int, int, int]
    """Batch, last block of the group, and which of the gatherings there, counted from 1."""


class Exchange(Protocol):
    """A member's end of what a team tells each other of every batch."""

    @property
    def member(self) -> int:
        """Which one this is, counted from 0."""

    @property
    def members(self) -> int:
        """How many there are."""

    def give(self, key: Key, found: Found) -> None:
        """Hand over what this member found. It is not changed any more; does not wait."""

    def total(self, key: Key) -> list[Tensor]:
        """The sum, once all have given theirs: to be read only, and only until this member gives
        for the same block again. It is asked for once, in the order in which it was given. Raises
        CalledOffError, TimedOutError."""

    def gather(self, place: GatherPlace, found: Found, among: int) -> list[Found]:
        """What each of the first `among` members found there, this one's among them, in order of
        member; waits for them. All of them call this at the same places in the same order; nothing
        is changed any more, by anyone. Raises CalledOffError, TimedOutError."""


def added(found: Sequence[Found], into: Sequence[Tensor]) -> None:
    """What members found, added up in their order; `into`: memory for the sum."""
    first, second, *others = found
    for one, other, total in zip(first, second, into, strict=True):
        torch.add(one, other, out=total)
    for more in others:
        torch._foreach_add_(list(into), list(more))


class Turns:
    """Members that train in one process, each in a thread of its own, one at a time: whoever waits
    for the others lets them go on.

    `with turns:` around whatever a member does.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self._turn, self._called_off = Condition(), False
        self._given: dict[Key, dict[int, Found]] = {}
        self._totals: dict[Key, tuple[list[Tensor], set[int]]] = {}
        self._gathered: dict[GatherPlace, tuple[dict[int, Found], set[int]]] = {}

    def __enter__(self) -> None:
        self._turn.acquire()

    def __exit__(self, *error: object) -> None:
        self._turn.release()

    def exchange(self, member: int) -> Exchange:
        """The end that this member of the team uses."""
        return _TurnsExchange(self, member)

    def call_off(self) -> None:
        """A member has failed: nobody waits any more."""
        with self._turn:
            self._called_off = True
            self._turn.notify_all()

    def give(self, key: Key, member: int, found: Found) -> None:
        """As `Exchange.give`."""
        self._given.setdefault(key, {})[member] = found
        self._turn.notify_all()

    def total(self, key: Key, member: int) -> list[Tensor]:
        """As `Exchange.total`."""
        given = self._given[key]
        self._await(given, self.members)
        if key not in self._totals:
            memory = list(map(torch.empty_like, given[0]))
            added([given[one] for one in range(self.members)], memory)
            self._totals[key] = memory, set()
        total, taken = self._totals[key]
        taken.add(member)
        if len(taken) == self.members:  # nobody else will read it
            del self._totals[key], self._given[key]
        return total

    def gather(self, place: GatherPlace, member: int, found: Found, among: int) -> list[Found]:
        """As `Exchange.gather`."""
        given, taken = self._gathered.setdefault(place, ({}, set()))
        given[member] = found
        self._turn.notify_all()
        with draws_kept(found[0].device):  # whoever waits may be in the midst of a user's module
            self._await(given, among)
        taken.add(member)
        if len(taken) == among:
            del self._gathered[place]
        return [given[one] for one in range(among)]

    def _await(self, given: Mapping[int, Found], members: int) -> None:
        self._turn.wait_for(lambda: len(given) == members or self._called_off)
        if len(given) < members:
            raise CalledOffError("another member has failed")


class _TurnsExchange:
    def __init__(self, turns: Turns, member: int) -> None:
        self._turns, self.member, self.members = turns, member, turns.members

    def give(self, key: Key, found: Found) -> None:
        self._turns.give(key, self.member, found)

    def total(self, key: Key) -> list[Tensor]:
        return self._turns.total(key, self.member)

    def gather(self, place: GatherPlace, found: Found, among: int) -> list[Found]:
        return self._turns.gather(place, self.member, found, among)
