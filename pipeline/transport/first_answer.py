"""Whether a peer over TCP has answered at all; if it has not, what may be in the way."""

from __future__ import annotations

import errno
import os
import socket
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

UNANSWERED_S = 10.0
"""A peer that can be reached answers within milliseconds: it listens before others are told of it.
"""
_TRIES_S = 2.0
_CURE = (
    "look at the firewalls between them (runtime.ports keeps a run to ports that can be let "
    "through), at runtime.bind_address (a network, as 10.8.0.0/16, says which addresses reach each "
    "other), and whether both hosts are in one network"
)
_REFUSED = "the connection is refused: a firewall, or nobody listens there"
_DROPPED = "nothing comes back: a firewall, or a cable"
_NO_ROUTE = "no way leads there"
_OPEN = "the port is open, but who is there does not answer as this run does"
_WHY = {
    errno.ECONNREFUSED: _REFUSED,
    errno.ETIMEDOUT: _DROPPED,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.ENETUNREACH: _NO_ROUTE,
}


class FirstAnswer:
    """Of the peer at an endpoint.

    Args:
        names: what people call this end, and the peer.
        tell: is given one line, once, if the peer has not answered for `UNANSWERED_S`.
        why: finds out what is in the way to (address, port).
    """

    def __init__(
        self,
        endpoint: str,
        names: tuple[str, str],
        tell: Callable[[str], None],
        *,
        clock: Callable[[], float] = monotonic,
        why: Callable[[str, int], str] | None = None,
    ) -> None:
        self._endpoint, self._names, self._tell = endpoint, names, tell
        self._clock, self._began, self._why = clock, clock(), why or what_stops
        self._is_settled = not endpoint.startswith("tcp:")

    def heard(self) -> None:
        """It has answered."""
        self._is_settled = True

    def look(self) -> None:
        """To be called while it is waited for; tells if that takes too long."""
        waited_s = self._clock() - self._began
        if self._is_settled or waited_s < UNANSWERED_S:
            return
        self._is_settled = True
        address, _, port = self._endpoint.removeprefix("tcp://").rpartition(":")
        me, peer = self._names
        self._tell(
            f"{me}, on host {os.uname().nodename}, has had no answer from {peer} at {address} port "
            f"{port} for {waited_s:.0f} s: {self._why(address.strip('[]'), int(port))}; {_CURE}"
        )


def what_stops(address: str, port: int) -> str:
    """Connect there once more, and say what comes of it."""
    try:
        socket.create_connection((address, port), _TRIES_S).close()
    except TimeoutError:
        return _DROPPED
    except OSError as error:
        return _WHY.get(error.errno or 0) or f"{error.strerror or error}"
    return _OPEN
