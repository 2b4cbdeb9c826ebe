"""What is counted of losses, and of what a test takes for what."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.blocks import block_of, ignored, loss_of, specs_of, stage_of
from torch.nn import functional as F

from pipeline.learning import stage as stage_module
from pipeline.learning.counters import Confusion, Counters
from pipeline.learning.losses import LossValue
from pipeline.schedule.reports import Tally, rows_of

if TYPE_CHECKING:
    from pipeline.network.specs import BlockSpec

CPU = torch.device("cpu")
SHAPE, CLASSES = (1, 3, 4), 4


def specs(**loss: Any) -> tuple[BlockSpec, ...]:
    model = {"name": "mlp", "hidden_layers": 2, "hidden": 7}
    return specs_of(model, {"dim_in_decoder": 16, **loss}, SHAPE, CLASSES)


def a_batch(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.arange(n) % CLASSES


def test_losses_are_made_of_their_parts() -> None:
    """Whatever they are weighted by; these learn nothing from what is counted."""
    x, labels = a_batch()
    for spec in specs(name="predsim", beta=0.7)[:-1]:
        block = block_of(spec)
        value = loss_of(block, block(x.flatten(1), batch_id=1), labels, x)
        entropy, matching = value.cross_entropy, value.similarity
        assert entropy is not None
        assert matching is not None
        assert not entropy.requires_grad
        assert not matching.requires_grad
        torch.testing.assert_close(value.loss, 0.3 * entropy + 0.7 * matching)
        x = torch.randn(6, 7, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ({"name": "pred"}, (True, False)),
        ({"name": "sim"}, (False, True)),
        ({"name": "predsim", "bio": True, "target_projection": 9}, (True, True)),
        ({"name": "sim", "unsupervised": "sim", "alpha": 1.0}, (False, True)),
    ],
)
def test_what_a_loss_lacks_is_none(loss: dict[str, Any], parts: tuple[bool, bool]) -> None:
    stage = stage_of(specs(**loss))
    stage.train(*a_batch(), batch_id=1, lr=0.1, send=ignored)
    for tally in stage.training.read()[:-1]:
        found = tally.cross_entropy, tally.similarity
        assert tuple(part is not None for part in found) == parts


def test_the_outputs_cross_entropy_is_not_weighted() -> None:
    stage = stage_of(specs(name="predsim", beta=0.75))
    for batch_id, n in ((1, 6), (2, 3)):
        stage.train(*a_batch(n), batch_id=batch_id, lr=0.1, send=ignored)
        stage.evaluate(*a_batch(n), send=ignored)
    for counters in (stage.training, stage.evaluation):
        tally = counters.read()[-1]
        assert tally.loss is not None
        assert tally.cross_entropy == pytest.approx(4 * tally.loss)
        assert tally.similarity is None


def test_sums_go_on_from_those_of_a_snapshot() -> None:
    values = [torch.tensor(float(k)) for k in (2, 3, 5)]
    counters = Counters([7], CPU)
    counters.add(7, LossValue(values[0], None, values[1], values[2]), 4)
    (before,) = counters.read()
    assert before == Tally(7, 4, 8.0, None, 12.0, 20.0)
    counters.reset([before])
    assert counters.read() == (before,)
    counters.add(7, LossValue(values[0], None, values[1], values[2]), 1)
    assert counters.read() == (Tally(7, 5, 10.0, None, 15.0, 25.0),)


def test_parts_that_an_earlier_version_did_not_count_are_unknown() -> None:
    """Not those of the images that came after: an epoch's mean would be wrong."""
    values = [torch.tensor(float(k)) for k in (2, 3)]
    counters = Counters([7], CPU)
    counters.reset([Tally(7, 4, 8.0, None)])
    assert counters.read() == (Tally(7, 4, 8.0, None),)
    counters.add(7, LossValue(values[0], None, values[1]), 1)
    (tally,) = counters.read()
    assert tally.cross_entropy_sum is not None
    assert isnan(tally.cross_entropy_sum)
    assert replace(tally, cross_entropy_sum=None) == Tally(7, 5, 10.0, None)
    counters.reset()
    counters.add(7, LossValue(values[0], None, values[1]), 1)
    assert counters.read() == (Tally(7, 1, 2.0, None, 3.0),)


# --- what a test takes for what -----------------------------------------------------------


def test_a_test_counts_what_it_takes_for_what() -> None:
    stage = stage_of(specs(name="pred"))
    expected = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for n in (6, 3):
        x, labels = a_batch(n)
        stage.train(x, labels, batch_id=n, lr=0.5, send=ignored)
    for n in (6, 3):
        x, labels = a_batch(n)
        stage.evaluate(x, labels, send=ignored)
        scores = stage.scores(x, labels)[-1]
        assert scores is not None
        expected += F.one_hot(labels, CLASSES).T @ F.one_hot(scores.argmax(1), CLASSES)
    found = rows_of(stage.confusion.read())
    assert found == tuple(map(tuple, expected.tolist()))
    (tally,) = stage.evaluation.read()
    assert tally.errors == expected.sum() - expected.trace()
    stage.confusion.reset()
    assert stage.confusion.read() == ()


def test_predictions_at_several_places_are_counted() -> None:
    confusion = Confusion(CPU)
    confusion.add(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 0]]), 2)
    assert rows_of(confusion.read()) == ((1, 2), (0, 1))


def test_of_many_classes_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "MOST_CLASSES", CLASSES - 1)
    stage = stage_of(specs(name="pred"))
    stage.evaluate(*a_batch(), send=ignored)
    assert stage.confusion.read() == ()
