"""Links and control within one process: pipelines run in threads, without ports.

They copy, bound and time out as the real ones do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Queue
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import CalledOffError, TimedOutError
from pipeline.schedule.items import Stop
from pipeline.transport.interfaces import Arrived, Delivery, Said
from pipeline.transport.payloads import aligned_copy
from pipeline.transport.rejections import Rejections

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.protocol.messages import Message
    from pipeline.schedule.items import Item
    from pipeline.transport.payloads import Payload

_POLL_S = 0.05
Taken = TypeVar("Taken")


@dataclass(slots=True)
class _Shared:
    """What the two ends of an in-memory link share."""

    slots: int
    items: Queue[tuple[Item, tuple[Arrived, ...]]] = field(default_factory=Queue)
    credits: Queue[None] = field(default_factory=Queue)
    stops: Queue[None] = field(default_factory=Queue)
    """That have arrived."""


class MemorySender:
    """In-memory link, upstream end."""

    def __init__(self, shared: _Shared, timeout_s: float) -> None:
        self._shared, self._timeout_s = shared, timeout_s
        self._cancelled: Callable[[], bool] = lambda: False
        self._has_room = False

    def heed(self, cancelled: Callable[[], bool]) -> None:
        """From now on stop waiting where `cancelled` says so."""
        self._cancelled = cancelled

    def wait_for_room(self) -> None:
        if not self._has_room:
            _take(self._shared.credits, "a credit", self._timeout_s, self._cancelled)
            self._has_room = True

    def send(self, item: Item, payloads: Sequence[Payload] = ()) -> None:
        if payloads:
            self.wait_for_room()
            self._has_room = False
        tensors = tuple(Arrived(p.spec, aligned_copy(p.view())) for p in payloads)
        self._shared.items.put((item, tensors))

    def flush(self) -> None:
        """What was sent is there."""

    def finish(self) -> None:
        _take(self._shared.stops, "the stop marker to be taken", self._timeout_s, self._cancelled)

    def close(self) -> None:
        """Nothing to let go."""


class MemoryReceiver:
    """In-memory link, downstream end."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        for _ in range(shared.slots):
            self._grant()

    @property
    def queued(self) -> int:
        return self._shared.items.qsize()

    def admit(self, key: str | None) -> None:
        """Its sender is in already."""

    def let_in(self, timeout_s: float, called_off: Callable[[], bool] = lambda: False) -> None:
        """It has its credits."""

    def receive(self, timeout_s: float, called_off: Callable[[], bool] = lambda: False) -> Delivery:
        item, tensors = _take(self._shared.items, "a batch", timeout_s, called_off)
        if isinstance(item, Stop):
            self._shared.stops.put(None)
        return Delivery(item, tensors, self._grant if tensors else lambda: None)

    def close(self) -> None:
        """Nothing to let go."""

    def _grant(self) -> None:
        self._shared.credits.put(None)


def memory_link(slots: int, timeout_s: float = 5.0) -> tuple[MemorySender, MemoryReceiver]:
    """Both ends of a link within one process; `slots` batches may be in flight."""
    shared = _Shared(slots)
    return MemorySender(shared, timeout_s), MemoryReceiver(shared)


def _take(
    queue: Queue[Taken], what: str, timeout_s: float, called_off: Callable[[], bool]
) -> Taken:
    until = monotonic() + timeout_s
    while not called_off():
        try:
            return queue.get(timeout=min(_POLL_S, max(0.0, until - monotonic())))
        except Empty:
            if monotonic() >= until:
                raise TimedOutError(f"waited {timeout_s:g} s for {what}: none came") from None
    raise CalledOffError(f"told to stop waiting for {what}")


class MemoryControl:
    """Both ends of control within one process; `client(stage, attempt)` is a stage's end."""

    def __init__(self) -> None:
        self._said: Queue[tuple[int, Said]] = Queue()
        self._inboxes: dict[tuple[int, int], Queue[Said]] = {}
        self._attempts: dict[int, int] = {}
        self.rejections = Rejections("control")

    def client(self, stage: int, attempt: int = 0) -> MemoryControlClient:
        """The end of one stage, of the worker started for `attempt`."""
        outbox = partial(self._hear, attempt)
        return MemoryControlClient(stage, self._inbox(stage, attempt), outbox)

    def send(
        self, stage: int, message: Message, attached: Sequence[bytes | memoryview] = ()
    ) -> None:
        inbox = self._inbox(stage, self._attempts.get(stage, 0))
        inbox.put(_said(stage, message, attached))

    def receive(self, timeout_s: float) -> Said | None:
        while True:
            try:
                attempt, said = self._said.get(block=timeout_s > 0, timeout=timeout_s or None)
            except Empty:
                return None
            if attempt == self._attempts.get(said.stage, 0):
                return said

    def expect(self, stage: int, attempt: int) -> None:
        self._attempts[stage] = attempt

    def key_before(self, stage: int) -> str | None:
        """Within a process there are no keys."""
        return None

    @property
    def absent(self) -> frozenset[int]:
        return frozenset()

    def _inbox(self, stage: int, attempt: int) -> Queue[Said]:
        return self._inboxes.setdefault((stage, attempt), Queue())

    def _hear(self, attempt: int, said: Said) -> None:
        self._said.put((attempt, said))


class MemoryControlClient:
    """A stage's end of in-memory control."""

    def __init__(self, stage: int, inbox: Queue[Said], hear: Callable[[Said], None]) -> None:
        self._stage, self._inbox, self._hear = stage, inbox, hear

    def send(self, message: Message, attached: Sequence[bytes | memoryview] = ()) -> None:
        self._hear(_said(self._stage, message, attached))

    @property
    def waiting(self) -> bool:
        return not self._inbox.empty()

    def receive(self, timeout_s: float) -> Said:
        try:
            return self._inbox.get(timeout=timeout_s)
        except Empty:
            raise TimedOutError(
                f"stage {self._stage} waited {timeout_s:g} s for the coordinator"
            ) from None


def _said(stage: int, message: Message, attached: Sequence[bytes | memoryview]) -> Said:
    return Said(stage, message, tuple(memoryview(frame) for frame in attached))
