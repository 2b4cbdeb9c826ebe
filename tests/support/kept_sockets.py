"""Sockets for tests: what a test leaves open is closed with them, and not collected before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.transport.sockets import Sockets

if TYPE_CHECKING:
    from pipeline.protocol.credentials import KeyPair
    from pipeline.transport.rejections import Rejections
    from pipeline.transport.sockets import Socket


class KeptSockets(Sockets):
    """Remembers every socket."""

    def __init__(self, rejections: Rejections, keys: KeyPair | None = None) -> None:
        super().__init__(rejections, keys)
        self._opened: list[Socket] = []

    def _socket(self, kind: int, endpoint: str) -> Socket:
        self._opened.append(super()._socket(kind, endpoint))
        return self._opened[-1]
