"""What is recorded of whole runs, and that recording changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import Fate, Job, train_pipelined, train_single
from support.traces import read_trace

from pipeline.errors import InterruptedRunError
from pipeline.run.events import CheckpointWritten

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.run.events import Event

    Folder = Callable[[], Path]

STAGES, FEED = 3, 3
COURSE: dict[str, Any] = {"checkpoint_every_steps": 2}
"""2 epochs of 3 steps, each with a test of 2 batches; snapshots after steps 2, 4 and 6."""

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Undisturbed and not recorded."""
    job = Job(tmp_path_factory.mktemp("plain"), STAGES, **COURSE)
    train_single(job)
    assert not (job.folder / "trace.json").exists()
    return job


@pytest.mark.parametrize("train", [train_single, train_pipelined])
def test_recorded_runs_give_the_same_weights_and_a_trace(
    train: Callable[[Job], None], plain: Job, folder: Folder
) -> None:
    """4 of 6 batches: the test that follows batch 3 is among them, the end of the run is not."""
    job = Job(folder(), STAGES, trace=4, **COURSE)
    train(job)
    assert (job.store.files, job.lines()) == (plain.store.files, plain.lines())
    trace = read_trace(job.folder)
    for stage in range(STAGES):
        assert trace.batches(stage) == [1, 2, 3, 4]
        assert [span["name"] for span in trace.spans(stage, "marker")] == [
            *("snapshot of step 2", "end of epoch 1", "test of epoch 1 begins"),
            *("test of epoch 1 ends", "snapshot of step 4"),
        ]
        tests = [span for span in trace.spans(stage, "compute") if span["name"] == "evaluate"]
        assert [span["args"] for span in tests] == [
            {"test_batch": number, "epoch": 1} for number in (1, 2)
        ]
    assert all(trace.batches(stage, "learn") == [1, 2, 3, 4] for stage in range(STAGES - 1))
    assert trace.batches(FEED, "send")[0] == 1
    assert trace.hops(4) == ["to stage 0", "to stage 1", "to stage 2"]
    assert trace.other["batches"] == [1, 4]
    assert trace.other["cut_short"] == ""
    assert any("trace.json: where the time went" in note for note in job.notes)


def test_stages_of_a_pipeline_wait_for_input_and_for_room(folder: Folder) -> None:
    job = Job(folder(), STAGES, trace=2)
    train_pipelined(job)
    trace = read_trace(job.folder)
    for stage in range(STAGES):
        categories = {span["cat"] for span in trace.spans(stage)}
        sends = {"room", "send", "learn"} if stage < STAGES - 1 else set()
        assert categories == {"input", "copy", "compute"} | sends
        assert [span["args"]["batch"] for span in trace.spans(stage, "input")][:2] == [1, 2]


def test_what_is_recorded_to_the_end_has_the_end(folder: Folder) -> None:
    job = Job(folder(), STAGES, trace=900, **COURSE)
    train_pipelined(job)
    trace = read_trace(job.folder)
    assert [trace.spans(stage, "marker")[-1]["name"] for stage in range(STAGES)] == ["stop"] * 3
    assert trace.batches(2)[-1] == 6


def test_a_resumed_run_records_its_own_first_batches(plain: Job, folder: Folder) -> None:
    job = Job(folder(), 2, plain.store.states[2], trace=2, **COURSE)
    train_pipelined(job)
    assert job.store.files[6] == plain.store.files[6]
    trace = read_trace(job.folder)
    assert [trace.batches(stage) for stage in range(2)] == [[3, 4], [3, 4]]
    assert trace.other["batches"] == [3, 4]


def test_a_lost_stage_loses_its_spans_and_ends_nothing(plain: Job, folder: Folder) -> None:
    job = Job(folder(), STAGES, trace=6, **COURSE)
    train_pipelined(job, {1: Fate(24)})
    assert job.store.files[6] == plain.store.files[6]
    trace = read_trace(job.folder)
    assert [stage["recorded"] for stage in trace.other["stages"]] == [True, False, True]
    assert "stage 1 (block 1, cpu) was killed by SIGKILL" in trace.other["cut_short"]
    assert trace.batches(0)
    assert not trace.spans(1)


def test_an_interrupted_run_leaves_what_there_is(folder: Folder) -> None:
    job = Job(folder(), STAGES, trace=900, **COURSE)

    def interrupt(event: Event) -> None:
        job.interrupted |= isinstance(event, CheckpointWritten)

    job.listeners.append(interrupt)
    with pytest.raises(InterruptedRunError):
        train_pipelined(job)
    trace = read_trace(job.folder)
    assert trace.batches(0)[:2] == [1, 2]
    assert trace.spans(0, "marker")[-1]["name"] == "stop"


def test_stages_in_one_process_that_fail_leave_what_there_is(folder: Folder) -> None:
    job = Job(folder(), STAGES, trace=900)

    def fail(event: Event) -> None:
        if isinstance(event, CheckpointWritten):
            raise KeyboardInterrupt

    job.listeners.append(fail)
    with pytest.raises(KeyboardInterrupt):
        train_single(job)
    assert read_trace(job.folder).batches(0)[:3] == [1, 2, 3]
