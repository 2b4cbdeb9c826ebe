"""Threads that nobody waits for, and that nobody is left with."""

from __future__ import annotations

import sys
import threading

import pytest
from support.processes import until

from pipeline.system.daemon_pool import DaemonPool


def running(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def test_work_is_done_in_threads_that_start_with_the_first_of_it() -> None:
    pool = DaemonPool(2, "some")
    assert running("some") == 0
    assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
    assert running("some") == 2
    pool.shutdown()
    until(lambda: running("some") == 0, "the end of the threads")


def test_threads_end_with_their_pool() -> None:
    """A program that makes one data set after the other would have more and more of them."""
    pool = DaemonPool(3, "other")
    assert pool.submit(abs, -1).result() == 1
    del pool
    until(lambda: running("other") == 0, "the end of the threads")


def test_an_error_is_for_whoever_asks_for_the_result() -> None:
    pool = DaemonPool(1, "third")
    future = pool.submit(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        future.result()
    assert pool.submit(abs, -1).result() == 1


def test_what_was_not_begun_can_be_cancelled() -> None:
    pool, held = DaemonPool(1, "fourth"), threading.Event()
    first, second = pool.submit(held.wait), pool.submit(abs, -1)
    pool.shutdown(cancel_futures=True)
    held.set()
    assert first.result()
    until(lambda: running("fourth") == 0, "the end of the thread")
    assert second.cancelled()


def test_whoever_waits_hears_of_an_exit_too() -> None:
    pool = DaemonPool(1, "fifth")
    future = pool.submit(sys.exit, "enough")
    with pytest.raises(SystemExit, match="enough"):
        future.result(timeout=30)
    assert pool.submit(abs, -1).result(timeout=30) == 1, "the thread goes on"
