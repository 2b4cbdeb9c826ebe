"""The example that makes token ids of a text."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING

import numpy as np
from support import REPOSITORY

from pipeline.data.own_data import own_data

if TYPE_CHECKING:
    from pathlib import Path

characters = runpy.run_path(str(REPOSITORY / "examples/text_data.py"))["characters"]


def test_targets_are_the_next_characters(tmp_path: Path) -> None:
    text = "To be, or not to be: ünglücklich. " * 9
    (tmp_path / "some.txt").write_text(text, encoding="utf-8")
    own = own_data(characters(str(tmp_path / "some.txt"), length=7, test_share=0.25))
    assert own.names == tuple(sorted(set(text)))
    assert own.test
    assert (len(own.training), len(own.test)) == (32, 11)
    for start in (0, 1):
        arrays = (own.training, own.test)
        ids = np.concatenate([(part.y if start else part.x).ravel() for part in arrays])
        assert "".join(own.names[number] for number in ids) == text[start : start + 43 * 7]


def test_the_repositorys_own_documents_are_a_text() -> None:
    own = own_data(characters(length=32))
    assert own.training.x.shape[1:] == own.training.y.shape[1:] == (32,)
    assert len(own.training) > 1000
    assert "e" in own.names
