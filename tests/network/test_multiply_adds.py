"""Multiply-adds of a user's own modules against sums done by hand."""

from __future__ import annotations

import pytest
import torch
from support import REPOSITORY
from support.processes import python
from torch import nn
from torch.nn import functional as F

from pipeline.network.multiply_adds import multiply_adds

TOKENS, FEATURES = 5, 8
PROJECTIONS = 4 * TOKENS * FEATURES**2
PAIRS = 2 * TOKENS**2 * FEATURES


class Attention(nn.Module):
    """Written with functions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, FEATURES, FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (F.linear(x, weight) for weight in self.weight[:3])
        return F.scaled_dot_product_attention(query, key, value) @ self.weight[3]


class Own(nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "module", [Attention(), Own(FEATURES, 2, batch_first=True)], ids=["functions", "module"]
)
def test_attention_costs_its_projections_and_all_pairs(module: nn.Module, training: bool) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    with multiply_adds() as counted, torch.no_grad():
        module.train(training)(torch.zeros(3, TOKENS, FEATURES))
    assert counted.count == 3 * (PROJECTIONS + PAIRS)
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(4, 3), (7, 4), 7 * 12),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5), 6 * 2 * 9 * 25),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 6 * 4 * 25),
        (nn.Conv1d(4, 6, 3, bias=False), (4, 9), 4 * 6 * 3 * 7),
        (nn.BatchNorm2d(4), (4, 5, 5), 0),
    ],
)
def test_layers_cost_a_product_for_each_weight_and_place(
    module: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    with multiply_adds() as counted, torch.no_grad():
        module(torch.zeros(2, *shape))
    assert counted.count == 2 * expected


def test_counting_imports_no_compiler() -> None:
    """Every process of a run counts; PyTorch's compiler would take each 1.5 s and 150 MB."""
    program = (
        "import sys, torch\n"
        "from pipeline.network.multiply_adds import multiply_adds\n"
        "with multiply_adds() as counted:\n"
        "    torch.ones(2, 3) @ torch.ones(3, 4)\n"
        "print(counted.count, 'torch._dynamo' in sys.modules)"
    )
    assert python("-c", program, cwd=REPOSITORY).stdout == "24 False\n"
