"""A few drawn configs; `python tests/fuzz/configs.py` draws 300."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from support.run_in_threads import TREE, Job

from fuzz import configs
from fuzz.configs import Drawn, check, folders

pytestmark = pytest.mark.usefixtures("torch_settings")


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(configs.configs())
def test_a_drawn_config_gives_the_same_bytes_however_it_is_trained(drawn: Drawn) -> None:
    with folders() as folder:
        check(drawn, folder)


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    train = configs.train_pipelined

    def train_otherwise(job: Job, *fates: Any) -> None:
        train(job, *fates)
        if fates:
            job.store.files[max(job.store.files)][1] += b"x"

    monkeypatch.setattr(configs, "train_pipelined", train_otherwise)
    drawn = Drawn({"data": TREE["data"]}, {"seed": 1}, (2, 1), (0, 9))
    with folders() as folder, pytest.raises(AssertionError, match="with a worker lost"):
        check(drawn, folder)
