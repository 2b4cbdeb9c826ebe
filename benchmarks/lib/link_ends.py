"""A link between this process and another, and how long one batch takes over it.

    here                 wait for room ─▶ clock ─▶ send
    the other process                              receive ─▶ clock ─▶ give the room back

One batch at a time is on its way, so that none waits for another, unless a link has more slots.
Both clocks are the system's monotonic one, which is the same for all processes.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import torch

from pipeline.device.cuda_streams import Incoming, side_stream
from pipeline.learning.build import prepare_process
from pipeline.schedule.items import TrainBatch
from pipeline.transport.cuda_ipc import DeviceRing, Driver
from pipeline.transport.payloads import ALIGNMENT
from pipeline.transport.rejections import Rejections
from pipeline.transport.sockets import Sockets, make_keys
from pipeline.transport.zmq_link import ZmqReceiver, ZmqSender
from pipeline.worker.tensors import arrived_tensor, payloads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from torch import Tensor

    from pipeline.protocol.credentials import KeyPair

IMAGES = 128
_TIMEOUT_S = 120.0
_GOODBYE_S = 3.0
_RUN, _NAMES = "links", ("stage 0", "stage 1")


@dataclass(frozen=True, slots=True)
class Carrier:
    """How batches cross: in slots of shared memory or of a CUDA device's, by a stream, or as raw
    frames; over which socket they are told of, and whether that, and a stream, is encrypted."""

    name: str
    ring: bool
    tcp: bool
    device_ring: bool = False
    stream: bool = False
    sealed: bool = False

    @property
    def kind(self) -> str:
        """Of the project's own carriers."""
        if self.stream:
            return "stream" if self.sealed else "plain-stream"
        return "device" if self.device_ring else "shared" if self.ring else "frames"


CARRIERS = (
    Carrier("shared memory", ring=True, tcp=False),
    Carrier("frames over ipc", ring=False, tcp=False),
    Carrier("frames over tcp", ring=False, tcp=True),
    Carrier("frames over tcp, CURVE", ring=False, tcp=True, sealed=True),
    Carrier("plain stream", ring=False, tcp=True, stream=True),
    Carrier("sealed stream", ring=False, tcp=True, stream=True, sealed=True),
)
DEVICE_CARRIERS = (
    Carrier("memory of the CUDA device", ring=True, tcp=False, device_ring=True),
    *CARRIERS[:2],
)
"""Between two processes on one device."""


@dataclass(frozen=True, slots=True)
class Hops:
    """Seconds that each of some batches took from one process to the other, and the processor
    time of all of them, in both processes."""

    seconds: list[float]
    cpu_s: float


class Link:
    """The upstream end; the other process takes whatever is sent."""

    def __init__(self, sender: ZmqSender, pipe: Connection, device: torch.device) -> None:
        self._sender, self._pipe = sender, pipe
        self._stream = side_stream(device)
        self._batch_id = 0

    def cross(self, x: Tensor, count: int) -> Hops:
        """Send float32 (n, features) so many times; its first number is overwritten."""
        labels = torch.arange(len(x), device=x.device)
        self._pipe.send(count)
        cpu_s, sent = process_time(), []
        for _ in range(count):
            self._sender.wait_for_room()  # the batch before is out of the way
            self._batch_id += 1
            x[0, 0] = self._batch_id
            synchronize(x.device)
            item = TrainBatch(self._batch_id, 1, 1e-3)
            sent.append(perf_counter())
            self._sender.send(item, payloads((x, labels), self._stream))
            self._sender.flush()
        came, their_cpu_s = heard(self._pipe)
        seconds = [end - begin for begin, end in zip(sent, came, strict=True)]
        return Hops(seconds, process_time() - cpu_s + their_cpu_s)


@contextmanager
def linked(
    carrier: Carrier, most_bytes: int, socket: Path, device: torch.device, slots: int = 1
) -> Iterator[Link]:
    """A link for activations of up to so many bytes, to a process that ends with the block.

    Args:
        socket: where it listens, unless over tcp.
        device: of both ends.
        slots: so many batches may be on their way.
    """
    here, there = (make_keys(), make_keys()) if carrier.sealed else (None, None)
    key = here.public if here else None
    mine, theirs = get_context("spawn").Pipe()
    bind = "tcp://127.0.0.1:*" if carrier.tcp else f"ipc://{socket}"
    slot_bytes = most_bytes + IMAGES * 8 + 2 * ALIGNMENT
    arguments = (theirs, bind, slots, slot_bytes, there, key, carrier.device_ring, str(device))
    process = get_context("spawn").Process(target=_take_all, args=arguments, daemon=True)
    process.start()
    theirs.close()  # the other process has one of its own
    sockets = Sockets(Rejections("here"), here)
    try:
        address = heard(mine)
        address = address if carrier.ring else replace(address, ring=None)
        address = address if carrier.stream else replace(address, stream=None)
        driver = Driver() if carrier.device_ring else None
        sender = ZmqSender(
            sockets, address, _RUN, names=_NAMES, timeout_s=_TIMEOUT_S, driver=driver
        )
        assert sender.carrier.kind == carrier.kind, sender.carrier
        try:
            yield Link(sender, mine, device)
        finally:
            sender.close()
    finally:
        sockets.close()
        end_process(process, mine)


def end_process(process: BaseProcess, pipe: Connection) -> None:
    """By a word; by force, where it is in the middle of something."""
    with suppress(OSError):  # it has ended
        pipe.send(0)
    process.join(_GOODBYE_S)
    process.kill()
    process.join()


def heard(pipe: Connection) -> Any:
    """What the other process says next.

    Raises:
        SystemExit: where it says nothing in time, or has ended.
    """
    if not pipe.poll(_TIMEOUT_S):
        raise SystemExit(f"the other process has said nothing for {_TIMEOUT_S:g} s")
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit("the other process has ended before its time") from None


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _take_all(
    pipe: Connection,
    bind: str,
    slots: int,
    slot_bytes: int,
    keys: KeyPair | None,
    their_key: str | None,
    on_device: bool,
    device_name: str,
) -> None:
    """What the other process does: take as many batches as it is told, say when each came."""
    device = torch.device(device_name)
    prepare_process(device, threads=1)
    incoming = Incoming(device)
    sockets = Sockets(Rejections("there"), keys)
    receiver = ZmqReceiver(
        sockets, bind, _RUN, names=(_NAMES[1], _NAMES[0]), slots=slots, slot_bytes=slot_bytes,
        device_ring=DeviceRing(slots, slot_bytes, Driver()) if on_device else None,
    )  # fmt: skip
    receiver.admit(their_key)
    pipe.send(receiver.address)
    while count := pipe.recv():
        cpu_s = process_time()
        came = [_take(receiver, incoming) for _ in range(count)]
        pipe.send((came, process_time() - cpu_s))
    receiver.close()
    sockets.close()


def _take(receiver: ZmqReceiver, incoming: Incoming) -> float:
    """When the next batch was there; its memory is given back after that."""
    delivery = receiver.receive(_TIMEOUT_S)
    x, labels = (arrived_tensor(arrived, incoming) for arrived in delivery.tensors)
    synchronize(incoming.device)
    now = perf_counter()
    assert isinstance(delivery.item, TrainBatch)
    assert (float(x[0, 0]), len(labels)) == (delivery.item.batch_id, len(x))
    delivery.release()
    return now
