"""What a link and the control connection are, whatever carries them; and both within a process.

The two ends of a link are two types: a stage cannot send upstream by accident. Every wait has a
time-out, and its error says who waited for whom, for what, how long (invariant 9).
`transport.py` has the real ones; the in-memory ones here let tests run without ports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import TYPE_CHECKING, Protocol

from pipeline.carriers import aligned_copy
from pipeline.errors import TimedOutError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.carriers import Payload
    from pipeline.inband import Item
    from pipeline.messages import Message, TensorSpec


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """What has crossed a link so far, and how long its end waited."""

    batches: int
    nbytes: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class Arrived:
    """A tensor as it came: its bytes are aligned, and valid until the delivery is released."""

    spec: TensorSpec
    data: memoryview


@dataclass(frozen=True, slots=True)
class Delivery:
    """An item and its tensors. `release` gives the sender its credit back."""

    item: Item
    tensors: tuple[Arrived, ...]
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Said:
    """A control message of one stage, with its attached frames."""

    stage: int
    message: Message
    attached: tuple[memoryview, ...] = ()


class Sender(Protocol):
    """The upstream end of a link: what it sends goes downstream."""

    def send(self, item: Item, payloads: Sequence[Payload] = ()) -> None:
        """Send in order; a batch waits for a credit. Raises TimedOutError."""

    def statistics(self) -> LinkStatistics:
        """Counted since the link was opened."""

    def close(self) -> None:
        """Let go; what has been sent still arrives."""


class Receiver(Protocol):
    """The downstream end of a link: it can only receive, and grant credits."""

    @property
    def queued(self) -> int:
        """Items that have arrived and wait to be received."""

    def receive(self, timeout_s: float) -> Delivery:
        """The next item. Raises TimedOutError."""

    def statistics(self) -> LinkStatistics:
        """Counted since the link was opened."""

    def close(self) -> None:
        """Let go."""


class ControlClient(Protocol):
    """A stage's end of the control connection."""

    def send(self, message: Message, attached: Sequence[bytes | memoryview] = ()) -> None:
        """To the coordinator."""

    def receive(self, timeout_s: float) -> Said:
        """From the coordinator. Raises TimedOutError."""


class ControlServer(Protocol):
    """The coordinator's end of every stage's control connection."""

    def send(
        self, stage: int, message: Message, attached: Sequence[bytes | memoryview] = ()
    ) -> None:
        """To one stage."""

    def receive(self, timeout_s: float) -> Said | None:
        """What any stage said, None after `timeout_s` of silence."""


@dataclass(slots=True)
class _Shared:
    """What the two ends of an in-memory link share."""

    slots: int
    items: Queue[tuple[Item, tuple[Arrived, ...]]] = field(default_factory=Queue)
    credits: Queue[None] = field(default_factory=Queue)


class MemorySender:
    """In-memory link, upstream end."""

    def __init__(self, shared: _Shared, timeout_s: float) -> None:
        self._shared, self._timeout_s = shared, timeout_s
        self._batches = self._nbytes = 0

    def send(self, item: Item, payloads: Sequence[Payload] = ()) -> None:
        """Copies, as the real ones do."""
        if payloads:
            try:
                self._shared.credits.get(timeout=self._timeout_s)
            except Empty:
                raise TimedOutError(
                    f"waited {self._timeout_s:g} s for a credit: none came"
                ) from None
        tensors = tuple(Arrived(p.spec, aligned_copy(p.view())) for p in payloads)
        self._batches += bool(payloads)
        self._nbytes += sum(tensor.spec.nbytes for tensor in tensors)
        self._shared.items.put((item, tensors))

    def statistics(self) -> LinkStatistics:
        """Waiting is not measured here."""
        return LinkStatistics(self._batches, self._nbytes, 0.0)

    def close(self) -> None:
        """Nothing to let go."""


class MemoryReceiver:
    """In-memory link, downstream end."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._batches = self._nbytes = 0
        for _ in range(shared.slots):
            self._grant()

    @property
    def queued(self) -> int:
        """Items that wait."""
        return self._shared.items.qsize()

    def receive(self, timeout_s: float) -> Delivery:
        """The next item."""
        try:
            item, tensors = self._shared.items.get(timeout=timeout_s)
        except Empty:
            raise TimedOutError(f"waited {timeout_s:g} s for a batch: none came") from None
        self._batches += bool(tensors)
        self._nbytes += sum(tensor.spec.nbytes for tensor in tensors)
        return Delivery(item, tensors, self._grant if tensors else _nothing)

    def statistics(self) -> LinkStatistics:
        """Waiting is not measured here."""
        return LinkStatistics(self._batches, self._nbytes, 0.0)

    def close(self) -> None:
        """Nothing to let go."""

    def _grant(self) -> None:
        self._shared.credits.put(None)


def memory_link(slots: int, timeout_s: float = 5.0) -> tuple[MemorySender, MemoryReceiver]:
    """Both ends of a link within one process; `slots` batches may be in flight."""
    shared = _Shared(slots)
    return MemorySender(shared, timeout_s), MemoryReceiver(shared)


class MemoryControl:
    """Both ends of control within one process; `client(stage)` is a stage's end."""

    def __init__(self) -> None:
        self._said: Queue[Said] = Queue()
        self._clients: dict[int, Queue[Said]] = {}

    def client(self, stage: int) -> MemoryControlClient:
        """The end of one stage."""
        inbox = self._clients.setdefault(stage, Queue())
        return MemoryControlClient(stage, inbox, self._said)

    def send(
        self, stage: int, message: Message, attached: Sequence[bytes | memoryview] = ()
    ) -> None:
        """To one stage."""
        self._clients.setdefault(stage, Queue()).put(_said(stage, message, attached))

    def receive(self, timeout_s: float) -> Said | None:
        """What any stage said."""
        try:
            return self._said.get(timeout=timeout_s) if timeout_s else self._said.get_nowait()
        except Empty:
            return None


class MemoryControlClient:
    """A stage's end of in-memory control."""

    def __init__(self, stage: int, inbox: Queue[Said], outbox: Queue[Said]) -> None:
        self._stage, self._inbox, self._outbox = stage, inbox, outbox

    def send(self, message: Message, attached: Sequence[bytes | memoryview] = ()) -> None:
        """To the coordinator."""
        self._outbox.put(_said(self._stage, message, attached))

    def receive(self, timeout_s: float) -> Said:
        """From the coordinator."""
        try:
            return self._inbox.get(timeout=timeout_s)
        except Empty:
            raise TimedOutError(
                f"stage {self._stage} waited {timeout_s:g} s for the coordinator"
            ) from None


def _said(stage: int, message: Message, attached: Sequence[bytes | memoryview]) -> Said:
    return Said(stage, message, tuple(memoryview(frame) for frame in attached))


def _nothing() -> None:
    """Markers use up no credit."""
