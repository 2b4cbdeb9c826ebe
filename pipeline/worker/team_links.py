"""What members of a team exchange over links: each sends what it found to every other.

    main thread    learns group 0, gives │ learns group 1, gives │ … takes the sum of group 0, steps
    this thread          sends, receives, adds │ sends, receives, adds │ …

So the exchange of one group hides behind the work on the next. Every two members have a link each
way, with a ring of shared memory where there can be one: a receiver adds straight from its slot.

What members see of each other while they compute goes the same way, in its turn, and the thread
that trains waits for it.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar

import torch

from pipeline.errors import CalledOffError, ProtocolError, TimedOutError
from pipeline.learning.exchange import added
from pipeline.schedule.items import Found
from pipeline.transport.interfaces import LINK_TIMEOUT_S
from pipeline.transport.timeout import Timeout
from pipeline.worker.tensors import PackedPayload, packed_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pipeline.device.meter import Meter
    from pipeline.learning.exchange import GatherPlace, Key
    from pipeline.protocol.addresses import Carrier, LinkAddress
    from pipeline.transport.interfaces import Delivery, Endpoints, Receiver, Sender
    from pipeline.worker.heartbeat import Activity

Result = TypeVar("Result")

_SLOTS = 2
"""Of each link: one is added while the next one arrives."""


class TeamLinks:
    """A member's end of its team, for one attempt of the run (`Exchange`).

    Args:
        binds: where to listen for each other member, in order.
        called_off: whether the run begins again; asked by the thread that trains.
        tell: is told by that thread what the person who watches should know.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        member: int,
        binds: Sequence[str],
        *,
        meter: Meter,
        activity: Activity,
        called_off: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self.member, self.members = member, len(binds) + 1
        self._others = [other for other in range(self.members) if other != member]
        self._endpoints, self._binds = endpoints, binds
        self._meter, self._activity = meter, activity
        self._called_off, self._tell = called_off, tell
        self._untold: deque[str] = deque()
        self._receivers: list[Receiver] = []
        self._senders: list[Sender] = []
        self._ended = Event()
        self._error: BaseException | None = None
        self._memory: dict[int, list[Tensor]] = {}
        """For the sums of each group: memory that is taken anew is touched page by page."""
        self._given: SimpleQueue[tuple[Found, Sequence[Tensor], int] | None] = SimpleQueue()
        self._totals: SimpleQueue[tuple[Found, list[Tensor]]] = SimpleQueue()
        self._gathered: SimpleQueue[tuple[Found, list[Sequence[Tensor]]]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="team", daemon=True)

    def listen(self, sizes: Sequence[Sequence[int]]) -> tuple[LinkAddress, ...]:
        """Where it listens for each other member.

        Args:
            sizes: bytes of what is found, tensor by tensor, of each group of blocks.
        """
        most = max(packed_bytes(nbytes) for nbytes in sizes)
        addresses = []
        for other, bind in zip(self._others, self._binds, strict=True):
            receiver, address = self._endpoints.listen(bind, _SLOTS, most, f"member {other}")
            self._receivers.append(receiver)
            addresses.append(address)
        return tuple(addresses)

    def connect(self, addresses: Sequence[LinkAddress]) -> list[Carrier]:
        """To all others, each at its address; how tensors will travel there."""
        carriers = []
        for receiver, address in zip(self._receivers, addresses, strict=True):
            receiver.admit(address.key)  # a member connects with the key that it listens with
        for other, address in zip(self._others, addresses, strict=True):
            sender, carrier = self._endpoints.connect(
                address, self._ended.is_set, self._untold.append, f"member {other}"
            )
            self._senders.append(sender)
            carriers.append(carrier)
        self._thread.start()
        return carriers

    def give(self, key: Key, found: Sequence[Tensor]) -> None:
        self._given.put((Found(*key), found, self.members))

    def total(self, key: Key) -> list[Tensor]:
        return self._awaited(self._totals, Found(*key))

    def gather(
        self, place: GatherPlace, found: Sequence[Tensor], among: int
    ) -> list[Sequence[Tensor]]:
        self._given.put((Found(*place), found, among))
        return self._awaited(self._gathered, Found(*place))

    def _awaited(self, results: SimpleQueue[tuple[Found, Result]], item: Found) -> Result:
        with suppress(Empty):
            return _of(item, results.get_nowait())
        timeout = Timeout(LINK_TIMEOUT_S)
        with self._meter.waiting(), self._activity.during("blocked"):
            while poll_s := timeout.next_poll_s():
                with suppress(Empty):
                    return _of(item, results.get(timeout=poll_s))
                self.check()
                while self._untold:
                    self._tell(self._untold.popleft())
                if self._called_off():
                    raise CalledOffError("the run begins again")
        raise TimedOutError(f"member {self.member} waited {LINK_TIMEOUT_S:g} s for its team")

    def check(self) -> None:
        """Raise what has ended the exchange: whoever waits for a batch would wait for ever, since
        the others wait for this member."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """At the end of the attempt, in whatever way."""
        self._ended.set()
        self._given.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        for receiver in self._receivers:
            receiver.close()
        for sender in self._senders:
            sender.close()

    def _run(self) -> None:
        try:
            for receiver in self._receivers:  # before any is sent to: all would wait for room
                receiver.let_in(LINK_TIMEOUT_S, self._ended.is_set)
            while job := self._given.get():
                item, found, among = job
                if item.at:
                    self._gathered.put((item, self._seen(item, found, among)))
                else:
                    self._totals.put((item, self._added(item, found)))
                del job, found
        except BaseException as error:  # for the thread that trains
            if not self._ended.is_set():
                self._error = error

    def _added(self, item: Found, found: Sequence[Tensor]) -> list[Tensor]:
        theirs, deliveries = self._exchanged(item, found, self.members)
        if item.block not in self._memory:
            self._memory[item.block] = list(map(torch.empty_like, found))
        total = self._memory[item.block]
        added(theirs, total)
        del theirs
        for delivery in deliveries:
            delivery.release()
        return total

    def _seen(self, item: Found, found: Sequence[Tensor], among: int) -> list[Sequence[Tensor]]:
        """Copies, as nobody says when they have been read."""
        theirs, deliveries = self._exchanged(item, found, among)
        seen: list[Sequence[Tensor]] = [[tensor.clone() for tensor in each] for each in theirs]
        del theirs
        for delivery in deliveries:
            delivery.release()
        return seen

    def _exchanged(
        self, item: Found, found: Sequence[Tensor], among: int
    ) -> tuple[list[Sequence[Tensor]], list[Delivery]]:
        """What the first `among` members found, where it arrived, and what is to be released."""
        payload = PackedPayload(found)
        others = self._others[: among - 1]  # this one is among them
        for sender in self._senders[: among - 1]:
            sender.send(item, [payload])
        deliveries = [
            receiver.receive(LINK_TIMEOUT_S, self._ended.is_set)
            for receiver in self._receivers[: among - 1]
        ]
        for other, delivery in zip(others, deliveries, strict=True):
            if delivery.item != item:
                raise ProtocolError(
                    f"member {self.member} expected {item} of member {other}, received "
                    f"{delivery.item}"
                )
        theirs: list[Sequence[Tensor]] = [
            payload.alike(delivery.tensors[0]) for delivery in deliveries
        ]
        theirs.insert(self.member, list(found))
        return theirs, deliveries


def _of(item: Found, result: tuple[Found, Result]) -> Result:
    assert result[0] == item, f"{result[0]} in place of {item}"
    return result[1]
