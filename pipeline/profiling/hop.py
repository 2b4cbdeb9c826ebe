"""What a batch's hop from one process to the next takes the processor, beside the copy: measured.

    this process    send ──▶ receive ──▶ give the room back ──▶ train a part of the network ─┐
                     ▲───────────────────────────────────────────────────────────────────────┘

It is trained in between because it is in a run: the caches then hold little of what a hop needs,
which makes it several times as long as one after the other would be.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from statistics import fmean
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.profiling.blocks import BATCHES, SECONDS, WARM_UP, UnitTrainer
from pipeline.schedule.items import EndEpoch, TrainBatch
from pipeline.transport.payloads import ALIGNMENT, ArrayPayload
from pipeline.transport.rejections import Rejections
from pipeline.transport.sockets import Sockets, socket_folder
from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.network.specs import BlockSpec

_RUN, _SENDER, _RECEIVER = "measured", "the sender of --measure", "the receiver of --measure"
_TIMEOUT_S = 60.0
_ITEM_BYTES = 8


def hop_s(config: Config, facts: DataFacts, unit: Sequence[BlockSpec]) -> float:
    """Processor seconds of both ends of a hop on a CPU, their threads for sockets included.

    Args:
        unit: what is trained in between; the activation itself is one number per image, since
            what its copy takes is another measurement.

    Raises:
        TimedOutError: where what was sent does not arrive.
    """
    trainer = UnitTrainer(config, facts, unit, torch.device("cpu"))
    with link_to_itself(config.data.batch_size, config.runtime.max_in_flight) as cross:
        return _mean_s(cross, trainer.step)


def _mean_s(cross: Callable[[], None], train: Callable[[], None]) -> float:
    taken: list[float] = []
    ends = perf_counter() + SECONDS
    while len(taken) < WARM_UP + BATCHES or perf_counter() < ends:
        train()
        began = process_time()
        cross()
        taken.append(process_time() - began)
    return fmean(taken[WARM_UP:])


@contextmanager
def link_to_itself(images: int, slots: int) -> Iterator[Callable[[], None]]:
    """A link both of whose ends are in this thread; what is given sends a batch over it."""
    with (
        socket_folder() as folder,
        closing(Sockets(Rejections("there"))) as there,
        closing(Sockets(Rejections("here"))) as here,
        closing(_receiver(there, folder / "hop", images, slots)) as receiver,
        closing(_sender(here, receiver)) as sender,
    ):
        sender.send(EndEpoch(0))  # a marker needs no room, which is granted before it arrives
        receiver.receive(_TIMEOUT_S)
        yield _Crossing(sender, receiver, images)


def _receiver(sockets: Sockets, path: Path, images: int, slots: int) -> ZmqReceiver:
    slot_bytes = 2 * images * _ITEM_BYTES + 2 * ALIGNMENT
    names = (_RECEIVER, _SENDER)
    return ZmqReceiver(
        sockets, f"ipc://{path}", _RUN, names=names, slots=slots, slot_bytes=slot_bytes
    )


def _sender(sockets: Sockets, receiver: ZmqReceiver) -> ZmqSender:
    names = (_SENDER, _RECEIVER)
    return ZmqSender(sockets, receiver.address, _RUN, names=names, timeout_s=_TIMEOUT_S)


class _Crossing:
    """One batch, from one end to the other; its room is given back."""

    def __init__(self, sender: ZmqSender, receiver: ZmqReceiver, images: int) -> None:
        self._sender, self._receiver, self._batch_id = sender, receiver, 0
        activation, labels = np.zeros((images, 1), np.float32), np.zeros(images, np.int64)
        self._payloads = [ArrayPayload(activation), ArrayPayload(labels)]

    def __call__(self) -> None:
        self._batch_id += 1
        self._sender.wait_for_room()
        self._sender.send(TrainBatch(self._batch_id, 1, 0.0), self._payloads)
        self._receiver.receive(_TIMEOUT_S).release()
