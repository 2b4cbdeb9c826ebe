"""Hosts, and a plan whose devices are theirs: `hostA/cuda:0`. Pure.

    stages   0   1   2   3   4          a host is filled by consecutive stages before the next one
    hosts    A   A   B   B   –          is used; what finds no room waits for a host that joins

A device keeps the load that the plan has given it; which host it is on is chosen so that little
travels between hosts. A CPU has room for as many stages as its host lends cores for; a GPU takes
any number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.planning.cost import BlockCost
    from pipeline.planning.plan import Plan

TO_COME = "host-to-come"
"""Stands in a plan for a host that has not joined yet."""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine or a container where stages may run.

    `name`: as plans and people call it; empty for the machine of the launcher, whose devices are
    called as they are. `address`: where the other hosts reach it. `devices`: as its own processes
    call them. `room`: how many stages its CPU takes; None: any number. `facts`: what runs there,
    a line each, as `sources.running_code` and what it computes with. `key`: the public key that
    its workers hold; None where there are none.
    """

    name: str
    address: str
    devices: tuple[str, ...]
    room: int | None = None
    facts: tuple[str, ...] = ()
    key: str | None = None

    def called(self, device: str) -> str:
        """A device of its own as plans name it."""
        return f"{self.name}/{device}" if self.name else device


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run would like to use. `gpus`: the text of `--gpus`; `threads`: CPU threads that each
    of its stages has."""

    gpus: str | None
    threads: int


def this_machine(devices: tuple[str, ...]) -> Host:
    """The launcher's own, whose processes find each other without a network."""
    return Host("", "127.0.0.1", devices)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage runs: `device` as the process there calls it."""

    host: Host
    device: str

    @property
    def name(self) -> str:
        """As plans name it."""
        return self.host.called(self.device)


def host_of(device: str) -> str:
    """The host that a plan's device is on; empty: the machine of the launcher."""
    return device.rpartition("/")[0]


def local_name(device: str) -> str:
    """A plan's device as a process of its host calls it."""
    return device.rpartition("/")[2]


def devices_of(hosts: Sequence[Host]) -> tuple[str, ...]:
    """All devices, host by host, as plans name them."""
    return tuple(host.called(device) for host in hosts for device in host.devices)


def planned_devices(hosts: Sequence[Host]) -> tuple[str, ...]:
    """Between which a plan is to divide its stages before `on_hosts` names them: all GPUs; or one
    CPU, because the CPUs of hosts are filled one after the other."""
    devices = devices_of(hosts)
    return ("cpu",) if all(local_name(device) == "cpu" for device in devices) else devices


def on_hosts(plan: Plan, costs: Sequence[BlockCost], hosts: Sequence[Host]) -> Plan:
    """The same stages, on devices of these hosts.

    Args:
        plan: for `planned_devices`.
    """
    used = list(dict.fromkeys(stage.device for stage in plan.stages))
    if used == ["cpu"]:
        return _on_cpus(plan, hosts)
    order = devices_of(hosts)[: len(used)]
    traffic = [costs[stage.blocks[-1]].sent_bytes for stage in plan.stages[:-1]]
    names = dict(zip(used, order, strict=True))
    while better := _less_between_hosts(plan, traffic, names):
        names = better
    return _renamed(plan, [names[stage.device] for stage in plan.stages])


def _on_cpus(plan: Plan, hosts: Sequence[Host]) -> Plan:
    """A host is filled before the next one is used."""
    rooms = [
        host.called("cpu")
        for host in hosts
        for _ in range(plan.n_stages if host.room is None else host.room)
    ]
    missing = max(0, plan.n_stages - len(rooms))
    return _renamed(plan, [*rooms, *[f"{TO_COME}/cpu"] * missing][: plan.n_stages])


def _less_between_hosts(
    plan: Plan, traffic: Sequence[int], names: dict[str, str]
) -> dict[str, str] | None:
    """Two devices exchanged, where that lets less travel between hosts; None where none does."""
    least = _between_hosts(plan, traffic, names)
    for one, other in combinations(names, 2):
        changed = {**names, one: names[other], other: names[one]}
        if _between_hosts(plan, traffic, changed) < least:
            return changed
    return None


def _between_hosts(plan: Plan, traffic: Sequence[int], names: dict[str, str]) -> int:
    hosts = [host_of(names[stage.device]) for stage in plan.stages]
    parted = (before != after for before, after in pairwise(hosts))
    return sum(sent for sent, apart in zip(traffic, parted, strict=True) if apart)


def _renamed(plan: Plan, devices: Sequence[str]) -> Plan:
    stages = zip(plan.stages, devices, strict=True)
    return replace(plan, stages=tuple(replace(stage, device=device) for stage, device in stages))
