"""A rival of benchmarks.throughput: global backprop by torch.distributed.pipelining.

    process 0   F0 F1 .. B0 F2 B1 F3 B2 .. B3  Adam | next batch      4 micro-batches in 2 stages,
    process 1   .. F0 B0 F1 B1 F2 B2 F3 B3 ..  Adam | next batch      by Schedule1F1B

The same layers, divided by our planner, with fused Adam, convolutions channels-last, products of
matrices by the library that ours asks (`pipeline/kernels/linear.py`), the same
autocast under bf16, the same settings of the allocator, batches that lie ready. Batch norm sees
micro-batches. Fewer micro-batches than stages are refused by Schedule1F1B; they go through
ScheduleGPipe, which is then the same.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.contenders import task_of
from benchmarks.lib.laps import made_up_batches, timed
from benchmarks.rivals.group import answer_of, join, leave, most
from benchmarks.rivals.plain import Layer
from launch.machine.gpus import devices
from launch.plan.checks import network_costs
from pipeline.data.facts import data_facts
from pipeline.device.host import keep_freed_memory
from pipeline.kernels.linear import Linear
from pipeline.learning.build import without_tf32
from pipeline.network.from_config import network_specs
from pipeline.planning.plan import make_plan

if TYPE_CHECKING:
    from benchmarks.lib.contenders import Task
    from pipeline.config.sections import Config
    from pipeline.network.specs import BlockSpec
    from pipeline.planning.plan import Plan


class _Contiguous(torch.autograd.Function):
    """The same; the gradient goes back contiguous, as messages must be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class Part(nn.Module):
    """The layers of one stage; what leaves it, either way, is contiguous."""

    def __init__(self, specs: tuple[BlockSpec, ...], device: torch.device, *, bf16: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(spec, Linear) for spec in specs))
        self.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device, self._bf16 = device.type, bf16

    def forward(self, x: Tensor) -> Tensor:
        """(n, *in_shape of the first layer) to (n, *out_shape of the last)."""
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bf16):
            passed: Tensor = self.layers(_Contiguous.apply(x))
        return passed.contiguous()


def even_plan(task: Task) -> tuple[tuple[BlockSpec, ...], Plan]:
    """The layers of global backprop, and how our planner divides them by their multiply-adds.

    Our own global backprop can't be divided, so the planner is shown blocks that learn alone.
    """
    config = task.config()
    facts = data_facts(config.data)
    specs = network_specs(config, facts)
    loss = config.loss.model_copy(update={"name": "pred"})
    alone = network_specs(config.model_copy(update={"loss": loss}), facts)
    costs = network_costs(config, specs)
    names = devices(task.gpus)
    return specs, make_plan(alone, costs, stages=task.contender.stages, devices=names)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, in fp32."""
    return F.cross_entropy(logits.float(), labels)


def train(rank: int, task: Task, folder: str) -> None:
    """The process of one stage; that of the first leaves its answer in the folder.

    It ends without clearing up: some of gloo's threads (PyTorch 2.14) outlive the process group,
    and abort every third process that ends as others do.
    """
    specs, plan = even_plan(task)
    device, config = torch.device(plan.stages[rank].device), task.config()
    torch.set_num_threads(task.threads)
    keep_freed_memory()
    without_tf32()
    torch.manual_seed(config.runtime.seed)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    join(rank, plan.n_stages, folder, "nccl" if device.type == "cuda" else "gloo")
    own = tuple(specs[block] for block in plan.stages[rank].blocks)
    part = Part(own, device, bf16=config.runtime.precision == "bf16")
    lap = _train(part, rank, task, config, device)
    if rank == 0:
        leave({**lap, "stages": plan.tree()["stages"]}, folder)
    dist.destroy_process_group()
    os._exit(0)


def _train(
    part: Part, rank: int, task: Task, config: Config, device: torch.device
) -> dict[str, float]:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    stages, parts = task.contender.stages, task.contender.micro_batches
    first, last = rank == 0, rank == stages - 1
    make = Schedule1F1B if parts >= stages else ScheduleGPipe
    schedule = make(PipelineStage(part, rank, stages, device), parts, loss_fn=loss_of)
    optimizer = torch.optim.Adam(part.parameters(), lr=config.optimizer.lr, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        given: tuple[Tensor, ...] = (images,) if first else ()
        schedule.step(*given, target=labels if last else None, return_outputs=False)
        optimizer.step()

    batches, agree = made_up_batches(config, device), partial(most, device=device)
    return timed(step, batches, task.seconds, device, agree)


@click.command()
@click.argument("task_text")
def main(task_text: str) -> None:
    """Train what TASK_TEXT says (`contenders.Task` as JSON); print how fast that was, as JSON."""
    task = task_of(task_text)
    print(answer_of(train, task.contender.stages, task))


if __name__ == "__main__":
    main()
