"""How a rival's steps are timed: warmed up, for a given time, on batches that are at hand.

WARM_UP steps | TRIAL steps, to see how many make up the time asked for | those, timed
"""

from __future__ import annotations

from functools import partial
from itertools import cycle, islice
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pipeline.data.facts import data_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.config.sections import Config

    Batch: TypeAlias = tuple[Tensor, Tensor]
    Step: TypeAlias = Callable[[Tensor, Tensor], object]

WARM_UP, TRIAL = 4, 6
_BATCHES = 8


def made_up_batches(config: Config, device: torch.device) -> list[Batch]:
    """Images (n, C, H, W) in float32 and labels (n,), normalised, on the device: nothing has to
    be fed."""
    facts, n = data_facts(config.data), config.data.batch_size
    draws = torch.Generator().manual_seed(config.runtime.seed)
    return [
        (
            torch.randn(n, *facts.shape, generator=draws).to(device),
            torch.randint(facts.classes, (n,), generator=draws).to(device),
        )
        for _ in range(_BATCHES)
    ]


def timed(
    step: Step,
    batches: Sequence[Batch],
    seconds: float,
    device: torch.device,
    agree: Callable[[int], int] = lambda steps: steps,
) -> dict[str, float]:
    """Train for about so long; images/s without the warm-up.

    Args:
        agree: waits for all processes that train together; the largest number that one gave.
    """
    run = partial(_run, step, batches, device, agree)
    run(WARM_UP)
    steps = agree(max(1, round(seconds * TRIAL / run(TRIAL))))
    took = run(steps)
    images = steps * len(batches[0][1])
    return {"images_per_s": round(images / took, 1), "seconds": round(took, 3), "steps": steps}


def _run(
    step: Step,
    batches: Sequence[Batch],
    device: torch.device,
    agree: Callable[[int], int],
    steps: int,
) -> float:
    agree(0)
    began = perf_counter()
    for images, labels in islice(cycle(batches), steps):
        step(images, labels)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    agree(0)
    return perf_counter() - began
