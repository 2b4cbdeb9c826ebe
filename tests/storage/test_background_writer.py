"""Snapshots are written behind training's back: in order, the newest and the best always."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import current_thread
from typing import TYPE_CHECKING

import pytest

from pipeline.schedule.feed import Position
from pipeline.storage.background_writer import BackgroundWriter
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.storage.background_writer import Outcome

WAIT_S = 60.0


class Block(bytearray):
    """A block file that can be watched: is it still held in memory?"""


def snapshot(step: int, *, is_best: bool = False) -> RunState:
    return RunState(Position(step), {0: b"block"}, is_best=is_best)


def written(step: int) -> Outcome:
    return step, Path(f"step-{step}")


@dataclass
class SlowStore:
    """A disk that takes a snapshot only when it is told to."""

    begun: SimpleQueue[int] = field(default_factory=SimpleQueue)
    may_go_on: SimpleQueue[Exception | None] = field(default_factory=SimpleQueue)
    threads: set[str] = field(default_factory=set)

    def write(self, given: RunState) -> Path:
        self.threads.add(current_thread().name)
        self.begun.put(given.position.step)
        if error := self.may_go_on.get(timeout=WAIT_S):
            raise error
        return Path(f"step-{given.position.step}")

    def take(self, error: Exception | None = None) -> None:
        """Let it finish one."""
        self.may_go_on.put(error)


class Bench:
    """A writer before a slow disk."""

    def __init__(self) -> None:
        self.store = SlowStore()
        self.writer = BackgroundWriter(self.store)

    def write(self, *steps: int, is_best: bool = False) -> None:
        for step in steps:
            self.writer.write(snapshot(step, is_best=is_best))

    def wait_until_begun(self, step: int) -> None:
        assert self.store.begun.get(timeout=WAIT_S) == step

    def all_outcomes(self) -> list[Outcome]:
        assert self.writer.settle(WAIT_S)
        return self.writer.outcomes()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for _ in range(9):
        bench.store.take()
    assert bench.writer.settle(WAIT_S)


def test_training_goes_on_while_it_is_written(bench: Bench) -> None:
    bench.write(4)
    bench.wait_until_begun(4)
    assert bench.writer.outcomes() == []  # and the caller is here, not in the disk
    assert not bench.writer.settle(0.0)
    bench.store.take()
    assert bench.all_outcomes() == [written(4)]
    assert bench.writer.outcomes() == []
    assert bench.store.threads == {"checkpoints"}


def test_a_slow_disk_leaves_out_what_is_between_and_never_the_newest(bench: Bench) -> None:
    bench.write(1)
    bench.wait_until_begun(1)
    bench.write(2, 3, 4)
    assert bench.writer.outcomes() == [(2, None), (3, None)]
    bench.store.take()
    bench.wait_until_begun(4)
    bench.write(5)
    bench.store.take()
    bench.store.take()
    assert bench.all_outcomes() == [written(1), written(4), written(5)]


def test_the_best_gives_way_to_a_better_one_only(bench: Bench) -> None:
    bench.write(1)
    bench.wait_until_begun(1)
    bench.write(2, 3, is_best=True)
    bench.write(4, 5)
    assert bench.writer.outcomes() == [(2, None), (4, None)]
    for step in (3, 5):
        bench.store.take()
        bench.wait_until_begun(step)
    bench.store.take()
    assert bench.all_outcomes() == [written(1), written(3), written(5)]


def test_the_first_is_written_whatever_follows(bench: Bench) -> None:
    bench.write(1, 2, 3)  # before its thread has looked
    bench.wait_until_begun(1)
    bench.store.take()
    bench.store.take()
    assert bench.all_outcomes() == [(2, None), written(1), written(3)]


@pytest.mark.parametrize("error", [None, OSError(28, "No space left on device")])
def test_one_after_another_and_a_refusal_is_an_outcome(bench: Bench, error: OSError | None) -> None:
    bench.write(1)
    bench.wait_until_begun(1)
    bench.write(2)
    assert bench.store.begun.empty()  # never two at once
    bench.store.take(error)
    bench.wait_until_begun(2)
    bench.store.take()
    assert bench.all_outcomes() == [(1, error) if error else written(1), written(2)]
    bench.store.take()
    bench.write(3)
    assert bench.all_outcomes() == [written(3)]


def test_memory_holds_two_at_most(bench: Bench) -> None:
    held = []
    for step in range(1, 6):
        block = Block(b"block")
        held.append(weakref.ref(block))
        bench.writer.write(RunState(Position(step), {0: memoryview(block)}))
        del block
        if step == 1:
            bench.wait_until_begun(1)
        gc.collect()
        assert sum(ref() is not None for ref in held) <= 2, step
    bench.store.take()
    bench.wait_until_begun(5)
    gc.collect()
    assert [ref() is not None for ref in held] == [False, False, False, False, True]
    bench.store.take()
    assert bench.writer.settle(WAIT_S)


def test_nothing_to_settle() -> None:
    assert BackgroundWriter(SlowStore()).settle(0.0)


def test_every_means_all_of_them_and_at_once() -> None:
    store = SlowStore()
    error = ValueError("odd")
    for answer in (None, error, None):
        store.take(answer)
    writer = BackgroundWriter(store, every=True)
    for step in (1, 2, 3):
        writer.write(snapshot(step))
        assert store.begun.get_nowait() == step
    assert writer.outcomes() == [written(1), (2, error), written(3)]
    assert writer.outcomes() == []
