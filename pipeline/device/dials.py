"""What is different for every batch, where kernels can read it.

On a CUDA device the learning rate and the batch id lie in memory there: a recorded step
(`cuda_graphs.py`) reads them when it is replayed. So does every other step, which so rounds alike:
fused optimizers take a rate in memory as float32. On a CPU the learning rate stays a Python
number, float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Dials:
    """Of one stage, turned before each of its steps."""

    def __init__(self, device: torch.device) -> None:
        self.batch_id = torch.zeros((), dtype=torch.int64, device=device)
        self.lr: float | Tensor = 0.0
        if device.type == "cuda":
            self.lr = torch.zeros((), dtype=torch.float32, device=device)

    def turn(self, batch_id: int, lr: float) -> None:
        """To those of the batch that comes now; nobody waits for the device."""
        self.batch_id.fill_(batch_id)
        if isinstance(self.lr, Tensor):
            self.lr.fill_(lr)
        else:
            self.lr = lr
