"""Fingerprints of a user's own blocks: what processes compare, to find out that the network which
each of them has made for itself is the same."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import torch

from pipeline.schedule.reports import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from pipeline.learning.block import Block

_DIGEST_BYTES = 8


def digest(tensor: Tensor) -> str:
    """Of type, shape and bits."""
    here = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    kind = f"{here.dtype} {tuple(here.shape)}".encode()
    data = here.reshape(-1).view(torch.uint8).numpy().data
    return blake2b(data, digest_size=_DIGEST_BYTES, key=kind[:64]).hexdigest()


def fingerprints(states: Mapping[int, Mapping[str, Tensor]]) -> tuple[Fingerprint, ...]:
    """Of the tensors of blocks, by index."""
    return tuple(
        Fingerprint(block, name, digest(tensor))
        for block, tensors in states.items()
        for name, tensor in tensors.items()
    )


def initial_fingerprints(blocks: Iterable[Block]) -> tuple[Fingerprint, ...]:
    """Of newly made blocks of a user's own, or with a rule. Those of built-in ones follow from the
    seed, and need none."""
    own = (block for block in blocks if block.spec.custom or block.spec.rule)
    return fingerprints({block.spec.index: block.module_state() for block in own})
