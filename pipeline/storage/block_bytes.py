"""Some tensors of a block's file as a file of their own, without torch.

    8 bytes    length of the header
    header     JSON: {name: {dtype, shape, data_offsets: [begin, end]}, …}, padded with spaces
    data       of all tensors, at these offsets

That is safetensors' format. Its library cuts nothing out without making tensors of all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_LENGTH_BYTES = _ALIGNED_TO = 8


def tensors_only(data: bytes | memoryview, keep: Callable[[str], bool]) -> bytes:
    """The file of those tensors whose names `keep` accepts: the bytes that the library would have
    written of these alone. `data`: of a file that this program has written."""
    view = memoryview(data)
    begin = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    header: dict[str, dict[str, Any]] = json.loads(bytes(view[_LENGTH_BYTES:begin]))
    kept, parts, at = {}, [], 0
    for name, entry in header.items():
        if keep(name):
            first, end = (begin + offset for offset in entry["data_offsets"])
            kept[name] = {**entry, "data_offsets": [at, at + end - first]}
            parts.append(view[first:end])
            at += end - first
    text = json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED_TO)
    return b"".join((len(text).to_bytes(_LENGTH_BYTES, "little"), text, *parts))
