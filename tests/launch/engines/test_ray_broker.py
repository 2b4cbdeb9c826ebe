"""What the broker finds out without Ray."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

from launch.engines.ray_broker import nobody_listens


def test_a_host_says_that_a_node_has_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as node:
        address = node.getsockname()
        assert not nobody_listens(address)
    assert nobody_listens(address)


def test_a_node_that_does_not_answer_may_live() -> None:
    with ExitStack() as stack:
        node = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # nobody takes these, and there is no room for more
            caller = stack.enter_context(socket.socket())
            caller.settimeout(0.1)
            with suppress(TimeoutError):
                caller.connect(node.getsockname())
        assert not nobody_listens(node.getsockname())
