"""Makes this process look like another one, started later: its id, the time, shared generators."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_ANOTHER_PID, _LATER_S = 1_000_003, 98_765.4


@contextmanager
def as_another_process(files: Iterable[str]) -> Iterator[None]:
    """Inside, the process id and the time of day are others, and so is what the generators that
    all share would draw next.

    Args:
        files: modules whose own names for these functions are changed, too.
    """
    pid, now, now_ns = os.getpid, time.time, time.time_ns
    another: dict[Any, Callable[[], Any]] = {
        pid: lambda: pid() + _ANOTHER_PID,
        now: lambda: now() + _LATER_S,
        now_ns: lambda: now_ns() + int(_LATER_S * 1e9),
    }
    places = [os, time, *(sys.modules[name] for name in files if name in sys.modules)]
    found = [
        (place, name, value)
        for place in places
        for name, value in vars(place).items()
        if type(value) is type(pid) and value in another
    ]
    with ExitStack() as stack:
        for place, name, value in found:
            setattr(place, name, another[value])
            stack.callback(setattr, place, name, value)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.default_generator.manual_seed(_ANOTHER_PID)
        random.seed(_ANOTHER_PID)
        np.random.seed(_ANOTHER_PID)
        yield
