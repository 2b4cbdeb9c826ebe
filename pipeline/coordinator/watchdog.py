"""Decides from heartbeats which stage has gone silent or is stuck. No clock, no sockets.

A stage that waits for a neighbour is not stuck. One that works on an item is, where its thread
has not used the processor for a while (it hangs), or where even a very slow step would be over: by
its own account, since of one that is cut off nobody knows what it does.
So is a run in which everybody waits and nothing moves, while the feed waits or has ended, for
longer than what may be on its way from one process to another can take: nobody sees it move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.protocol.messages import Heartbeat

SILENCE_S, SILENCE_BETWEEN_HOSTS_S = 10.0, 45.0
"""`runtime.heartbeat_timeout_s`, where it is left to us."""
SLOWEST_STEP = 20.0
"""A thread that does use the processor may take so many stall time-outs for one item."""
_USED_S = 1e-3


@dataclass(slots=True)
class _Stage:
    heard_at: float
    changed_at: float
    worked_at: float
    heartbeat: Heartbeat | None = None

    def take(self, heartbeat: Heartbeat, now: float) -> None:
        before, self.heartbeat = self.heartbeat, heartbeat
        moved = before is None or (before.handled, before.doing) != (
            heartbeat.handled,
            heartbeat.doing,
        )
        if moved:
            self.changed_at = now
        if before is None or moved or heartbeat.cpu_s > before.cpu_s + _USED_S:
            self.worked_at = now


class Watchdog:
    """What is known of every stage's pulse; times are seconds of one monotonic clock.

    `transfer_s`: the longest that what travels between processes may take.
    """

    def __init__(
        self, *, heartbeat_timeout_s: float, stall_timeout_s: float, transfer_s: float = 0.0
    ) -> None:
        self._heartbeat_timeout_s, self._stall_timeout_s = heartbeat_timeout_s, stall_timeout_s
        self._standstill_s = stall_timeout_s + transfer_s
        self._stages: dict[int, _Stage] = {}
        self._waits_since: float | None = None
        """When the feed last had something else to do."""

    def heard(self, stage: int, now: float, heartbeat: Heartbeat | None = None) -> None:
        """Any sign of life; a heartbeat also says what the stage is doing."""
        known = self._stages.setdefault(stage, _Stage(now, now, now))
        known.heard_at = now
        if heartbeat is not None:
            known.take(heartbeat, now)

    def skip(self, seconds: float, now: float) -> None:
        """Leave out the last `seconds`, in which the listener was not listening."""
        if self._waits_since is not None:
            self._waits_since = min(now, self._waits_since + seconds)
        for known in self._stages.values():
            known.heard_at = min(now, known.heard_at + seconds)
            known.changed_at = min(now, known.changed_at + seconds)
            known.worked_at = min(now, known.worked_at + seconds)

    def gone(self, stage: int) -> None:
        """The stage said goodbye: it is not watched any more."""
        self._stages.pop(stage, None)

    def forget(self) -> None:
        """The run begins again: whoever is heard from now on is watched anew."""
        self._stages.clear()

    def activity(self, stage: int) -> str:
        """What the stage last said it was doing."""
        known = self._stages.get(stage)
        return known.heartbeat.doing if known and known.heartbeat else "starting"

    def problem(
        self, now: float, *, feed_waits: bool, silent: Collection[int] = ()
    ) -> tuple[int, str] | None:
        """The stage that holds the run up, and why, or None.

        Args:
            feed_waits: for the first stage to take what was sent, or all has been taken.
            silent: stages that need not say anything for now.
        """
        if self._waits_since is None or not feed_waits:
            self._waits_since = now
        waits_since = self._waits_since if feed_waits else None
        return self._silent(now, silent) or self._stuck() or self._deadlock(now, waits_since)

    def _silent(self, now: float, allowed: Collection[int]) -> tuple[int, str] | None:
        for stage, known in sorted(self._stages.items()):
            silence_s = now - known.heard_at
            if stage not in allowed and silence_s > self._heartbeat_timeout_s:
                return stage, f"hangs: no sign of life for {silence_s:.1f} s"
        return None

    def _stuck(self) -> tuple[int, str] | None:
        for stage, known in sorted(self._stages.items()):
            beat = known.heartbeat
            if beat is None or beat.doing != "working":
                continue
            idle_s = known.heard_at - known.worked_at
            busy_s = known.heard_at - known.changed_at
            if idle_s > self._stall_timeout_s or busy_s > SLOWEST_STEP * self._stall_timeout_s:
                return stage, f"is stuck: {busy_s:.1f} s at the item after batch {beat.batch_id}"
        return None

    def _deadlock(self, now: float, waits_since: float | None) -> tuple[int, str] | None:
        if waits_since is None or any(self.activity(stage) == "working" for stage in self._stages):
            return None
        moved_at = max((known.changed_at for known in self._stages.values()), default=now)
        still_s = now - max(moved_at, waits_since)
        if still_s <= self._standstill_s:
            return None
        return min(self._stages), f"does not take what comes next: all wait since {still_s:.1f} s"
