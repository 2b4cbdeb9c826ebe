"""The other end of a link is told when there is nothing more to take; no clock is asserted."""

from __future__ import annotations

from multiprocessing import active_children
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.lib import link_ends
from benchmarks.lib.link_ends import CARRIERS, linked
from benchmarks.lib.plain_socket import plain_socket
from benchmarks.links import activation

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.lib.link_ends import Carrier, Link

MIB = 2**-4
CPU = torch.device("cpu")


@pytest.mark.processes
@pytest.mark.parametrize("carrier", [CARRIERS[0], CARRIERS[-1]], ids=["memory", "stream"])
def test_a_link_crosses_and_ends_with_the_block(tmp_path: Path, carrier: Carrier) -> None:
    with linked(carrier, int(MIB * 2**20), tmp_path / "socket", CPU) as link:
        assert len(link.cross(activation(MIB, CPU), 3).seconds) == 3
    assert active_children() == []


@pytest.mark.processes
def test_a_plain_socket_crosses_and_ends_with_the_block() -> None:
    with plain_socket(int(MIB * 2**20)) as link:
        assert len(link.cross(activation(MIB, CPU), 3).seconds) == 3
    assert active_children() == []


@pytest.mark.processes
def test_an_error_ends_the_other_process_though_it_waits_for_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(link: Link) -> None:
        link._pipe.send(1)
        raise ValueError("as it should")

    monkeypatch.setattr(link_ends, "_GOODBYE_S", 0.1)
    opened = linked(CARRIERS[1], int(MIB * 2**20), tmp_path / "socket", CPU)
    with pytest.raises(ValueError, match="as it should"), opened as link:
        fail(link)
    assert active_children() == []
