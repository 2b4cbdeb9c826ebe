"""Control over ZeroMQ: a listener at the coordinator, two connections of each stage.

A stage is known by the identity of its connection, which holds protocol and run, too, and, where
there are keys, by that of the host on which its process was started. Messages of others, and of
workers that have been replaced, are rejected. Every wait has a time-out.
"""

from __future__ import annotations

import re
from time import monotonic
from typing import TYPE_CHECKING

from pipeline.errors import ProtocolError, TimedOutError
from pipeline.protocol.codec import decode, encode
from pipeline.protocol.messages import PROTOCOL_VERSION, name_of_run
from pipeline.transport.first_answer import FirstAnswer
from pipeline.transport.interfaces import Said
from pipeline.transport.sockets import LINGER_MS, Sockets, ms, send, waits
from pipeline.transport.timeout import Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.protocol.credentials import Invitation
    from pipeline.protocol.messages import Message
    from pipeline.transport.sockets import Envelope

_ROLES = ("stage", "heartbeat")
"""Of the connections that every stage makes."""
_NAME = re.compile(rb"pipeline-(\d{1,9})-(\w{1,40})-(stage|heartbeat)-(\d{1,4})-(\d{1,6})")


class ZmqControlClient:
    """A stage's end of control.

    `tell`: hears why the coordinator, who would be told of all else, can't be reached.
    """

    def __init__(
        self,
        sockets: Sockets,
        invitation: Invitation,
        role: str = "stage",
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._stage = invitation.stage
        names = (f"stage {self._stage}", "the coordinator")
        self._answer = FirstAnswer(invitation.control, names, tell)
        name = _name(invitation.run, role, invitation.stage, invitation.attempt)
        self._socket = sockets.connect(invitation.control, name, invitation.coordinator)

    def send(self, message: Message, attached: Sequence[bytes | memoryview] = ()) -> None:
        send(self._socket, [encode(message), *attached])

    @property
    def waiting(self) -> bool:
        return waits(self._socket)

    def receive(self, timeout_s: float) -> Said:
        """From the coordinator.

        Raises:
            TimedOutError: where nothing came in time.
            ProtocolError: where it said what is no message.
        """
        timeout = Timeout(timeout_s)
        while not self._socket.poll(ms(poll_s := timeout.next_poll_s())):
            self._answer.look()
            if not poll_s:
                raise TimedOutError(
                    f"stage {self._stage} waited {timeout_s:.1f} s for the coordinator: "
                    "it said nothing"
                )
        self._answer.heard()
        head, *attached = self._socket.recv_multipart(copy=False)
        return Said(self._stage, decode(head.buffer), tuple(f.buffer for f in attached))

    def close(self) -> None:
        """Close the socket; what was sent is still delivered."""
        self._socket.close(linger=LINGER_MS)


class ZmqControlServer:
    """The coordinator's end of control. It listens while a stage is expected: once all have been
    heard nobody else gets in.

    Args:
        most_bytes: of a block file, the largest thing that a stage sends.
    """

    def __init__(self, sockets: Sockets, bind: str, run: str, *, most_bytes: int) -> None:
        self._listener = sockets.listen(bind, most_bytes)
        self._run, self._attempts = run, dict[int, int]()
        self._keys, self._own_key = dict[tuple[int, int], str](), sockets.key
        """By stage and attempt, the public key of the host of the process."""
        self._awaited = set[tuple[str, int]]()
        self.rejections, self.endpoint = sockets.rejections, self._listener.endpoint

    def expect(self, stage: int, attempt: int) -> None:
        self._attempts[stage] = attempt
        self._awaited.update((role, stage) for role in _ROLES)
        self._admit()

    def admit(self, stage: int, attempt: int, key: str) -> None:
        """The process of that attempt holds `key`. It is admitted if it is the one expected; who
        was refused does not try again, so this is to be said before the process starts."""
        self._keys[stage, attempt] = key
        self._admit()

    def key_before(self, stage: int) -> str | None:
        return self._key_of(stage - 1) if stage else self._own_key

    @property
    def absent(self) -> frozenset[int]:
        return frozenset(stage for _, stage in self._awaited)

    def send(
        self, stage: int, message: Message, attached: Sequence[bytes | memoryview] = ()
    ) -> None:
        name = _name(self._run, "stage", stage, self._attempts.get(stage, 0))
        self._listener.send(name, [encode(message), *attached])

    def receive(self, timeout_s: float) -> Said | None:
        """What any stage said, None after `timeout_s` of silence."""
        until = monotonic() + timeout_s
        if self._awaited:  # and not before: a process that is started needs descriptors
            self._listener.open()
        while self._listener.poll(max(0.0, until - monotonic())):
            said = self._admitted(self._listener.take())
            if said or monotonic() >= until:  # strangers may talk without end
                return said
        return None

    def close(self) -> None:
        self._listener.close(LINGER_MS)

    def _admit(self) -> None:
        self._listener.admit(map(self._key_of, self._attempts))

    def _key_of(self, stage: int) -> str | None:
        return self._keys.get((stage, self._attempts.get(stage, 0)))

    def _admitted(self, envelope: Envelope) -> Said | None:
        known = _NAME.fullmatch(envelope.name)
        if not known:
            self.rejections.reject(envelope.peer, "it is no stage of this run")
        elif (int(known[1]), known[2].decode()) != (PROTOCOL_VERSION, self._run):
            other = name_of_run(known[2].decode(), int(known[1]))
            self.rejections.reject(
                f"{envelope.peer} of {other}", f"this is {name_of_run(self._run)}"
            )
        elif int(known[5]) == self._attempts.get(int(known[4]), 0):
            stage = int(known[4])
            if envelope.key != self._key_of(stage):
                self.rejections.reject(
                    f"key {envelope.key}", f"it speaks for stage {stage}, whose host holds another"
                )
                return None
            self._awaited.discard((known[3].decode(), stage))
            if not self._awaited:
                self._listener.shut()
            return self._read(stage, envelope)
        return None  # the last words of a worker that was replaced

    def _read(self, stage: int, envelope: Envelope) -> Said | None:
        try:
            message = decode(envelope.frames[0] if envelope.frames else b"")
        except ProtocolError as error:
            self.rejections.reject(f"stage {stage}", str(error))
            return None
        return Said(stage, message, tuple(envelope.frames[1:]))


def _name(run: str, role: str, stage: int, attempt: int) -> bytes:
    return f"pipeline-{PROTOCOL_VERSION}-{run}-{role}-{stage}-{attempt}".encode()
