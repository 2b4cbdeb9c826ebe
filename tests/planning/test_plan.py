"""Dividing and placing, against drawings, the design's bounds and exhaustive search."""

from __future__ import annotations

import json
import random
import time
from itertools import combinations, pairwise, product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.sections import build_config
from pipeline.data.facts import data_facts
from pipeline.errors import ConfigError
from pipeline.network.from_config import build_specs
from pipeline.network.specs import BlockSpec, LayerSpec
from pipeline.planning import placement as searches
from pipeline.planning.cost import BlockCost, block_costs
from pipeline.planning.placement import busiest, drawn_together, most_even_cuts, place, relieved
from pipeline.planning.plan import (
    Plan,
    make_plan,
    speedup_bound_consecutive,
    speedup_bound_free,
    stage_cost,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def cost(block: int, macs: int) -> BlockCost:
    return BlockCost(block, 1, 1, macs, macs, 4, 16, 8)


def spec(index: int, output: bool) -> BlockSpec:
    layer = LayerSpec("linear", 8, 8)
    weight = 1.0 if output else None
    return BlockSpec(index, (8,), layer, (8,), (8,), 8, output_weight=weight, same_stage=output)


def plan_of(loads: Sequence[int], stages: int | None, devices: Sequence[str] = ("cpu",)) -> Plan:
    """Plan of a network of `loads`, whose last one is the output block."""
    specs = [spec(index, index == len(loads) - 1) for index in range(len(loads))]
    costs = [cost(block, macs) for block, macs in enumerate(loads)]
    return make_plan(specs, costs, stages=stages, devices=devices)


def groups(plan: Plan) -> list[tuple[int, ...]]:
    return [stage.blocks for stage in plan.stages]


@pytest.fixture(scope="module")
def vgg() -> tuple[tuple[BlockSpec, ...], tuple[BlockCost, ...]]:
    """VGG11B(3x), predsim, CIFAR-10."""
    tree = {
        "model": {"name": "vgg11b", "feat_mult": 3},
        "loss": {"name": "predsim"},
        "data": {"name": "cifar10"},
    }
    config = build_config(tree, "test")
    facts = data_facts(config.data)
    specs = build_specs(config.model, config.loss, "leaky_relu", facts.shape, facts.classes)
    costs = block_costs(
        specs, batch_size=128, element_bytes=4, optimizer_name="adam", backprop=False
    )
    return specs, costs


def test_the_drawing_at_the_top_of_the_file() -> None:
    plan = plan_of([1, 2, 9, 4, 4, 6, 0], 4, ["a", "b", "c"])
    assert groups(plan) == [(0, 1), (2,), (3, 4), (5, 6)]
    assert [stage.device for stage in plan.stages] == ["a", "b", "c", "a"]


def test_one_stage_per_hidden_layer_unless_told_otherwise() -> None:
    assert groups(plan_of([1, 2, 3, 4], None)) == [(0,), (1,), (2, 3)]


def test_the_output_block_is_never_alone() -> None:
    assert groups(plan_of([1, 1, 50], 2)) == [(0,), (1, 2)]


def test_even_stages_then_early_cuts() -> None:
    """The block of 9 is the slowest in any case; the rest is shared out evenly."""
    assert groups(plan_of([9, 1, 1, 1, 1, 0], 3)) == [(0,), (1, 2), (3, 4, 5)]
    assert groups(plan_of([1, 1, 1, 0], 2)) == [(0,), (1, 2, 3)]


def test_placement_is_the_best_of_all() -> None:
    source = random.Random(2)
    for _ in range(150):
        loads = [source.randrange(1, 12) for _ in range(source.randrange(1, 7))]
        traffic = [source.randrange(1, 4) for _ in loads[1:]]
        n_devices = source.randrange(1, 5)
        used = min(n_devices, len(loads))
        every = (
            placement
            for placement in product(range(used), repeat=len(loads))
            if len(set(placement)) == used
        )
        best = min(searches._merit(loads, placement, traffic) for placement in every)
        found = place(loads, n_devices, traffic)
        assert searches._merit(loads, found, traffic) == best, (loads, n_devices, found)
        assert len(set(found)) == used


def test_many_stages_are_placed_within_a_percent_of_what_is_possible() -> None:
    source = random.Random(3)
    for n_devices in (3, 8, 20):
        loads = [source.randrange(50, 150) for _ in range(200)]
        found = place(loads, n_devices)
        quick = searches._placed_longest_first(loads, n_devices)
        assert len(set(found)) == n_devices
        assert busiest(loads, found) <= busiest(loads, quick)
        assert busiest(loads, found) <= 1.01 * sum(loads) / n_devices


def test_relief_by_hand() -> None:
    """9 | 5 4 | 3 3: nothing helps; 9 3 | 5 | 3: 9 and 5 change places."""
    assert relieved([9, 5, 4, 3, 3], [0, 1, 1, 2, 2]) == (0, 1, 1, 2, 2)
    assert relieved([9, 3, 5, 3], [0, 0, 1, 2]) == (0, 1, 1, 2)


def test_drawing_together_by_hand() -> None:
    """4 2 | 4 2 on turns: 2 and 4 change places where as much is sent; nobody gets busier."""
    assert drawn_together([4, 2, 4, 2], [0, 1, 1, 0], [5, 1, 5]) == (0, 0, 1, 1)
    assert drawn_together([4, 2], [0, 1], [5]) == (0, 1)  # neither gets idle
    assert drawn_together([6, 2, 4], [0, 1, 1], [9, 1]) == (0, 1, 1)  # or busier than the busiest


@pytest.mark.parametrize(("stages", "n_devices"), [(20, 8), (40, 16), (60, 8), (120, 20)])
def test_large_placements_are_as_even_as_quick_ones_and_send_less(
    stages: int, n_devices: int
) -> None:
    source = random.Random(stages)
    for _ in range(5):
        loads = [source.randrange(1, 1000) for _ in range(stages)]
        traffic = [source.randrange(1, 100) for _ in loads[1:]]
        found = place(loads, n_devices, traffic)
        quick = relieved(loads, searches._placed_longest_first(loads, n_devices))
        assert len(set(found)) == n_devices
        assert searches._merit(loads, found, traffic) < searches._merit(loads, quick, traffic)


def test_free_placement_by_hand() -> None:
    assert place([5, 5, 5, 5], 2) == (0, 0, 1, 1)
    assert place([6, 1, 6, 1], 2) == (0, 0, 1, 1)
    assert place([3, 3, 2, 2, 2], 2) == (0, 0, 1, 1, 1)
    assert place([8, 1, 1, 8], 3) == (0, 1, 1, 2)
    assert place([7], 3) == (0,)


def test_searches_stop_at_their_limits_with_a_placement_no_worse_than_the_quick_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = random.Random(3)
    loads = [source.randrange(1, 10**9) for _ in range(40)]
    monkeypatch.setattr(searches, "_NODE_LIMIT", 500)
    searched = busiest(loads, place(loads, 7))
    assert searched <= busiest(loads, searches._placed_longest_first(loads, 7))
    assert searched <= busiest(loads, searches._placed_consecutively(loads, 7))


def test_many_equal_stages_stay_with_their_neighbours() -> None:
    placement = place([3] * 100, 4)
    assert placement == tuple(stage // 25 for stage in range(100))


def test_bounds_of_the_design(
    vgg: tuple[tuple[BlockSpec, ...], tuple[BlockCost, ...]],
) -> None:
    _, costs = vgg
    assert f"{speedup_bound_consecutive(costs, 4):.2f}" == "2.92"
    assert f"{speedup_bound_free(costs, 4):.2f}" == "3.83"
    assert speedup_bound_consecutive(costs, 1) == speedup_bound_free(costs, 1) == 1
    assert f"{speedup_bound_consecutive(costs, 10):.2f}" == "3.83"
    assert f"{speedup_bound_free(costs, 10):.2f}" == "3.83"


def test_ten_stages_on_four_devices_reach_the_bound(
    vgg: tuple[tuple[BlockSpec, ...], tuple[BlockCost, ...]],
) -> None:
    specs, costs = vgg
    plan = make_plan(specs, costs, stages=10, devices=["cuda:0", "cuda:1", "cuda:2", "cuda:3"])
    assert groups(plan) == [*((block,) for block in range(9)), (9, 10)]
    alone = [stage.device for stage in plan.stages if stage.blocks in [(3,), (5,)]]
    assert [stage.device for stage in plan.stages].count(alone[0]) == 1
    assert [stage.device for stage in plan.stages].count(alone[1]) == 1
    stages = [stage_cost([costs[b] for b in s.blocks]) for s in plan.stages]
    assert f"{speedup_bound_free(stages, 4):.2f}" == "3.83"


def test_a_device_each_in_order_where_there_are_enough(
    vgg: tuple[tuple[BlockSpec, ...], tuple[BlockCost, ...]],
) -> None:
    devices = [f"cuda:{number}" for number in range(12)]
    plan = make_plan(*vgg, stages=10, devices=devices)
    assert [stage.device for stage in plan.stages] == devices[:10]


def test_all_devices_are_used_where_no_multiply_adds_are_known() -> None:
    devices = [f"cuda:{number}" for number in range(4)]
    plan = plan_of([0, 0, 0, 0, 0], 4, devices)
    assert [stage.device for stage in plan.stages] == devices


def test_too_many_stages_is_an_error_with_numbers_and_cure(
    vgg: tuple[tuple[BlockSpec, ...], tuple[BlockCost, ...]],
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(*vgg, stages=11, devices=["cpu"])
    assert str(caught.value) == (
        "--stages 11: every stage needs a hidden layer, and the model "
        "(conv 3→384 … output 1024→10) has 10; use --stages 10 or fewer"
    )


@pytest.mark.parametrize("stages", [0, -1])
def test_fewer_than_one_stage_is_an_error(stages: int) -> None:
    with pytest.raises(ConfigError, match=f"--stages {stages}: at least 1 .* use 1 to 2"):
        plan_of([1, 1, 0], stages)


def test_tree_is_json() -> None:
    plan = plan_of([2, 1, 0], 2, ["cuda:0", "cuda:1"])
    tree = plan.tree([cost(0, 2)])
    assert json.loads(json.dumps(tree)) == tree
    assert tree["stages"] == [
        {"stage": 0, "device": "cuda:0", "blocks": [0]},
        {"stage": 1, "device": "cuda:1", "blocks": [1, 2]},
    ]
    assert tree["costs"][0]["train_macs"] == 2
    assert tree["costs"][0]["memory_bytes"] == 24


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_even_cuts_are_the_best_of_all(loads: list[int], data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, len(loads)))
    ways = [(0, *inner, len(loads)) for inner in combinations(range(1, len(loads)), groups - 1)]

    def merit(cuts: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        sums = [sum(loads[start:end]) for start, end in pairwise(cuts)]
        return max(sums), sum(total**2 for total in sums), cuts

    best = min(ways, key=merit)
    assert most_even_cuts(loads, groups) == best


@pytest.mark.parametrize(("n_stages", "n_devices"), [(1024, 1), (1024, 8), (300, 100), (8, 8)])
def test_a_thousand_blocks_are_planned_soon(n_stages: int, n_devices: int) -> None:
    """Of some costs each, so that there is much to choose from; it took minutes."""
    loads = [1000 + n * 7919 % 997 for n in range(1024)]
    begun = time.process_time()
    cuts = most_even_cuts(loads, n_stages)
    sums = [sum(loads[start:end]) for start, end in pairwise(cuts)]
    placement = place(sums, n_devices, [n * 31 % 17 for n in range(n_stages - 1)])
    assert time.process_time() - begun < 12
    assert len(set(placement)) == min(n_devices, n_stages)
