"""What a stage sends on lies still until it is sent, whoever fills the slot that it came in."""

from __future__ import annotations

import torch

from pipeline.protocol.messages import TensorSpec
from pipeline.schedule.items import TrainBatch
from pipeline.transport.interfaces import Arrived, Delivery
from pipeline.worker.tensors import DeviceQueue


def test_a_sender_holds_a_copy_of_what_lies_in_a_slot() -> None:
    """Of the input and its views; it holds others themselves. A ring copies from the slot."""
    queue, slots = DeviceQueue(torch.device("cpu")), [bytearray(16), bytearray(16)]
    spec = TensorSpec("float32", (2, 2))
    came = tuple(Arrived(spec, memoryview(slot)) for slot in slots)
    x, targets = queue.arrived(Delivery(TrainBatch(1, 1, 0.1), came, lambda: None))
    made = x + 1
    payloads = queue.payloads((x, x.flatten(), targets, made))
    views, target = [payload.view() for payload in payloads], bytearray(16)
    for slot in slots:
        slot[:] = b"\xff" * 16
    assert [view.tobytes() for view in views[:3]] == [bytes(16)] * 3
    made += 1
    assert views[3].tobytes() == made.numpy().tobytes()
    payloads[0].copy_into(memoryview(target))
    assert target == slots[0]
