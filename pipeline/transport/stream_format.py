"""What goes over the stream of a link: how it is opened, and how batches lie in it. No I/O.

    sender                              receiver
                ◀──────── greeting      random bytes, new for every connection
    claim ─────────────────▶            random bytes, and a proof that it knows the link's secret
                ◀──────── welcome       the first batch that is missing, and a proof of its own
    batch header, tensors ─▶            into the slot that the header names; and so on

All have fixed sizes, so nothing that a stranger announces is waited for, or takes memory. Both ends
make the key of a connection of the secret and of what was said (`docs/design/stream.md`).
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ProtocolError
from pipeline.protocol.messages import MAX_TENSORS
from pipeline.transport.seal import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = b"local-loss stream 1\n"
_RANDOM_BYTES = _PROOF_BYTES = 32
_MISSING, _HEADER = struct.Struct("!Q"), struct.Struct(f"!QII{MAX_TENSORS}Q")
_NUMBER = struct.Struct("!QI")
GREETING_BYTES = len(_MAGIC) + _RANDOM_BYTES
CLAIM_BYTES = _RANDOM_BYTES + _PROOF_BYTES
WELCOME_BYTES = _MISSING.size + _PROOF_BYTES
HEADER_BYTES = _HEADER.size


def make_greeting() -> bytes:
    """What the receiver says first."""
    return _MAGIC + secrets.token_bytes(_RANDOM_BYTES)


def make_claim(secret: bytes, greeting: bytes) -> bytes:
    """The sender's answer.

    Raises:
        ProtocolError: where the greeting is none.
    """
    if not greeting.startswith(_MAGIC):
        raise ProtocolError("it does not greet as the stream of a link does")
    drawn = secrets.token_bytes(_RANDOM_BYTES)
    return drawn + _proof(secret, b"claim", greeting, drawn)


def is_claim(secret: bytes, greeting: bytes, claim: bytes) -> bool:
    """Whether it proves that its sender knows the secret, and speaks to this connection."""
    drawn, proof = claim[:_RANDOM_BYTES], claim[_RANDOM_BYTES:]
    return hmac.compare_digest(proof, _proof(secret, b"claim", greeting, drawn))


def make_welcome(secret: bytes, greeting: bytes, claim: bytes, missing: int) -> bytes:
    """The receiver's answer: `missing` is the first batch that has not arrived whole."""
    said = _MISSING.pack(missing)
    return said + _proof(secret, b"welcome", greeting, claim, said)


def read_welcome(secret: bytes, greeting: bytes, claim: bytes, welcome: bytes) -> int:
    """The first batch that has not arrived whole.

    Raises:
        ProtocolError: where the receiver does not know the secret.
    """
    said, proof = welcome[: _MISSING.size], welcome[_MISSING.size :]
    if not hmac.compare_digest(proof, _proof(secret, b"welcome", greeting, claim, said)):
        raise ProtocolError("it does not know the secret of this link")
    (missing,) = _MISSING.unpack(said)
    return int(missing)


def connection_key(secret: bytes, greeting: bytes, claim: bytes) -> bytes:
    """32 bytes: a key for this connection alone, since both ends drew numbers for it."""
    return _proof(secret, b"key", greeting, claim)


def _proof(secret: bytes, *said: bytes) -> bytes:
    # each part has one size for each first word, so no two lists of parts are the same bytes
    return hmac.digest(secret, b"".join(said), "sha256")


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """Before a batch: which of those on the link it is, counted from 0 by both ends; the slot that
    it goes into; bytes of each of its tensors."""

    sequence: int
    slot: int
    sizes: tuple[int, ...]

    def pack(self) -> bytes:
        """The header as bytes, `HEADER_BYTES` of them, as it travels."""
        unused = [0] * (MAX_TENSORS - len(self.sizes))
        return _HEADER.pack(self.sequence, self.slot, len(self.sizes), *self.sizes, *unused)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> BatchHeader:
        """Raises ProtocolError where it is none."""
        sequence, slot, count, *sizes = _HEADER.unpack(data)
        if count > MAX_TENSORS:
            raise ProtocolError(f"a batch of {count} tensors: at most {MAX_TENSORS} travel")
        return cls(sequence, slot, tuple(sizes[:count]))


def piece_number(sequence: int, piece: int) -> bytes:
    """Of a piece of a batch; 0 is its header."""
    return _NUMBER.pack(sequence, piece)


def cut(data: memoryview) -> Iterator[memoryview]:
    """A tensor's bytes in pieces."""
    for start in range(0, data.nbytes, PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
