"""What a stream is held against: a TCP connection between two processes, into memory that is ready.

here                 clock ─▶ send all
the other process              receive into the same memory ─▶ clock ─▶ answer
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from multiprocessing import get_context
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import torch

from benchmarks.lib.link_ends import Hops, end_process, heard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from torch import Tensor

_TIMEOUT_S = 120.0


class PlainSocket:
    """The end that sends."""

    def __init__(self, connection: socket.socket, pipe: Connection) -> None:
        self._socket, self._pipe = connection, pipe

    def cross(self, x: Tensor, count: int) -> Hops:
        """Send float32 (n, features) so many times."""
        data = x.view(-1).view(torch.uint8).numpy().data
        self._pipe.send((count, data.nbytes))
        cpu_s, sent = process_time(), []
        for _ in range(count):
            sent.append(perf_counter())
            self._socket.sendall(data)
            assert self._socket.recv(1), "the other process answers"
        came, their_cpu_s = heard(self._pipe)
        seconds = [end - begin for begin, end in zip(sent, came, strict=True)]
        return Hops(seconds, process_time() - cpu_s + their_cpu_s)


@contextmanager
def plain_socket(most_bytes: int) -> Iterator[PlainSocket]:
    """To a process that ends with the block."""
    mine, theirs = get_context("spawn").Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (theirs, listener.getsockname(), most_bytes)
        process = get_context("spawn").Process(target=_take_all, args=arguments, daemon=True)
        process.start()
        theirs.close()
        listener.settimeout(_TIMEOUT_S)
        connection, _ = listener.accept()
    with connection:
        _prepare(connection)
        try:
            yield PlainSocket(connection, mine)
        finally:
            end_process(process, mine)


def _take_all(pipe: Connection, address: tuple[str, int], most_bytes: int) -> None:
    memory = memoryview(bytearray(most_bytes))
    with socket.create_connection(address, _TIMEOUT_S) as connection:
        _prepare(connection)
        while order := pipe.recv():
            count, nbytes = order
            cpu_s, came = process_time(), []
            for _ in range(count):
                taken = connection.recv_into(memory[:nbytes], 0, socket.MSG_WAITALL)
                assert taken == nbytes, "the other process sends all"
                came.append(perf_counter())
                connection.sendall(b"k")
            pipe.send((came, process_time() - cpu_s))


def _prepare(connection: socket.socket) -> None:
    """One call for all bytes: what waits for them is the other process, which has a time-out."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
