"""What the bytes of a stream are wrapped in: AES-256-GCM, or nothing. The only file that imports
cryptography.

A piece is sealed under its number, which is never used twice with a key (`docs/design/stream.md`),
and is bound to what it belongs to. No I/O: how bytes leave and come, whoever calls says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES = 1 << 20
"""Of what is sealed at once: it stays in a core's cache from the socket to the slot."""
_TAG_BYTES = 16
_NO_PACKAGE = "the package cryptography {} (pip install 'local-loss-pipeline[stream]')"


class BrokenSealError(ProtocolError):
    """Bytes that are not what the other end has sealed here."""


class Seal(Protocol):
    """Of one connection and direction."""

    def put(
        self, send: Callable[[memoryview], None], data: memoryview, number: bytes, bound: bytes
    ) -> None:
        """Send `data`, a piece, under a number of 12 bytes."""

    def take(
        self, fill: Callable[[memoryview], None], target: memoryview, number: bytes, bound: bytes
    ) -> None:
        """Fill `target` with the piece of that number. Raises BrokenSealError."""


def why_no_seal() -> str:
    """Why this process can seal nothing, and the cure, in a few words; empty where it can."""
    try:
        kind = _aes_gcm()
    except ImportError:
        return _NO_PACKAGE.format("is not installed")
    return "" if hasattr(kind, "decrypt_into") else _NO_PACKAGE.format("is older than 47")


class Sealed:
    """AES-256-GCM: who does not hold the key can neither read a piece, nor change, move or repeat
    one unnoticed."""

    def __init__(self, key: bytes) -> None:
        self._cipher = _aes_gcm()(key)
        self._scratch = memoryview(bytearray(PIECE_BYTES + _TAG_BYTES))

    def put(
        self, send: Callable[[memoryview], None], data: memoryview, number: bytes, bound: bytes
    ) -> None:
        sealed = self._scratch[: data.nbytes + _TAG_BYTES]
        self._cipher.encrypt_into(number, data, bound, sealed)
        send(sealed)

    def take(
        self, fill: Callable[[memoryview], None], target: memoryview, number: bytes, bound: bytes
    ) -> None:
        sealed = self._scratch[: target.nbytes + _TAG_BYTES]
        fill(sealed)
        try:
            self._cipher.decrypt_into(number, sealed, bound, target)
        except _invalid_tag():
            raise BrokenSealError("the seal of its bytes is broken") from None


class Unsealed:
    """The bytes themselves, straight to and from where they lie."""

    def put(
        self, send: Callable[[memoryview], None], data: memoryview, number: bytes, bound: bytes
    ) -> None:
        send(data)

    def take(
        self, fill: Callable[[memoryview], None], target: memoryview, number: bytes, bound: bytes
    ) -> None:
        fill(target)


def _aes_gcm() -> Any:
    """Imported where something is sealed: other runs need no such package."""
    from cryptography.hazmat.primitives.ciphers import aead

    return aead.AESGCM


def _invalid_tag() -> type[Exception]:
    from cryptography.exceptions import InvalidTag

    return InvalidTag
