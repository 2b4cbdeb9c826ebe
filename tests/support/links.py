"""Links within a process, batches to send over them, and what they hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.schedule.items import TrainBatch
from pipeline.transport.payloads import ArrayPayload
from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from pathlib import Path

    import zmq

    from pipeline.transport.interfaces import Delivery, Sender
    from pipeline.transport.sockets import Sockets

SOON_S = 5.0  # a time-out that is not expected to be used up
TINY_S = 0.01
SLOT_BYTES = 4096


def payloads(value: int, n: int = 5) -> list[ArrayPayload]:
    images = np.full((n, 3, 2, 2), value % 256, np.uint8)
    return [ArrayPayload(images), ArrayPayload(np.arange(n) + value)]


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


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


class Link:
    """Both ends of a link in one process; sockets may be polled by turns from one thread."""

    def __init__(
        self,
        sockets: Sockets,
        folder: Path,
        *,
        slots: int = 2,
        ring: bool = True,
        bind: str = "",
        slot_bytes: int = SLOT_BYTES,
        **more: Any,
    ) -> None:
        self.sockets = sockets
        self.receiver = ZmqReceiver(
            sockets,
            bind or f"ipc://{folder}/link",
            "run",
            names=("stage 1", "stage 0"),
            slots=slots,
            slot_bytes=slot_bytes,
            **more,
        )
        self.receiver.admit(sockets.key)
        address = self.receiver.address
        self.address = address if ring else replace(address, ring=None)
        self._senders: list[ZmqSender] = []

    def sender(self, run: str = "run", timeout_s: float = TINY_S, **more: Any) -> ZmqSender:
        names = ("stage 0", "stage 1")
        self._senders.append(
            ZmqSender(self.sockets, self.address, run, names=names, timeout_s=timeout_s, **more)
        )
        return self._senders[-1]

    def close(self) -> None:
        """Both ends."""
        for sender in self._senders:
            sender.close()
        self.receiver.close()

    def raw(self, name: str | None = None) -> zmq.Socket[bytes]:
        """A peer that says whatever a test wants, by default under the sender's name."""
        word = self.address.word if name is None else name
        return self.sockets.connect(self.address.endpoint, word.encode(), self.address.key)

    def hears(self, sender: ZmqSender) -> None:
        """Let the receiver read what has been sent, and the sender what that granted."""
        self.receiver._listener.open()
        assert self.receiver._listener.poll(5.0)
        assert self.receiver.queued >= 0
        assert sender._socket.poll(5000)

    def connected(self, **more: Any) -> ZmqSender:
        """A sender that has been granted its credits."""
        sender = self.sender(**more)
        self.hears(sender)
        return sender
