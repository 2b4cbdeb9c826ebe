"""Processes of a rival that train together, by torch.distributed; the first leaves an answer."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TIMEOUT = timedelta(seconds=300)
_ANSWER = "answer.json"


def join(rank: int, processes: int, folder: str, backend: str = "gloo") -> None:
    """Begin to belong to the processes that have this folder."""
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=_TIMEOUT,
    )


def most(steps: int, device: torch.device) -> int:
    """The largest that any of the processes says: so many all make."""
    largest = torch.tensor(steps, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def leave(answer: Mapping[str, Any], folder: str) -> None:
    """What the first process has found."""
    (Path(folder) / _ANSWER).write_text(json.dumps(answer), encoding="utf-8")


def answer_of(train: Callable[..., None], processes: int, *given: object) -> str:
    """The answer, as JSON, of so many processes that train.

    Args:
        train: called in each with its rank, what is given, and the folder that they share.
    """
    with TemporaryDirectory(prefix="rival-") as folder:
        spawn(train, args=(*given, folder), nprocs=processes)  # type: ignore[no-untyped-call]
        return (Path(folder) / _ANSWER).read_text(encoding="utf-8")
