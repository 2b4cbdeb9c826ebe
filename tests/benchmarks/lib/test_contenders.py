"""What contenders are told to train, and what becomes of it in another process."""

from __future__ import annotations

import pytest

from benchmarks.lib.contenders import NETWORKS, Contender, Task, task_of
from benchmarks.rivals.onef1b import even_plan


def task(network: str, contender: Contender, *changes: str) -> Task:
    return Task(network, contender, "cpu", 1, 2.0, changes)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_a_config_and_crosses_to_a_rival(network: str) -> None:
    given = task(network, Contender("plain", "sim", "fp32"), "model.hidden=32")
    config = given.config()
    assert (config.data.name, config.data.batch_size, config.model.hidden) == ("synthetic", 128, 32)
    assert task_of(given.text()) == given


def test_1f1b_divides_the_same_layers_evenly() -> None:
    rival = task("vgg8b_quarter", Contender("1f1b", "glob", "fp32", 3))
    specs, plan = even_plan(rival)
    blocks = [block for stage in plan.stages for block in stage.blocks]
    assert (plan.n_stages, blocks) == (3, list(range(len(specs))))
    assert not any(spec.pred or spec.sim for spec in specs)


def test_one_process_on_several_cores_has_the_threads_of_all() -> None:
    asked = task("mlp", Contender("single", "glob", "fp32", cores=2))
    assert asked.config().runtime.threads_per_stage == 2 * asked.threads
    assert asked.contender.name == "single glob fp32 on 2 cores"


def test_compiled_contenders_say_so_in_their_config() -> None:
    single = Contender("single", "pred", "bf16")
    assert not task("mlp", single).config().runtime.compile
    compiled = Contender("single", "pred", "bf16", compiled=True)
    assert task("mlp", compiled).config().runtime.compile
