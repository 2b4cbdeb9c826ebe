"""Who does not answer over TCP is told of once, with what is in the way."""

from __future__ import annotations

import os
import socket

import pytest

from pipeline.transport.first_answer import UNANSWERED_S, FirstAnswer, what_stops

ENDPOINT, NAMES = "tcp://[fd00:8::1]:20000", ("stage 0", "stage 1")


class Waiting:
    """For an answer, by a clock that a test sets."""

    def __init__(self, endpoint: str = ENDPOINT) -> None:
        self.now, self.told, self.asked = 100.0, list[str](), list[tuple[str, int]]()
        self.answer = FirstAnswer(
            endpoint, NAMES, self.told.append, clock=lambda: self.now, why=self._why
        )

    def _why(self, address: str, port: int) -> str:
        self.asked.append((address, port))
        return "a wall"

    def after(self, seconds: float) -> list[str]:
        self.now += seconds
        self.answer.look()
        return self.told


def test_one_line_names_who_where_why_and_what_to_look_at() -> None:
    waiting = Waiting()
    assert waiting.after(UNANSWERED_S - 0.1) == []
    (line,) = waiting.after(0.2)
    assert waiting.asked == [("fd00:8::1", 20000)]
    assert line.startswith(
        f"stage 0, on host {os.uname().nodename}, has had no answer from stage 1 at [fd00:8::1] "
        "port 20000 for 10 s: a wall; look at the firewalls"
    )
    for key in ("runtime.ports", "runtime.bind_address"):
        assert key in line
    assert waiting.after(UNANSWERED_S) == [line]


def test_who_has_answered_is_not_told_of() -> None:
    waiting = Waiting()
    waiting.answer.heard()
    assert waiting.after(2 * UNANSWERED_S) == []


def test_files_of_sockets_can_not_be_out_of_reach() -> None:
    assert Waiting("ipc:///tmp/somewhere").after(2 * UNANSWERED_S) == []


def test_what_stops_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert what_stops("127.0.0.1", port).startswith("the port is open")
    assert what_stops("127.0.0.1", port).startswith("the connection is refused")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "nothing comes back"),
        (OSError(113, "No route to host"), "no way leads there"),
        (OSError(99, "Cannot assign requested address"), "Cannot assign requested address"),
    ],
)
def test_what_stops_other_connections(
    monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    def refuse(*given: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert what_stops("10.8.0.1", 20000).startswith(says)
