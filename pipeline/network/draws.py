"""The generators that everybody in a process shares: torch's, numpy's and Python's.

What a user's own modules draw from them, while the network is made and in every batch, is made to
belong to a seed: so it is the same in every process, and again after a restart.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@contextmanager
def seeded_draws(seed: int, device: torch.device) -> Iterator[None]:
    """What is drawn inside belongs to `seed` (64 bits). Torch's generators are as before
    afterwards; numpy's and Python's are not, since their states take longer to be put back than
    many a layer to compute, and nothing here draws from them.
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
