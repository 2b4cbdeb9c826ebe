"""The whole pipeline in threads: the same bytes as single mode, and every way to fail.

Real processes are in other tests.
"""

from __future__ import annotations

import itertools
from collections import Counter
from inspect import signature
from threading import Event as Signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import (
    Job,
    ThreadWorkers,
    coordinator,
    plant_a_fault,
    train_pipelined,
    train_single,
)

from pipeline.data.facts import data_facts
from pipeline.errors import (
    InterruptedRunError,
    PipelineError,
    StageFailedError,
    TimedOutError,
)
from pipeline.learning.build import build_stage
from pipeline.network.from_config import network_specs
from pipeline.planning.cost import block_costs
from pipeline.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    Complete,
    Connect,
    Heartbeat,
    Hello,
)
from pipeline.run.events import CheckpointWritten, EpochDone, Progress, Waiting
from pipeline.schedule.items import Snapshot
from pipeline.schedule.reports import PassReport, StageState, Tally, Usage
from pipeline.single import SingleTrainer
from pipeline.system.sources import running_code
from pipeline.transport.in_memory import MemorySender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.learning.stage import Stage
    from pipeline.run.events import Event
    from pipeline.schedule.items import Item

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


@pytest.fixture
def single(folder: Callable[[], Path]) -> Job:
    """What must come out, with a checkpoint after every step."""
    job = Job(folder(), 3, checkpoint_every_steps=1)
    train_single(job)
    return job


# --- equal to single mode -----------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_block_files_equal_those_of_single_mode(
    single: Job, folder: Callable[[], Path], stages: int, max_in_flight: int
) -> None:
    job = Job(folder(), stages, checkpoint_every_steps=1, max_in_flight=max_in_flight)
    train_pipelined(job)
    assert sorted(job.store.files) == [1, 2, 3, 4, 5, 6]
    assert sorted(job.store.files[6]) == [0, 1, 2, 3]
    assert job.store.files == single.store.files
    assert job.store.newest == single.store.newest
    assert job.lines() == single.lines()
    assert [line["epoch"] for line in job.lines()] == [1, 2]


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_slots_that_a_device_reads_come_back_while_the_next_batch_is_taken(
    single: Job, folder: Callable[[], Path], max_in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one slot the device comes so far by itself; with two it may need the next batch."""

    class Device:
        def __init__(self) -> None:
            self.marks = 0

        def mark(self) -> Any:
            self.marks += 1
            mine, looks = self.marks, itertools.count()
            done = {
                1: lambda: next(looks) > 2,
                2: lambda: self.marks > mine,
            }
            return SimpleNamespace(query=done[max_in_flight])

    monkeypatch.setattr("pipeline.worker.tensors.marks_of", lambda device: Device().mark)
    job = Job(folder(), 3, checkpoint_every_steps=1, max_in_flight=max_in_flight)
    train_pipelined(job)
    assert job.store.files == single.store.files


def test_in_single_mode_all_stages_share_the_memory_of_recorded_steps(
    folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders = []

    def noted(*given: Any, **named: Any) -> Stage:
        recorders.append(signature(build_stage).bind(*given, **named).arguments["graphs"])
        return build_stage(*given, **named)

    monkeypatch.setattr("pipeline.single.build_stage", noted)
    SingleTrainer(Job(folder(), 3).run)
    assert len(recorders) == 3
    assert recorders[0] is recorders[1] is recorders[2] is not None


@pytest.mark.parametrize(("precision", "element_bytes"), [("fp32", 4), ("bf16", 2)])
def test_what_people_are_told_of_the_links_crosses_them(
    folder: Callable[[], Path],
    precision: str,
    element_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two epochs of 22 images, each followed by a test with 9."""
    nbytes, send = Counter[Any](), MemorySender.send

    def counting(sender: MemorySender, item: Any, payloads: Any = ()) -> None:
        nbytes[sender] += sum(payload.spec.nbytes for payload in payloads)
        send(sender, item, payloads)

    monkeypatch.setattr(MemorySender, "send", counting)
    job, workers = Job(folder(), 3, precision=precision), ThreadWorkers(3)
    train_pipelined(job, workers=workers)
    crossed = [nbytes[workers.senders[f"link-{stage}-0"]] for stage in range(3)]
    facts = data_facts(job.run.config.data)
    specs = network_specs(job.run.config, facts)
    costs = block_costs(
        specs, batch_size=8, element_bytes=element_bytes, optimizer_name="adam", backprop=False
    )
    data_bytes = facts.example_bytes, facts.target_bytes
    assert crossed == list(job.run.plan.received_bytes(costs, 2 * (22 + 9), *data_bytes))


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"precision": "bf16"}, {"optimizer": {"lr": 0.1}}], ids=str
)
def test_what_matters_changes_every_block(
    single: Job, folder: Callable[[], Path], change: dict[str, Any]
) -> None:
    other = Job(folder(), 3, checkpoint_every_steps=1, **change)
    train_single(other)
    assert all(other.store.files[6][block] != single.store.files[6][block] for block in range(4))


def test_tests_and_snapshots_in_between_change_no_weight(
    single: Job, folder: Callable[[], Path]
) -> None:
    job = Job(folder(), 3, eval_every_epochs=0)
    train_pipelined(job)
    assert sorted(job.store.files) == [3, 6]
    assert job.store.files[6] == single.store.files[6]
    assert [line["test"] for line in job.lines()] == [None, None]
    tested = Job(folder(), 3, eval_before_training=True)
    train_pipelined(tested)
    assert tested.store.files[6] == single.store.files[6]
    assert [line["epoch"] for line in tested.lines() if line["test"]] == [0, 1, 2]
    trained = [[line["train"] for line in run.lines()] for run in (job, tested)]
    assert trained[0] == trained[1][1:]


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_resumed_with_another_number_of_stages(
    single: Job, folder: Callable[[], Path], step: int
) -> None:
    second = Job(folder(), 2, single.store.states[step], checkpoint_every_steps=1)
    train_pipelined(second)
    assert sorted(second.store.files) == list(range(step + 1, 7))
    assert second.store.files[6] == single.store.files[6]
    assert second.lines() == single.lines()[-len(second.lines()) :]


def test_interrupted_and_resumed(
    single: Job, folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first checkpoint, before the feed has come to the end."""
    first, interrupted = Job(folder(), 3, checkpoint_every_steps=1), Signal()
    send = MemorySender.send

    def held(sender: MemorySender, item: Item, payloads: Any = ()) -> None:
        if isinstance(item, Snapshot) and item.step == 5:
            assert interrupted.wait(60.0)
        send(sender, item, payloads)

    monkeypatch.setattr(MemorySender, "send", held)

    def interrupt(event: Event) -> None:
        if isinstance(event, CheckpointWritten) and event.step == 1:
            first.interrupted = True
            first.run.heed_interruption()
            interrupted.set()

    first.listeners.append(interrupt)
    workers = ThreadWorkers(3)
    workers.start()
    with pytest.raises(InterruptedRunError) as caught:
        coordinator(first, workers).run()
    workers.leave()
    assert 1 <= caught.value.step < 6
    assert first.store.newest.position.step == caught.value.step
    assert first.notes == ["interrupted: finishing what is under way, writing a checkpoint"]
    second = Job(folder(), 2, first.store.newest)
    train_pipelined(second)
    assert second.store.files[6] == single.store.files[6]


def test_progress_is_told(folder: Callable[[], Path]) -> None:
    job = Job(folder(), 2, progress_interval_s=1e-9)
    train_pipelined(job)
    looks = [event for event in job.events if isinstance(event, Progress)]
    assert looks
    assert all(look.step == look.stages[-1].batch_id for look in looks)
    assert looks[-1].epoch == 2
    assert [stage.stage for stage in looks[-1].stages] == [0, 1]


# --- failures -----------------------------------------------------------------------------


def test_failure_of_a_worker_is_told_with_its_traceback(
    folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_a_fault(monkeypatch, "planted\nand more")
    # room for the whole run: nobody waits for a credit of the stage that fails
    job, workers = Job(folder(), 3, max_in_flight=64, max_restarts=0), ThreadWorkers(3)
    workers.start()
    with pytest.raises(StageFailedError) as caught:
        coordinator(job, workers).run()
    workers.end()
    assert caught.value.summary == (
        "stage 1 (block 1, cpu), block 1 failed at batch 3: ValueError: planted"
    )
    assert "and more" in caught.value.remote_traceback
    assert "in fails" in caught.value.remote_traceback


def test_single_mode_tells_the_failed_batch_too(
    folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_a_fault(monkeypatch)
    plant_a_fault(monkeypatch, "planted in a test", at=(0, None))
    with pytest.raises(StageFailedError, match="stage 1, block 1 failed at batch 3: ValueError"):
        train_single(Job(folder(), 3))
    with pytest.raises(StageFailedError, match="stage 0, block 0 failed: ValueError: planted in"):
        train_single(Job(folder(), 3, eval_before_training=True))


def ticking(step_s: float) -> Callable[[], float]:
    ticks = itertools.count()
    return lambda: next(ticks) * step_s


def failure(
    job: Job, workers: ThreadWorkers, clock: Callable[[], float] | None = None
) -> tuple[type[PipelineError], str]:
    with pytest.raises(PipelineError) as caught:
        coordinator(job, workers, clock).run()
    return type(caught.value), str(caught.value)


def test_workers_that_never_come(folder: Callable[[], Path]) -> None:
    """Until training begins only the start-up time-out counts, however long a worker builds."""
    job, workers = Job(folder(), 2, start_timeout_s=10.0), ThreadWorkers(2)
    workers.control.client(0).send(Hello("run", PROTOCOL_VERSION, 1, running_code()))
    workers.control.client(1).send(Heartbeat(0, 0, "starting", 0.0))
    kind, said = failure(job, workers, clock=ticking(30.0))
    assert kind is TimedOutError
    assert said.startswith("waited 1")
    assert said.endswith(" s for stage 0 on cpu, stage 1 on cpu (runtime.start_timeout_s 10)")
    waiting = [event for event in job.events if isinstance(event, Waiting)]
    assert waiting[0].missing == ("stage 0 on cpu", "stage 1 on cpu")


USAGE = Usage(1.0, 1.0, 0)
BEFORE_THE_START: list[tuple[int, Any, list[bytes], str]] = [
    (7, Bye(), [], "stage 7 was turned away: the plan has 2 stages"),
    (0, Connect(None), [], "stage 0 was turned away: it sent Connect"),
    (
        1,
        Bye(),
        [],
        "stage 1 was turned away: stage 1 is STARTING: received Bye, expected Hello, Failure",
    ),
    (
        0,
        Hello("other", 9, 1),
        [],
        "stage 0 was turned away: it sent a hello of run other (protocol 9), this is run run "
        f"(protocol {PROTOCOL_VERSION})",
    ),
    (
        0,
        Hello("run", PROTOCOL_VERSION, 1, running_code()),
        [b"x"],
        "it sent 1 files where 0 belong",
    ),
]
MEANWHILE: list[tuple[int, Any, list[bytes], str]] = [
    (0, PassReport(1, 1, True, (), USAGE), [], "it sent a report of stage 1"),
    (0, PassReport(0, 3, True, (), USAGE), [], "it sent a report of epoch 3"),
    (0, PassReport(0, -1, True, (), USAGE), [], "it sent a report of epoch -1"),
    (0, PassReport(0, 1, False, (), USAGE, (1, 2, 3)), [], "it sent 3 confusions"),
    (
        0,
        PassReport(0, 1, True, (Tally(3, 8, 1.0, 1),), USAGE),
        [],
        "it sent counters of blocks [3], it has (0,)",
    ),
    (0, StageState(2, 1, False, (1,), ()), [b""], "it sent a state of blocks (1,)"),
    (0, StageState(99, 1, False, (0,), ()), [b""], "it sent a state after step 99"),
    (0, StageState(2, 1, False, (0,), ()), [], "it sent 0 files where 1 belong"),
    (
        1,
        StageState(2, 1, False, (1, 2, 3), (Tally(0, 1, 1.0, 0),)),
        [b""] * 3,
        "counters of blocks [0]",
    ),
    (0, Hello("run", PROTOCOL_VERSION, 1, running_code()), [], "received Hello, expected "),
    (1, Complete(1), [], "it sent Complete"),
]


@pytest.mark.parametrize(
    ("stage", "message", "attached", "expected", "after_epoch"),
    [(*row, 0) for row in BEFORE_THE_START] + [(*row, 1) for row in MEANWHILE],
)
def test_what_no_stage_may_say_is_turned_away_and_changes_nothing(
    folder: Callable[[], Path],
    stage: int,
    message: Any,
    attached: list[bytes],
    expected: str,
    after_epoch: int,
) -> None:
    undisturbed, job, workers = Job(folder(), 2), Job(folder(), 2), ThreadWorkers(2)
    train_pipelined(undisturbed)

    def say(event: Any) -> None:
        if isinstance(event, EpochDone) and event.metrics["epoch"] == after_epoch:
            workers.control.client(stage).send(message, attached)

    job.listeners.append(say)
    if after_epoch == 0:
        workers.control.client(stage).send(message, attached)
    train_pipelined(job, workers=workers)
    assert job.store.files == undisturbed.store.files
    assert job.lines() == undisturbed.lines()
    told, count = job.notes
    assert expected in told
    assert count == "control: 1 messages were turned away in all"


def test_interrupted_before_the_workers_came(folder: Callable[[], Path]) -> None:
    job, workers = Job(folder(), 2), ThreadWorkers(2)
    job.interrupted = True
    kind, said = failure(job, workers)
    assert kind is InterruptedRunError
    assert said == "interrupted after step 0: there was nothing to save yet"
