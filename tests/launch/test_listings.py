"""What there is to choose from: each name that a config takes, with words of its own."""

from __future__ import annotations

from typing import get_args

import pytest
from click.testing import CliRunner

from launch import listings
from launch.cli import main
from pipeline.config.data import DataName
from pipeline.config.loss import LossConfig
from pipeline.config.model import MODEL_NAMES
from pipeline.rules import SHIPPED

NAMES = {
    "models": (*MODEL_NAMES, "wrn-DEPTH-WIDTH"),
    "data": get_args(DataName),
    "losses": get_args(LossConfig.model_fields["name"].annotation),
    "rules": tuple(SHIPPED),
}


@pytest.mark.parametrize("what", NAMES)
def test_every_name_is_listed_with_words_of_its_own(what: str) -> None:
    _, entries = listings.LISTINGS[what]
    found = list(entries())
    assert tuple(entry.name for entry in found) == NAMES[what]
    alike = 3 if what == "data" else 1  # MNIST, and the two in its format
    assert len({entry.about for entry in found}) == len(found) - alike + 1
    assert all(len(entry.about) > 10 and "\n" not in entry.about for entry in found)


def test_rules_have_their_papers_and_options() -> None:
    rules = {entry.name: entry for entry in listings.rules()}
    assert rules["DGL"].about.startswith("Decoupled greedy learning: each block learns")
    assert rules["DGL"].source == (
        'Belilovsky, Eickenberg & Oyallon, "Decoupled Greedy Learning of CNNs" (ICML 2020)'
    )
    assert rules["DGL"].more == "auxiliary: mlp-sr, hidden: 256"
    assert all('"' in entry.source for entry in rules.values())


def test_a_listing_is_a_table_and_starts_nothing() -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["--list", "data"])
    assert result.exit_code == 0
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any(row.startswith("mnist 1 × 28 × 28 pixels, 10 classes, 60,000") for row in rows)
