"""A file that can't be read, and a disk that gives nothing: what was learned until then is saved,
whatever is read, in single mode and in the pipeline."""

from __future__ import annotations

import subprocess
import sys
from threading import Event
from threading import enumerate as enumerate_threads
from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import Job, train_pipelined, train_single

from pipeline.errors import CutShortError, InterruptedRunError, PipelineError, RunError
from pipeline.run.events import Waiting
from pipeline.system.daemon_pool import DaemonPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    Folder = Callable[[], Path]
    Train = Callable[[Job], None]

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


WAYS = pytest.mark.parametrize("train", [train_single, train_pipelined])
TRAIN, TEST = "train", "evaluation"


def failing(job: Job, part: str, at: tuple[int, ...], fails: Callable[[], Any]) -> None:
    """A data set whose batch `at` of a part can't be read: (epoch, index), or (index,)."""
    batches = job.run.batches
    read = getattr(batches, part)

    def instead(*asked: int) -> Any:
        return fails() if asked == at else read(*asked)

    setattr(batches, part, instead)


def unreadable() -> Any:
    raise RunError("cat/1.png: can't be decoded as an image")


def out_of_memory() -> Any:
    raise MemoryError("Unable to allocate 9 GiB")


PLACES = {
    "first of all": (TRAIN, (1, 0), 0),
    "in mid-epoch": (TRAIN, (1, 2), 2),
    "with a new epoch": (TRAIN, (2, 0), 3),
    "in the test": (TEST, (1,), 3),
}


@WAYS
@pytest.mark.parametrize(("part", "at", "step"), PLACES.values(), ids=PLACES)
def test_a_file_that_cant_be_read_costs_nothing_that_was_learned(
    train: Train, part: str, at: tuple[int, ...], step: int, folder: Folder
) -> None:
    job = Job(folder(), 3)
    failing(job, part, at, unreadable)
    with pytest.raises(CutShortError) as caught:
        train(job)
    assert caught.value.summary == (
        f"cat/1.png: can't be decoded as an image; a checkpoint of step {step} was written"
    )
    assert max(job.store.files) == step
    lines = job.lines() if step == 3 else []
    assert [(line["epoch"], line["test"] is None) for line in lines] == (
        [(1, part == TEST)] if step == 3 else []
    )
    # and it goes on from there as if nothing had happened, the file having been mended
    resumed = Job(job.folder, 3, start=job.store.newest)
    train_single(resumed)
    whole = Job(folder(), 3)
    train_single(whole)
    assert resumed.store.files[6] == whole.store.files[6]


@WAYS
def test_so_does_whatever_else_goes_wrong_with_an_item(train: Train, folder: Folder) -> None:
    job = Job(folder(), 3, max_in_flight=64)
    failing(job, TRAIN, (2, 1), out_of_memory)
    with pytest.raises(CutShortError, match="the feed failed: MemoryError: Unable") as caught:
        train(job)
    assert (caught.value.step, max(job.store.files)) == (4, 4)
    assert "out_of_memory" in caught.value.remote_traceback


# --- a disk that hangs ----------------------------------------------------------------------


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Job, int], None]]:
    """Have batch `index` of epoch 1 read from a disk that gives nothing, until the test is over."""
    over = Event()
    monkeypatch.setattr("pipeline.data.batches.Batches.in_memory", False)
    monkeypatch.setattr("pipeline.run.batch_reader._ENDS_S", 0.3)
    monkeypatch.setattr("pipeline.run.batch_reader._TELLS_EVERY_S", 0.1)

    def hang(job: Job, index: int) -> None:
        failing(job, TRAIN, (1, index), lambda: over.wait(60.0))

    yield hang
    over.set()


@WAYS
def test_what_is_read_from_a_disk_gives_the_same_and_its_thread_ends_with_the_run(
    train: Train, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, held = Job(folder(), 3), Job(folder(), 3)
    before = set(enumerate_threads())
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.data.batches.Batches.in_memory", False)
        train(read)
    left = [one for one in enumerate_threads() if one not in before and "reading" in one.name]
    for one in left:
        one.join(10.0)
    assert not any(one.is_alive() for one in left)
    train(held)
    assert read.store.files == held.store.files


@WAYS
def test_a_disk_that_hangs_is_told_of_and_an_interruption_saves_what_there_is(
    train: Train, folder: Folder, hanging: Callable[[Job, int], None]
) -> None:
    job = Job(folder(), 3)
    hanging(job, 2)

    def interrupt(event: Any) -> None:
        job.interrupted = job.interrupted or isinstance(event, Waiting)

    job.listeners.append(interrupt)
    with pytest.raises(InterruptedRunError) as caught:
        train(job)
    assert (caught.value.step, max(job.store.files)) == (2, 2)
    waits = [event for event in job.events if isinstance(event, Waiting)]
    assert waits[0].missing == ("the images of batch 3",)


@WAYS
def test_a_disk_that_hangs_for_too_long_ends_the_run(
    train: Train, folder: Folder, hanging: Callable[[Job, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.run.batch_reader.LONGEST_WAIT_S", 0.3)
    job = Job(folder(), 3)
    hanging(job, 1)
    with pytest.raises(CutShortError, match="for the images of batch 2: the disk gave none"):
        train(job)
    assert max(job.store.files) == 1


# --- threads that nobody waits for ----------------------------------------------------------


def test_a_pool_does_its_work_in_order_and_hands_errors_on() -> None:
    pool: Executor = DaemonPool(3, "decode")
    assert list(pool.map(lambda x: x * x, range(100))) == [x * x for x in range(100)]
    with pytest.raises(PipelineError, match="bad"):
        list(pool.map(_fails_at_7, range(20)))
    assert list(pool.map(len, ["a", "bc"])) == [1, 2]  # its threads live on


def _fails_at_7(number: int) -> int:
    if number == 7:
        raise PipelineError("bad")
    return number


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    program = (
        "from threading import Event; from pipeline.system.daemon_pool import DaemonPool; "
        "DaemonPool(2, 'decode').submit(Event().wait)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
