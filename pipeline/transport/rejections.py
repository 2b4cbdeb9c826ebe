"""Messages and connections that don't belong to the run: counted, and reported once a peer."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PEERS = 20
"""More peers than these are only counted: a stranger must not fill the log, nor the memory."""


class Rejections:
    """Of a socket that listens: `count` of them. Several threads may reject peers.

    Args:
        where: what people call the socket.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._peers: set[str] = set()
        self._told: set[str] = set()
        self._news: deque[str] = deque()
        self._looks: list[Callable[[], None]] = []
        self.count = 0

    def watch(self, look: Callable[[], None]) -> None:
        """Have `look` reject, before the summary, those at whom nobody has looked yet."""
        self._looks.append(look)

    def unwatch(self, look: Callable[[], None]) -> None:
        """There is nobody left to look at."""
        self._looks.remove(look)

    def reject(self, peer: str, why: str) -> None:
        """Count a message, or a greeting, that `peer` should not have sent."""
        if peer not in self._peers and len(self._peers) < MOST_PEERS:
            self._peers.add(peer)
            more = "" if len(self._peers) < MOST_PEERS else "; further peers are only counted"
            self._news.append(f"{self._where}: {peer} was turned away: {why}{more}")
        self.count += 1

    def tell(self, text: str) -> None:
        """Something else that people should know; the same words once."""
        if text not in self._told and len(self._told) < MOST_PEERS:
            self._told.add(text)
            self._news.append(text)

    def news(self) -> list[str]:
        """Lines that were not given out yet."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def summary(self) -> list[str]:
        """Lines that were not given out yet, and the count unless it is 0."""
        for look in self._looks:
            look()
        count = f"{self._where}: {self.count} messages were turned away in all"
        return [*self.news(), *([count] if self.count else [])]
