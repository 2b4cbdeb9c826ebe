"""A plan's stages on the devices of several hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.planning.cost import BlockCost
from pipeline.planning.hosts import (
    Host,
    Place,
    devices_of,
    host_of,
    local_name,
    on_hosts,
    planned_devices,
    this_machine,
)
from pipeline.planning.plan import Plan, StagePlan

if TYPE_CHECKING:
    from collections.abc import Sequence

GPUS = ("cuda:0", "cuda:1")


def plan(*devices: str) -> Plan:
    return Plan(tuple(StagePlan(k, (k,), device) for k, device in enumerate(devices)))


def costs(*sent_bytes: int) -> list[BlockCost]:
    """Of a block for each stage."""
    return [BlockCost(k, 1, 1, 1, 1, sent, 1, 1) for k, sent in enumerate(sent_bytes)]


def placed(devices: Sequence[str], hosts: Sequence[Host], *sent_bytes: int) -> list[str]:
    sent = sent_bytes or (1,) * len(devices)
    found = on_hosts(plan(*devices), costs(*sent), hosts)
    assert [stage.blocks for stage in found.stages] == [(k,) for k in range(len(devices))]
    return [stage.device for stage in found.stages]


def cpus(**rooms: int) -> list[Host]:
    return [Host(name, "10.0.0.1", ("cpu",), room) for name, room in rooms.items()]


def test_the_machine_of_the_launcher_keeps_its_names() -> None:
    alone = [this_machine(GPUS)]
    assert planned_devices(alone) == devices_of(alone) == GPUS
    assert placed(["cuda:0", "cuda:1", "cuda:0"], alone) == ["cuda:0", "cuda:1", "cuda:0"]
    assert placed(["cpu"] * 3, [this_machine(("cpu",))]) == ["cpu"] * 3


def test_devices_are_called_after_their_hosts() -> None:
    hosts = [Host("a", "10.0.0.1", GPUS), Host("b", "10.0.0.2", ("cuda:0",))]
    assert planned_devices(hosts) == ("a/cuda:0", "a/cuda:1", "b/cuda:0")
    assert (host_of("a/cuda:1"), local_name("a/cuda:1")) == ("a", "cuda:1")
    assert (host_of("cpu"), local_name("cpu")) == ("", "cpu")
    assert Place(hosts[0], "cuda:1").name == "a/cuda:1"
    assert Place(this_machine(GPUS), "cuda:1").name == "cuda:1"


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ({"a": 2, "b": 1, "c": 1}, ["a", "a", "b", "c"]),
        ({"a": 8, "b": 8}, ["a", "a", "a", "a"]),
        ({"a": 0, "b": 3, "c": 1}, ["b", "b", "b", "c"]),
        ({"a": 1, "b": 1}, ["a", "b", "host-to-come", "host-to-come"]),
    ],
)
def test_a_host_is_filled_before_the_next_one(rooms: dict[str, int], expected: list[str]) -> None:
    assert planned_devices(cpus(**rooms)) == ("cpu",)
    assert placed(["cpu"] * 4, cpus(**rooms)) == [f"{name}/cpu" for name in expected]


def test_gpus_that_send_much_to_each_other_share_a_host() -> None:
    """Of four GPUs on two hosts, those of stages 1 and 2 exchange most."""
    hosts = [Host("a", "10.0.0.1", GPUS), Host("b", "10.0.0.2", GPUS)]
    w, x, y, z = planned_devices(hosts)
    assert placed([w, x, y, z], hosts, 9, 1, 9, 0) == [w, x, y, z]
    found = placed([w, x, y, z], hosts, 1, 9, 1, 0)
    assert host_of(found[1]) == host_of(found[2])
    assert sorted(found) == [w, x, y, z]


def test_stages_of_one_gpu_stay_together() -> None:
    hosts = [Host("a", "10.0.0.1", ("cuda:0",)), Host("b", "10.0.0.2", ("cuda:0",))]
    one, other = planned_devices(hosts)
    assert placed([one, other, one], hosts, 5, 5, 0) == [one, other, one]
