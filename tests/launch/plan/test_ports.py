"""Ports that can't suffice for what the hosts of a cluster are to run; where there are enough."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from launch.job import Options
from launch.plan.checks import make_job
from pipeline.errors import ConfigError
from pipeline.planning.hosts import Host

if TYPE_CHECKING:
    from pathlib import Path

HERE = "127.0.0.1"


def planned(tiny: Path, ports: str, *rooms: int, **options: Any) -> list[str]:
    """The host of each process, where host a, with the launcher, b, … have so many CPUs."""
    hosts = [
        Host(name, HERE if name == "a" else f"10.0.0.{room}", ("cpu",), room)
        for name, room in zip("abc", rooms, strict=False)
    ]
    cluster: Any = SimpleNamespace(address=HERE, hosts=lambda wanted: tuple(hosts))
    overrides = (f"runtime.ports={ports}",)
    job = make_job(Options(tiny, engine="ray", overrides=overrides, **options), cluster)
    return [stage.host for stage in job.plan.stages]


def test_as_many_ports_as_the_fullest_host_needs(tiny: Path) -> None:
    assert planned(tiny, "21000-21003", 1, 2, stages=3) == ["a", "b", "b"]
    assert planned(tiny, "21000-21002", 1, 1, stages=3) == ["a", "b", "host-to-come"]
    assert planned(tiny, "21000-21004", 1, 1, data_parallel=2) == ["a", "b"]


@pytest.mark.parametrize(
    ("ports", "rooms", "options", "said"),
    [
        ("21000-21002", (1, 2), {"stages": 3}, "3 ports, and host b needs 4 for stages 1, 2"),
        ("21000-21001", (1, 2), {"stages": 3}, "2 ports, and host a needs 3 for stage 0"),
        ("21000-21003", (1, 1), {"data_parallel": 2}, "and host a needs 5 for stage 0"),
        ("21000-21004", (0, 1), {"data_parallel": 3}, "host b needs 6 for stage 0"),
        ("21000-21002", (1, 0), {"data_parallel": 2}, "host a needs 5 for stage 0"),
        (
            *("21000-21002", (1, 1), {"stages": 2, "replicas": ("1:2",)}),
            "host b needs 4 for stage 1",
        ),
    ],
)
def test_fewer_ports_than_a_host_needs(
    tiny: Path, ports: str, rooms: tuple[int, ...], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(tiny, ports, *rooms, **options)
    assert str(caught.value).startswith(f"runtime.ports {ports}: ")
    assert said in str(caught.value)
