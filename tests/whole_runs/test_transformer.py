"""The example's transformer: a local next-character head for each block, the same on every way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformer
from support.run_in_threads import Job, check_resumed, train_single, trained_alike

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.network.from_config import network_specs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")

TEXT = "the cat sat on the mat, and the dog sat on the cat. " * 12


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    kwargs = {"path": str(text), "length": 12}
    return {
        "model": {
            "factory": "transformer:network",
            "kwargs": {"vocabulary": len(set(TEXT)), "width": 8, "blocks": 2},
        },
        "loss": {"rule": "transformer:NextCharacter"},
        "data": {"factory": "text_data:characters", "kwargs": kwargs, "batch_size": 8},
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transformer_trains_the_same_in_a_pipeline(
    precision: str, sections: dict[str, Any], folder: Callable[[], Path]
) -> None:
    given = {**sections, "precision": precision, "checkpoint_every_steps": 2}
    check_resumed(trained_alike(folder, 3, **given), folder, 4, 2, **given)


def test_shapes_of_what_arrives(sections: dict[str, Any]) -> None:
    config = build_config({"schedule": {"epochs": 1}, **sections}, "test")
    specs = network_specs(config, data_facts(config.data))
    assert [spec.in_training.shape for spec in specs] == [(12,), (12, 8), (12, 8)]
    assert [spec.is_last for spec in specs] == [False, False, True]


def test_it_sees_nothing_of_what_comes() -> None:
    torch.manual_seed(0)
    network = transformer.network(20, width=8, blocks=2)
    ids = torch.randint(20, (1, 10))
    other = ids.clone()
    other[0, 6:] = (other[0, 6:] + 1) % 20
    one, two = network(ids), network(other)
    torch.testing.assert_close(one[0, :6], two[0, :6])
    assert not torch.allclose(one[0, 6:], two[0, 6:])


def test_speed_counts_examples_and_errors_count_characters(
    sections: dict[str, Any], folder: Callable[[], Path]
) -> None:
    job = Job(folder(), 2, **sections)
    train_single(job)
    assert job.run.feed.course.predictions == 12
    line = json.loads((job.folder / "metrics.jsonl").read_text().splitlines()[0])
    examples = job.run.batches.facts.train_images
    assert line["images_per_s"] * line["seconds"] == pytest.approx(examples, rel=0.05)
    assert 0 < line["train"]["error_pct"] < 100
