"""Inputs to begin with: what is right, and the worst that we could think of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.examples import EXAMPLES
from fuzz.targets import SEPARATOR, STEP, framed
from pipeline.protocol.addresses import LinkAddress, RingHandle
from pipeline.protocol.codec import encode
from pipeline.protocol.messages import PROTOCOL_VERSION, Connect, OpenLink
from pipeline.schedule.feed import Position
from pipeline.schedule.reports import Tally
from pipeline.storage.checkpoint import RunState
from pipeline.storage.checkpoint_writer import CheckpointStore
from pipeline.storage.folder import Folder

_PLAIN = {"a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}
_ODD = {
    "__metadata__": {"a": "b"},
    "b": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]},
    "c": {"dtype": "F4", "shape": [2], "data_offsets": [1, 2]},
}
_VAST = {"d": {"dtype": "BF16", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}


def seeds(target: str) -> list[bytes]:
    """For `codec` or `checkpoint`."""
    return {"codec": _messages, "checkpoint": _checkpoints}[target]()


def _messages() -> list[bytes]:
    deep = b"\x82\xa4type\xa6Credit\xa4slot" + b"\x91" * 1020
    shapes = ((2, 4096), (-2, -4096), (8192, 1), (1, 8192))
    rings = [RingHandle("host", 1, 2, 3, *shape) for shape in shapes]
    addresses = [Connect(LinkAddress("ipc://x", ring, "word")) for ring in rings]
    opening = OpenLink("run", PROTOCOL_VERSION)
    claims = b"\xdd\x00\x00\x3f\xff" * 20 + bytes(1 << 10)
    return [*map(encode, (*EXAMPLES, opening, *addresses)), deep, claims, b"\xdd\xff\xff\xff\xff"]


def _checkpoints() -> list[bytes]:
    plain, odd, vast = (json.dumps(header).encode() + b"\0" for header in (_PLAIN, _ODD, _VAST))
    plain, odd = plain + bytes(8), odd + bytes(2)
    deep = _manifest(1).replace(b'"step": 5', b'"step": ' + b"[" * 900 + b"]" * 900)
    manifests = [deep, b"[" * 2000, b'{"step":' * 2000, b"\xff" * 2000]
    whole = SEPARATOR.join([_manifest(3), framed(plain), odd, vast])
    return [whole, SEPARATOR.join([_manifest(1), plain]), *manifests]


def _manifest(blocks: int) -> bytes:
    """That of a real checkpoint, but with names of digests (`targets.py`) in their places."""
    files: dict[int, bytes | memoryview] = dict.fromkeys(range(blocks), b"")
    tallies = (Tally(0, 9, 1.5, None), Tally(1, 9, 2.25, 3))
    with TemporaryDirectory(prefix="fuzz-") as temp:
        store = CheckpointStore(
            Folder.open(Path(temp)), {"runtime": {"seed": 7}}, 1, steps_per_epoch=4
        )
        path = store.write(RunState(Position(STEP, epoch_reported=False), files, tallies))
        text = (path / "manifest.json").read_text(encoding="utf-8")
    for block in range(blocks):
        text = re.sub(r'"sha256": "\w+"', f'"sha256": "@{block}"', text, count=1)
    return text.encode()
