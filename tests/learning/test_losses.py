"""The local losses against slow explicit forms of the equations, and their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import block_of, loss_of, specs_of
from torch import Tensor
from torch.nn.functional import mse_loss, one_hot

from pipeline.dtypes import wide
from pipeline.learning import built_in
from pipeline.learning.losses import prediction_loss, similarity_loss, similarity_matrix

if TYPE_CHECKING:
    from pipeline.network.specs import BlockSpec


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def slow_similarity(x: Tensor) -> Tensor:
    """S(x) entry by entry, in Python's own numbers."""
    vectors = [_features(example) for example in x]
    n = len(vectors)
    matrix = [[_cosine(vectors[i], vectors[j]) for j in range(n)] for i in range(n)]
    return torch.tensor(matrix, dtype=torch.float64)


def _features(example: Tensor) -> list[float]:
    if example.dim() == 3 and example.size(0) > 3 and example.size(1) > 1:
        values = [_deviation(channel.flatten().tolist()) for channel in example]
    else:
        values = example.flatten().tolist()
    mean = sum(values) / len(values)
    centred = [value - mean for value in values]
    norm = 1e-8 + sum(value * value for value in centred) ** 0.5
    return [value / norm for value in centred]


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def _cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return max(-1.0, min(1.0, product))


@pytest.mark.parametrize(
    "shape",
    [
        (5, 7),  # after a linear block
        (4, 6, 3, 3),  # feature maps: deviation over space
        (4, 4, 2, 1),  # just enough channels and height
        (3, 3, 4, 4),  # an image of 3 channels is flattened
        (3, 8, 1, 5),  # no height: flattened
        (3, 8, 1, 1),
        (1, 9),
    ],
)
def test_similarity_matrix_is_the_explicit_one(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    found = similarity_matrix(x)
    assert found.shape == (shape[0], shape[0])
    torch.testing.assert_close(found, slow_similarity(x), rtol=1e-12, atol=1e-12)
    assert torch.allclose(found, found.T, rtol=0, atol=1e-15)
    assert found.abs().max() <= 1.0


def test_similarity_of_examples_without_any_difference_is_zero_and_has_a_gradient() -> None:
    for x in (torch.ones(3, 5), torch.zeros(3, 6, 2, 2)):
        x.requires_grad_()
        found = similarity_matrix(x)
        assert torch.equal(found.detach(), torch.zeros(3, 3))
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(6, 5), (6, 6, 3, 3), (6, 3, 4, 4), (1, 9)])
@pytest.mark.parametrize("weight", [1.0, 0.01])
def test_similarity_loss_has_the_gradient_of_its_formula(
    shape: tuple[int, ...], weight: float
) -> None:
    x = random(*shape)
    if len(x) > 2:
        x[1], x[2] = 3 * x[0], 0.5  # one parallel to another, one without any difference
    target = one_hot(torch.arange(len(x)) % 3, 3).double()
    x.requires_grad_()
    formula = mse_loss(similarity_matrix(x), similarity_matrix(target))
    (expected,) = torch.autograd.grad(weight * formula, x)
    loss = similarity_loss(x, target)
    torch.testing.assert_close(loss, formula, rtol=1e-15, atol=0)
    (found,) = torch.autograd.grad(weight * loss, x)
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-38, 1e-12, 1.0, 1e12, 1e25])
def test_one_example_out_of_scale_spoils_no_gradient(scale: float) -> None:
    """In float32 the length of the largest is infinite, its direction zero, the loss finite."""
    x = random(6, 5).float()
    x[2] *= scale
    target = one_hot(torch.arange(6) % 3, 3).float()
    x.requires_grad_()
    formula = mse_loss(similarity_matrix(x), similarity_matrix(target))
    (expected,) = torch.autograd.grad(formula, x)
    (found,) = torch.autograd.grad(similarity_loss(x, target), x)
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_prediction_loss_is_cross_entropy_and_counts_what_is_wrong() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    value = prediction_loss(logits, torch.tensor([0, 0, 0]))
    chosen = [2.0, 0.0, 3.0]
    sums = [torch.logsumexp(row, 0).item() for row in logits]
    expected = sum(total - right for total, right in zip(sums, chosen, strict=True)) / 3
    assert value.loss.item() == pytest.approx(expected, rel=1e-12)
    assert value.errors is not None
    assert value.errors.item() == 1


def test_smoothed_labels_have_a_share_in_common() -> None:
    logits, labels = random(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = 0.7 * one_hot(labels, 4).double() + 0.3 / 4
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    value = prediction_loss(logits, labels, 0.3)
    torch.testing.assert_close(value.loss, expected, rtol=1e-14, atol=1e-14)
    assert value.errors == prediction_loss(logits, labels).errors


@pytest.mark.parametrize(("name", "weight"), [("pred", 1.0), ("predsim", 0.25), ("glob", 1.0)])
def test_labels_are_smoothed_in_training_and_not_in_tests(name: str, weight: float) -> None:
    loss = {"name": name, "beta": 0.75, "label_smoothing": 0.3}
    model = {"name": "mlp", "hidden": 6, "batch_norm": False}
    for spec in specs_of(model, loss, (2, 3, 3), 3):
        block, labels = block_of(spec), torch.tensor([0, 1, 2, 0])
        if not (spec.is_output or spec.pred):
            continue
        x, found = random(4, *spec.in_shape), []
        for smoothing, batch_id in ((0.3, 1), (0.0, None)):
            h = block(x, batch_id=batch_id)
            logits = h if block.pred is None else block.pred(h)
            expected = weight * prediction_loss(logits, labels, smoothing).loss
            if block.sim is not None:
                expected += 0.75 * similarity_loss(block.sim(h), one_hot(labels, 3).double())
            found.append(loss_of(block, h, labels, x).loss)
            torch.testing.assert_close(found[-1], expected, rtol=1e-12, atol=1e-12)
        assert found[0] != found[1]


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_wide_is_at_least_float32(given: torch.dtype) -> None:
    assert wide(torch.zeros(2, dtype=given)).dtype == torch.promote_types(given, torch.float32)


# --- through a block ----------------------------------------------------------------------


def specs(loss: str, kind: str) -> tuple[BlockSpec, ...]:
    """The first block is of this kind, the last one the output."""
    model = {"name": "vgg", "layers": [5, "M"]} if kind == "conv" else {"name": "mlp"}
    return specs_of({"hidden": 6, **model}, {"name": loss, "dim_in_decoder": 10}, (2, 3, 3), 3)


@pytest.mark.parametrize("loss", ["pred", "sim", "predsim"])
def test_errors_are_those_of_the_prediction_where_there_is_one(loss: str) -> None:
    block = block_of(specs(loss, "linear")[0])
    labels, h = torch.tensor([0, 1, 2, 0]), random(4, 6)
    errors = loss_of(block, h, labels, h).errors
    assert errors == (prediction_loss(block.pred(h), labels).errors if block.pred else None)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_losses_are_float32_under_bf16(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, torch.dtype, bool]] = []

    def watched(name: str) -> None:
        true = getattr(built_in, name)

        def call(x: Tensor, *rest: Any) -> Any:
            seen.append((name, x.dtype, torch.is_autocast_enabled("cpu")))
            return true(x, *rest)

        monkeypatch.setattr(built_in, name, call)

    watched("output_loss")
    watched("prediction_loss")
    watched("similarity_loss")
    first, *_, last = specs("predsim", kind)
    hidden, output = (block_of(spec, dtype=torch.float32, bf16=True) for spec in (first, last))
    labels = torch.tensor([0, 1, 2, 0])
    h = hidden(torch.rand(4, 2, 3, 3), batch_id=1)
    assert h.dtype == torch.bfloat16
    assert loss_of(hidden, h, labels, h).loss.dtype == torch.float32
    logits = output(torch.rand(4, *output.spec.in_shape), batch_id=1)
    assert logits.dtype == torch.bfloat16
    assert loss_of(output, logits, labels, logits).loss.dtype == torch.float32
    assert seen == [
        ("prediction_loss", torch.float32, False),
        ("similarity_loss", torch.float32, False),
        ("output_loss", torch.float32, False),
    ]


def test_bf16_similarity_is_that_of_the_rounded_activation() -> None:
    """The similarity adds no rounding of its own to that of its bfloat16 input."""
    block = block_of(specs("sim", "linear")[0], dtype=torch.float32, bf16=True)
    assert block.sim is not None
    h, labels = random(4, 6).bfloat16(), torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mapped = block.sim(h)
    assert mapped.dtype == torch.bfloat16
    expected = similarity_loss(mapped.float(), one_hot(labels, 3).float())
    assert torch.equal(loss_of(block, h, labels, h).loss, expected)
