"""Links and control within one process behave as the real ones do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.links import SOON_S, TINY_S, address, batch, contents, payloads, send_batches, sent

from pipeline.errors import TimedOutError
from pipeline.protocol.messages import Bye, Connect
from pipeline.schedule.items import EndEpoch, Stop
from pipeline.transport.in_memory import MemoryControl, memory_link
from pipeline.transport.payloads import ALIGNMENT, ArrayPayload

if TYPE_CHECKING:
    from pipeline.transport.interfaces import Receiver, Sender


def test_memory_link_is_bounded_and_ordered_too() -> None:
    ends: tuple[Sender, Receiver] = memory_link(slots=2, timeout_s=TINY_S)
    sender, receiver = ends
    send_batches(sender, 1, 2)
    sender.send(EndEpoch(1))
    with pytest.raises(TimedOutError, match="a credit"):
        sender.send(batch(3), payloads(3))
    assert receiver.queued == 3
    first = receiver.receive(SOON_S)
    first.release()
    sender.send(batch(3), payloads(3))
    later = [receiver.receive(SOON_S) for _ in range(3)]
    assert [d.item for d in (first, *later)] == [batch(1), batch(2), EndEpoch(1), batch(3)]
    assert contents(later[-1]) == sent(3)
    later[1].release()  # a marker's grants nothing
    with pytest.raises(TimedOutError):
        sender.send(batch(4), payloads(4))
    with pytest.raises(TimedOutError, match="a batch"):
        receiver.receive(TINY_S)


def test_memory_link_finishes_when_the_stop_marker_is_taken() -> None:
    sender, receiver = memory_link(slots=1, timeout_s=TINY_S)
    for item in (EndEpoch(1), Stop()):
        sender.send(item)
        with pytest.raises(TimedOutError, match="the stop marker to be taken"):
            sender.finish()
    for _ in range(2):
        receiver.receive(SOON_S)
    sender.finish()


def test_memory_link_copies_and_aligns() -> None:
    sender, receiver = memory_link(slots=1)
    values = np.arange(9, dtype=np.uint8)
    sender.send(batch(1), [ArrayPayload(values)])
    values[:] = 0
    (tensor,) = receiver.receive(SOON_S).tensors
    assert bytes(tensor.data) == bytes(range(9))
    assert address(tensor.data) % ALIGNMENT == 0


def test_memory_control_carries_both_ways() -> None:
    server = MemoryControl()
    server.send(1, Connect(None), [b"file"])  # before the client is there
    client = server.client(1)
    said = client.receive(SOON_S)
    assert (said.stage, said.message, bytes(said.attached[0])) == (1, Connect(None), b"file")
    with pytest.raises(TimedOutError, match=r"stage 1 waited 0\.01 s for the coordinator"):
        client.receive(TINY_S)
    assert server.receive(0.0) is None
    assert server.receive(TINY_S) is None
    client.send(Bye())
    answer = server.receive(SOON_S)
    assert answer is not None
    assert (answer.stage, answer.message) == (1, Bye())
