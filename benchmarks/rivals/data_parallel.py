"""A rival of benchmarks.frontier: global backprop by DistributedDataParallel over gloo.

    process 0   rows 0 2 4 … of a batch   forward, backward ┐ mean of the gradients   Adam
    process 1   rows 1 3 5 …              forward, backward ┘ while they come         Adam

The same layers, with fused Adam, convolutions channels-last, products of matrices by the library
that ours asks, the same settings of the allocator, batches that lie ready. Batch norm sees the rows
of its process.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import click
import torch
import torch.distributed as dist

from benchmarks.lib.contenders import task_of
from benchmarks.lib.laps import made_up_batches, timed
from benchmarks.rivals.group import answer_of, join, leave, most
from benchmarks.rivals.onef1b import Part, loss_of
from pipeline.data.facts import data_facts
from pipeline.device.host import keep_freed_memory
from pipeline.learning.build import without_tf32
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.lib.contenders import Task

_CPU = torch.device("cpu")


def train(rank: int, task: Task, folder: str) -> None:
    """One process; the first leaves its answer in the folder. It ends as those of 1F1B do."""
    from torch.nn.parallel import DistributedDataParallel

    config, processes = task.config(), task.contender.stages
    torch.set_num_threads(task.threads)
    keep_freed_memory()
    without_tf32()
    torch.manual_seed(config.runtime.seed)
    join(rank, processes, folder)
    specs = network_specs(config, data_facts(config.data))
    part = Part(specs, _CPU, bf16=config.runtime.precision == "bf16")
    network = DistributedDataParallel(part)
    optimizer = torch.optim.Adam(part.parameters(), lr=config.optimizer.lr, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    own = [(x[rank::processes], y[rank::processes]) for x, y in made_up_batches(config, _CPU)]
    lap = timed(step, own, task.seconds, _CPU, partial(most, device=_CPU))
    if rank == 0:
        images = lap["steps"] * config.data.batch_size
        leave({**lap, "images_per_s": round(images / lap["seconds"], 1)}, folder)
    dist.destroy_process_group()
    os._exit(0)


@click.command()
@click.argument("task_text")
def main(task_text: str) -> None:
    """Train what TASK_TEXT says (`contenders.Task` as JSON) in as many processes as it has stages;
    print how fast that was, as JSON."""
    task = task_of(task_text)
    print(answer_of(train, task.contender.stages, task))


if __name__ == "__main__":
    main()
