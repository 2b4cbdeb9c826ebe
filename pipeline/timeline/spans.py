"""Records what one thread does: when it began with what, for which batch or marker.

    wait for input | copy | compute | wait for room | send | learn | wait for input | …

Each span ends where the next one begins, so spans neither overlap nor leave anything out.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from pipeline.schedule.items import PassedBatch, TrainBatch
from pipeline.schedule.reports import DOINGS, MOST_SPANS, Timeline
from pipeline.timeline.clocks import clock_reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.schedule.items import Item

MOST_BATCHES = 1000
"""That can be asked for; a stage records about a dozen spans of each."""
ON_DEVICE = ("compute", "learn")
"""What a CUDA device does after it was told; the host's time for it says little."""
_CODES = {doing: code for code, doing in enumerate(DOINGS)}


class DeviceClock(Protocol):
    """Says when a device came to marks in the order of its work."""

    def mark(self) -> None:
        """At the end of what it was given so far."""

    def reached_s(self) -> tuple[float, ...]:
        """When it came to each mark, by this process's monotonic clock; waits for the last one.
        Empty where the device has failed."""


class SpanRecorder:
    """Records one thread, from its first item until the one after batch `until`.

    Off without `until`, and once what it has was taken: then a call is a look at a flag.

    Args:
        device: where ON_DEVICE is done by another clock than the host's.
        most: spans; it stops when it is full.
    """

    def __init__(
        self,
        until: int = 0,
        *,
        device: DeviceClock | None = None,
        clock: Callable[[], float] = perf_counter,
        most: int = MOST_SPANS,
    ) -> None:
        self._until, self._device, self._clock, self._most = until, device, clock, most
        self._is_on = self._is_untaken = until > 0
        self._is_full = False
        self._items: list[Item] = []
        self._spans: list[tuple[float, str, int]] = []
        """When it began, with what, for which item."""
        self._marked: list[int] = []
        """Spans whose beginning is marked on the device, too."""
        self._doing, self._ended_s = "idle", 0.0

    @property
    def is_on(self) -> bool:
        """Whether spans are recorded at the moment."""
        return self._is_on

    def now(self, doing: str) -> None:
        """From here on the thread does this, one of `DOINGS`, for the item that was taken up last;
        it waits for `input` of the next one."""
        if self._is_on and doing != self._doing:
            self._add(doing, len(self._items) - (doing != "input"))

    def take_up(self, item: Item, doing: str) -> None:
        """From here on the thread does this for an item."""
        if self._is_on:
            self._items.append(item)
            self._add(doing, len(self._items) - 1)

    def is_due(self, item: Item | None) -> bool:
        """Whether what was recorded is to be taken before this item is, None: at the end."""
        if item is None or not self._is_on:
            return self._is_untaken
        return isinstance(item, TrainBatch | PassedBatch) and item.batch_id > self._until

    def stop(self) -> None:
        """Record nothing more."""
        if self._is_on:
            self._mark("idle", len(self._spans))
            self._is_on, self._ended_s = False, self._clock()

    def taken(self) -> Timeline:
        """All that was recorded, which ends the record; may wait for the device. From any thread
        once it has stopped."""
        self.stop()
        self._is_untaken = False
        spans, items, ended_s = list(self._spans), tuple(self._items), self._ended_s
        if spans and spans[-1][2] == len(items):  # a wait for what is not recorded
            ended_s = spans.pop()[0]
        items = items[: spans[-1][2] + 1 if spans else 0]  # it was full before that of the last
        reached_s = self._device.reached_s() if self._device else ()
        return Timeline(
            items,
            tuple(began_s for began_s, _, _ in spans),
            tuple(_CODES[doing] for _, doing, _ in spans),
            tuple(item for _, _, item in spans),
            ended_s,
            clock_reading(),
            tuple(self._marked) if reached_s else (),
            reached_s,
            self._is_full,
        )

    def _add(self, doing: str, item: int) -> None:
        if len(self._spans) == self._most:
            self._is_full = True
            self.stop()
            return
        self._mark(doing, len(self._spans))
        self._spans.append((self._clock(), doing, item))

    def _mark(self, doing: str, span: int) -> None:
        """On the device, where a span begins or ends there."""
        if self._device is not None and (doing in ON_DEVICE or self._doing in ON_DEVICE):
            self._device.mark()
            self._marked.append(span)
        self._doing = doing
