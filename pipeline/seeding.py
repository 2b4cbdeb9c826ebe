"""Random numbers belong to (seed, purpose, position), never to a process's history.

So results don't depend on how blocks are grouped into stages, and a replay after a restart is
exact. Seeds are mixed by numpy's SeedSequence, whose output is fixed for all versions.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class Purpose(IntEnum):
    """What random numbers are for. The values are part of every result: never renumber."""

    INITIAL = 0
    """Initial weights of a block: (block,)."""
    ORDER = 1
    """Order of the training images: (epoch,)."""
    AUGMENT = 2
    """Crop, flip and cutout of a batch: (batch id,)."""
    DROPOUT = 3
    """Dropout of a block: (block, batch id) on the CPU, elsewhere (block,) for all batches; of a
    user's own modules: (block, batch id, part, share)."""
    IMAGES = 4
    """Made-up images: (part,), and per-image random crops of image folders: (epoch, image)."""
    FACTORY = 5
    """Initial weights of a user's own network: ()."""
    SHARE = 6
    """Examples that a limit, or a validation share, takes of each class: ()."""
    RULE = 7
    """What a local rule draws: (block, batch id, in training, share)."""
    EXPAND = 8
    """What a local rule draws before the first block: (batch id, in training, share)."""


def of_share(first: int) -> tuple[int, ...]:
    """The end of a position: of a share that begins with example `first` of its batch; nothing for
    the first share, which draws as the whole batch does."""
    return (first,) if first else ()


def derived_seed(seed: int, purpose: Purpose, *position: int) -> int:
    """A 64-bit seed for one use; `position` as the purpose's line says."""
    sequence = SeedSequence(seed, spawn_key=(purpose, *position))
    low, high = sequence.generate_state(2)
    return int(high) << 32 | int(low)


def generator(seed: int, purpose: Purpose, *position: int) -> Generator:
    """A numpy generator for one use."""
    return default_rng(SeedSequence(seed, spawn_key=(purpose, *position)))


@contextmanager
def seeded_draws(seed: int, device: torch.device) -> Iterator[None]:
    """What a user's own modules draw inside, from the generators that all of a process share
    (torch's, numpy's and Python's), belongs to `seed` (64 bits).

    Torch's generators are as before afterwards; numpy's and Python's are not, since their states
    take longer to be put back than many a layer to compute, and nothing here draws from them.
    """
    import torch

    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        yield


@contextmanager
def draws_kept(device: torch.device) -> Iterator[None]:
    """While others draw, who take turns with us in this process: the generators that all share are
    as before afterwards, numpy's and Python's included."""
    import torch

    state, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    random.setstate(state)
    np.random.set_state(of_numpy)
