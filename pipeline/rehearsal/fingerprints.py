"""Fingerprints of a user's own blocks: what processes compare, to find out that the network which
each of them has made for itself is the same; and of what blocks pass on."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import torch

from pipeline.errors import ConfigError
from pipeline.schedule.reports import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from pipeline.learning.block import Block
    from pipeline.learning.stage import Stage

_DIGEST_BYTES = 8


def digest(tensor: Tensor) -> str:
    """Of type, shape and bits."""
    here = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    kind = f"{here.dtype} {tuple(here.shape)}".encode()
    data = here.reshape(-1).view(torch.uint8).numpy().data
    return blake2b(data, digest_size=_DIGEST_BYTES, key=kind[:64]).hexdigest()


class Sent:
    """What a stage passes on in one step, and whether it stays as it was then: another block may
    be reading it. It finds what counters of changes do not see, as through `.data` or `numpy()`.

    `tensors`: the output, the targets, and what is carried on; none of the last stage.
    """

    def __init__(
        self, targets: Tensor, delivered: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        """`delivered`: gives each as it arrives."""
        self.tensors: tuple[Tensor, ...] = ()
        self.digests: tuple[str, ...] = ()
        self._targets, self._delivered = targets, delivered

    def send(self, passed: Tensor, *onwards: Tensor) -> None:
        """To be given to a stage."""
        self.tensors = tuple(map(self._delivered, (passed, self._targets, *onwards)))
        self.digests = tuple(map(digest, self.tensors))

    def check_unchanged(self, stage: Stage) -> None:
        """After its step.

        Raises:
            ConfigError: naming its last block.
        """
        if tuple(map(digest, self.tensors)) != self.digests:
            raise ConfigError(
                f"block {stage.blocks[-1].spec.index}: changes what it has passed on, which the "
                "next block may be reading: put a new tensor in its place"
            )


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
