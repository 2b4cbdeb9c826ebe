"""The bound of the hardware: the multiply-adds of training, at the speed of one large product.

    images/s  =  FLOP/s of a square matrix product  /  (2 × multiply-adds per image)

The product is the one that the trainer uses. Batch norm, non-linearities, optimizer, feeding and
all else cost nothing here, and no product is as fast as a large one, where the device is made for
its precision. How near one comes is the question.
"""

from __future__ import annotations

import json

import click
import torch

from benchmarks.lib.contenders import Lap, Task, task_of
from benchmarks.lib.laps import timed
from launch.machine.gpus import devices
from launch.plan.checks import network_costs
from pipeline.data.facts import data_facts
from pipeline.kernels.linear import product
from pipeline.learning.build import prepare_process
from pipeline.network.from_config import network_specs

SIDE = {"cpu": 1024, "cuda": 8192}
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def multiply_adds(task: Task) -> int:
    """Of all that training does for one image."""
    config = task.config()
    costs = network_costs(config, network_specs(config, data_facts(config.data)))
    return sum(cost.train_macs for cost in costs)


def products_per_s(side: int, dtype: torch.dtype, seconds: float, device: torch.device) -> float:
    """Square matrix products per second, with the factors as in the forward pass of a layer."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return timed(product, [(a, b)], seconds, device)["images_per_s"] / side


def bound(task: Task, device: torch.device) -> Lap:
    """As of any contender, with what it was worked out from."""
    side, macs = SIDE[device.type], multiply_adds(task)
    dtype = _TYPES[task.contender.precision]
    flops = 2 * side**3 * products_per_s(side, dtype, task.seconds, device)
    images_per_s = round(flops / (2 * macs), 1)
    return {"images_per_s": images_per_s, "flop_per_s": flops, "multiply_adds": macs}


@click.command()
@click.argument("task_text")
def main(task_text: str) -> None:
    """Print, as JSON, how fast what TASK_TEXT says (`contenders.Task`) could be at best."""
    task = task_of(task_text)
    device = torch.device(devices(task.gpus)[0])
    prepare_process(device, task.threads)
    print(json.dumps(bound(task, device)))


if __name__ == "__main__":
    main()
