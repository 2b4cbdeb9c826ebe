"""In which precision a block computes (`runtime.precision`)."""

from __future__ import annotations

import torch


def autocast(device: torch.device, *, bf16: bool) -> torch.autocast:
    """Around whatever computes with layers: under bf16 they do so in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
