"""What members exchange over links: sums in order of member, whatever arrives first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.run_in_threads import MemoryEndpoints

from pipeline.device.meter import meter_of
from pipeline.errors import CalledOffError, ProtocolError
from pipeline.protocol.messages import TensorSpec
from pipeline.transport.interfaces import Arrived
from pipeline.worker.heartbeat import Activity
from pipeline.worker.team_links import TeamLinks
from pipeline.worker.tensors import PackedPayload, packed_bytes

if TYPE_CHECKING:
    from torch import Tensor

CPU = torch.device("cpu")


def team(members: int, called_off: Any = lambda: False) -> list[TeamLinks]:
    """Connected, of one group of blocks with two tensors."""
    endpoints = MemoryEndpoints({})
    links = [
        TeamLinks(
            endpoints,
            member,
            [f"{member}<{other}" for other in range(members) if other != member],
            meter=meter_of(CPU),
            activity=Activity(),
            called_off=called_off,
            tell=print,
        )
        for member in range(members)
    ]
    listening = [iter(own.listen([[12, 4]])) for own in links]
    addresses: dict[tuple[int, int], Any] = {}
    for member, own in enumerate(listening):
        for other in range(members):
            if other != member:
                addresses[member, other] = next(own)
    for member, own in enumerate(links):
        own.connect([addresses[other, member] for other in range(members) if other != member])
    return links


def found(member: int) -> list[Tensor]:
    """Numbers whose sum depends on its order."""
    return [torch.tensor([1e8, -1e8, 1.0]).roll(member), torch.tensor([member], dtype=torch.int32)]


@pytest.mark.parametrize("members", [2, 3])
def test_all_get_the_sum_in_order_of_member(members: int) -> None:
    links = team(members)
    parts = [found(member) for member in range(members)]
    expected = parts[0][0]
    for part in parts[1:]:
        expected = expected + part[0]
    for step in (1, 2, 3):
        for member in reversed(range(members)):
            links[member].give((step, 0), parts[member])
        for own in links:
            numbers, count = own.total((step, 0))
            assert torch.equal(numbers, expected)
            assert count.item() == sum(range(members))
    for own in links:
        own.close()


def test_members_see_what_each_has_in_its_turn() -> None:
    links = team(3)
    parts = [found(member) for member in range(3)]

    def works(own: TeamLinks) -> list[Any]:
        """Two of them look, while a sum is still under way; then all add up again."""
        own.give((1, 0), parts[own.member])
        seen = [own.gather((1, 1, at), parts[own.member], 2) for at in (1, 2) if own.member < 2]
        own.give((1, 1), parts[own.member])
        return [*seen, own.total((1, 0)), own.total((1, 1))]

    with ThreadPoolExecutor(3) as pool:
        one, other, last = pool.map(works, links)
    for seen in (*one[:2], *other[:2]):
        for tensors, part in zip(seen, parts[:2], strict=True):
            assert all(map(torch.equal, tensors, part))
    assert all(torch.equal(total[0], one[2][0]) for total in (*one[2:], *other[2:], *last))
    for own in links:
        own.close()


def test_a_wait_for_others_ends_where_the_run_begins_again() -> None:
    links = team(2, called_off=lambda: True)
    links[0].give((1, 0), found(0))
    with pytest.raises(CalledOffError):
        links[0].total((1, 0))
    for own in links:
        own.close()


def test_a_member_that_is_elsewhere_is_named() -> None:
    links = team(2)
    links[0].give((1, 0), found(0))
    links[1].give((2, 0), found(1))
    with pytest.raises(ProtocolError, match=r"expected Found\(batch_id=1, block=0, at=0\) of"):
        links[0].total((1, 0))
    for own in links:
        own.close()


def test_tensors_travel_packed_with_their_strides() -> None:
    tensors = [
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.tensor([1, 0], dtype=torch.uint8),
        torch.empty(0),
        torch.tensor(7),
    ]
    payload = PackedPayload(tensors)
    assert payload.spec == TensorSpec("uint8", (packed_bytes([t.nbytes for t in tensors]),))
    for own, other in zip(
        tensors, payload.alike(Arrived(payload.spec, payload.view())), strict=True
    ):
        assert torch.equal(own, other)
        assert own.stride() == other.stride()
    with pytest.raises(ProtocolError, match="came where"):
        payload.alike(Arrived(TensorSpec("uint8", (1,)), memoryview(bytearray(1))))
