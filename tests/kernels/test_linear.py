"""Linear layers by either library, against PyTorch's own; which one is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from support.run_in_threads import Job, train_pipelined
from torch.nn import functional as F

from pipeline.kernels import linear as module
from pipeline.kernels.linear import Linear, linear, onednn_is_wider, product
from pipeline.single import SingleTrainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

HAS_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) is not None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """oneDNN is the wider one, whatever this processor is; the products it is asked for."""
    if not HAS_ONEDNN:
        pytest.skip("PyTorch was built without oneDNN")
    made, onednn = [], module._onednn

    def noted(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        made.append(a.shape + b.shape)
        return onednn(a, b, bias)

    monkeypatch.setattr(module, "onednn_is_wider", lambda: True)
    monkeypatch.setattr(module, "_onednn", noted)
    return made


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("for_x", [True, False])
def test_values_and_gradients_are_pytorchs(
    calls: list[torch.Size], has_bias: bool, for_x: bool
) -> None:
    found = []
    for way in (linear, F.linear):
        x, weight = drawn(7, 20).requires_grad_(for_x), drawn(12, 20, seed=1).requires_grad_()
        bias = drawn(12, seed=2).requires_grad_() if has_bias else None
        y = way(x, weight, bias)
        learned = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
        found.append((y, *torch.autograd.grad(y, learned, drawn(7, 12, seed=3))))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)
        assert ours.stride() == expected.stride()
    assert len(calls) == 2 + for_x


def test_a_product_is_pytorchs(calls: list[torch.Size]) -> None:
    a, b = drawn(5, 8), drawn(6, 8, seed=1)
    torch.testing.assert_close(product(a, b), a @ b.T)
    torch.testing.assert_close(product(a, drawn(8, 6).T), a @ drawn(8, 6))
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(calls: list[torch.Size], dtype: torch.dtype) -> None:
    x, weight = drawn(7, 20, dtype=dtype), drawn(12, 20, seed=1, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert torch.equal(product(x, weight), x @ weight.T)
    assert calls == []


def test_autocast_is_left_to_pytorch(calls: list[torch.Size]) -> None:
    layer = Linear(20, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(drawn(7, 20)).dtype == torch.bfloat16
    assert calls == []
    assert layer(drawn(7, 20)).dtype == torch.float32
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("capability", "maker", "is_wider"),
    [
        ("AVX512", "AuthenticAMD", HAS_ONEDNN),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("DEFAULT", "", False),
    ],
)
def test_the_processor_decides(
    capability: str, maker: str, is_wider: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(module, "processor_fact", {"vendor_id": maker}.get)
    assert onednn_is_wider.__wrapped__() is is_wider


@pytest.mark.usefixtures("torch_settings", "generators_of_their_own")
def test_a_pipeline_equals_single_mode(calls: list[torch.Size], folder: Callable[[], Path]) -> None:
    single, pipelined = (Job(folder(), 3, loss={"name": "predsim"}) for _ in range(2))
    SingleTrainer(single.run).run()
    assert calls != []
    train_pipelined(pipelined)
    assert pipelined.store.files == single.store.files
