"""Batches to send over a link, and what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.schedule.items import TrainBatch
from pipeline.transport.payloads import ArrayPayload

if TYPE_CHECKING:
    from pipeline.transport.interfaces import Delivery, Sender

SOON_S = 5.0  # a time-out that is not expected to be used up
TINY_S = 0.01


def payloads(value: int, n: int = 5) -> list[ArrayPayload]:
    images = np.full((n, 3, 2, 2), value % 256, np.uint8)
    return [ArrayPayload(images), ArrayPayload(np.arange(n) + value)]


def contents(delivery: Delivery) -> list[bytes]:
    return [bytes(tensor.data) for tensor in delivery.tensors]


def batch(number: int) -> TrainBatch:
    return TrainBatch(number, 1, 0.5)


def send_batches(sender: Sender, *numbers: int) -> None:
    for number in numbers:
        sender.send(batch(number), payloads(number))


def sent(number: int) -> list[bytes]:
    """What a batch of that number holds."""
    return [bytes(payload.view()) for payload in payloads(number)]
