"""A rival of benchmarks.data_parallel and benchmarks.frontier: global backprop by
DistributedDataParallel over gloo.

    process 0   share 0: forward, backward ─┬─ all-reduce, by buckets, while backward goes on ─ Adam
    process 1   share 1: forward, backward ─┘

The same layers, batches, order, augmentation and shares as ours; fused Adam, convolutions
channels-last, products of matrices by the library that ours asks (`pipeline/kernels/linear.py`),
the same settings of the allocator. Each process cuts its share out of data that lie in its memory.
Batch norm sees the share, and its running statistics are those of process 0: to send them round
before each forward pass, as is the default, would only cost time.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.rivals.group import answer_of, join, leave
from benchmarks.rivals.plain import Layer
from pipeline.config.config_file import load_config
from pipeline.data.batches import load_batches
from pipeline.device.host import keep_freed_memory
from pipeline.kernels.linear import Linear
from pipeline.learning.build import build_preprocess
from pipeline.learning.shares import share_of
from pipeline.network.from_config import network_specs
from pipeline.schedule.feed import course_of

if TYPE_CHECKING:
    from pipeline.config.sections import Config

_CPU = torch.device("cpu")


class Trainer:
    """What one process does of the training that a configuration asks for."""

    def __init__(self, config: Config, rank: int, processes: int) -> None:
        self.batches = load_batches(config.data, config.runtime.seed)
        specs = network_specs(config, self.batches.facts)
        self.course = course_of(config, specs, self.batches.steps_per_epoch, 0)
        self._rank, self._processes = rank, processes
        self._preprocess = build_preprocess(config, self.batches.facts, _CPU)
        torch.manual_seed(config.runtime.seed)  # weights; dropout is drawn anew below
        self.layers = nn.Sequential(*(Layer(spec, Linear) for spec in specs))
        self.layers.to(memory_format=torch.channels_last)
        torch.manual_seed(config.runtime.seed + rank)
        self._network = DistributedDataParallel(
            self.layers, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        self._optimizer = torch.optim.Adam(
            self._network.parameters(), lr=config.optimizer.lr, fused=True
        )

    def epoch(self, epoch: int) -> float:
        """Train one; its seconds, until all processes are through."""
        dist.barrier()
        began = perf_counter()
        for index in range(self.course.steps_per_epoch):
            self._step(epoch, index)
        dist.barrier()
        return perf_counter() - began

    def _step(self, epoch: int, index: int) -> None:
        images, labels = map(torch.from_numpy, self.batches.train(epoch, index))
        share = share_of(len(labels), self._rank, self._processes)
        batch_id = (epoch - 1) * self.course.steps_per_epoch + index + 1
        x = self._preprocess.train(images[share.rows], batch_id, share)
        for group in self._optimizer.param_groups:
            group["lr"] = self.course.learning_rate(batch_id)
        self._optimizer.zero_grad()
        # gradients are averaged over processes, whatever their shares are
        loss = F.cross_entropy(self._network(x), labels[share.rows])
        (loss * (share.weight * self._processes)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    @torch.no_grad()
    def error_pct(self) -> float:
        """Of the test set."""
        self.layers.eval()
        wrong = 0
        for index in range(self.batches.evaluation_batches):
            images, labels = map(torch.from_numpy, self.batches.evaluation(index))
            logits: Tensor = self.layers(self._preprocess.evaluate(images))
            wrong += int((logits.argmax(1) != labels).sum())
        return 100.0 * wrong / len(self.batches.test)


def train(rank: int, config: Config, processes: int, folder: str) -> None:
    """A process; the first leaves its answer in the folder. Ends as in `onef1b`, without clearing
    up."""
    torch.set_num_threads(config.runtime.threads_per_stage)
    keep_freed_memory()
    join(rank, processes, folder)
    trainer = Trainer(config, rank, processes)
    seconds = [trainer.epoch(epoch) for epoch in range(1, config.schedule.epochs + 1)]
    if rank == 0:
        images, timed = len(trainer.batches.training), seconds[1:]
        answer: dict[str, Any] = {
            "images_per_s": round(len(timed) * images / sum(timed), 1),
            "seconds": round(sum(timed), 3),
            "epochs_images_per_s": [round(images / one, 1) for one in timed],
            "error_pct": trainer.error_pct(),
        }
        leave(answer, folder)
    dist.barrier()
    os._exit(0)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True)
@click.option("--processes", type=int, required=True)
def main(path: Path, overrides: tuple[str, ...], processes: int) -> None:
    """Train the config at PATH; print images/s of all epochs but the first, and the test error, as
    JSON."""
    config = load_config(path, overrides)
    print(answer_of(train, processes, config, processes))


if __name__ == "__main__":
    main()
