"""A run that was interrupted, wherever, ends with the same bytes as one that was not."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support.processes import HELD, TINY, TINY_EPOCH, digests, epochs, final_digests, launch

from launch import resume
from launch.cli import main
from launch.engines.interrupts import ONE_S
from launch.engines.local import LocalEngine
from launch.job import Options
from launch.plan.checks import make_job
from launch.resume import nothing_left, start_state
from launch.run_directory import hold
from launch.training import carry_out, make_run
from pipeline.data.batches import load_batches
from pipeline.errors import InterruptedRunError
from pipeline.run.events import ignore
from pipeline.schedule.feed import Feed, course_of
from pipeline.schedule.items import Item, TrainBatch
from pipeline.storage.background_writer import BackgroundWriter
from pipeline.storage.checkpoint import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.processes import Launcher

    from launch.job import Job
    from pipeline.storage.checkpoint import Checkpoint
    from pipeline.storage.folder import Folder

    Start = Callable[..., Launcher]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("sockets_gone")]

MIDDLE = TINY_EPOCH + 2
"""A step in the middle of the second epoch."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    assert launch(folder / "tiny.yaml", folder / "run", stages=2) == 0
    return folder / "run"


@pytest.fixture
def copy(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "a copy"))


@pytest.fixture
def interrupted_at_once() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.training.interrupts_noted", lambda: nullcontext(lambda: True))
        yield patch


def assert_same_end(run_dir: Path, undisturbed: Path) -> None:
    assert final_digests(run_dir) == final_digests(undisturbed)
    assert max(digests(run_dir)) == 3 * TINY_EPOCH
    assert [line["epoch"] for line in epochs(run_dir)] == [1, 2, 3]
    assert epochs(run_dir) == epochs(undisturbed)


# --- interrupted by a signal --------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("how", "mode"),
    [("ctrl-c", ["--stages", "3"]), ("SIGTERM", ["--stages", "2"]), ("ctrl-c", ["--single"])],
)
def test_interrupted_in_the_middle_of_an_epoch(
    launcher: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Path,
    how: str,
    mode: list[str],
) -> None:
    held = launcher("tiny.yaml", "--run-dir", "a run", *mode, program=HELD.format(step=MIDDLE))
    held.wait_for("held")
    held.wait_for("a run/metrics.jsonl", '"epoch": 1,')
    if how == "ctrl-c":
        held.press_ctrl_c()
    else:
        held.process.send_signal(signal.SIGTERM)
    assert held.exit_status() == 130
    said, command = held.stderr.splitlines()
    assert said == f"interrupted after step {MIDDLE}: a checkpoint was written; to go on:"
    advised = ["pipeline-launch", "--resume", "--run-dir", "a run", *mode, "--gpus", "cpu"]
    assert shlex.split(command) == [*advised, "tiny.yaml"]
    assert max(digests(tmp_path / "a run")) == MIDDLE
    assert [line["epoch"] for line in epochs(tmp_path / "a run")] == [1]

    for name, options in {"1": {"stages": 1}, "single": {"single": True}}.items():
        copy = tmp_path / f"resumed {name}"
        shutil.copytree(tmp_path / "a run", copy)
        assert launch(tmp_path / "tiny.yaml", copy, resume=True, **options) == 0
        assert_same_end(copy, undisturbed)
    monkeypatch.chdir(tmp_path)
    pasted = CliRunner().invoke(main, shlex.split(command)[1:])
    assert (pasted.exit_code, pasted.stderr) == (0, "")
    assert f"resuming from step-{MIDDLE:08d}" in pasted.stdout
    assert_same_end(tmp_path / "a run", undisturbed)


@pytest.mark.usefixtures("interrupted_at_once")
def test_a_plan_written_by_hand_is_part_of_what_is_advised(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"stages": [{"blocks": [0, 1, 2, 3], "device": "cpu"}]}', encoding="utf-8")
    assert launch(tiny, tmp_path / "run", plan=plan) == 130
    assert f"--plan {plan}" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_a_second_ctrl_c_ends_at_once(launcher: Start, tmp_path: Path) -> None:
    patient = ("--set", "schedule.epochs=1000000", "--set", "runtime.heartbeat_timeout_s=60")
    endless = launcher("tiny.yaml", "--run-dir", "run", *patient)
    endless.wait_for("run/run.log", "checkpoint step-00000004")
    endless.workers()[1].suspend()  # so that the run can't finish what is under way
    endless.press_ctrl_c()
    endless.wait_for("run/run.log", "interrupted: finishing what is under way")
    time.sleep(ONE_S)  # else it would be the same one
    endless.press_ctrl_c()
    assert endless.exit_status(30.0) == 130  # before a silent worker is taken for dead
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert log.endswith("interrupted once more: ended at once\n")
    said, command = endless.stderr.splitlines()
    step = max(digests(tmp_path / "run"))  # what was there is there, and whole
    assert said == f"interrupted: the newest complete checkpoint is of step {step}; to go on:"
    assert command.startswith("  pipeline-launch --resume --run-dir run --gpus cpu --set ")


def test_interrupted_before_there_is_a_run(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def at_once(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.training.load_batches", at_once)
    assert launch(tiny, tmp_path / "run", single=True) == 130
    assert capsys.readouterr().err == "interrupted: there is no complete checkpoint\n"


def test_interrupted_while_workers_start_and_resumed(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    undisturbed: Path,
    interrupted_at_once: pytest.MonkeyPatch,
) -> None:
    assert launch(tiny, tmp_path / "run") == 130
    says = capsys.readouterr().err
    assert digests(tmp_path / "run") == {}
    assert says.startswith("interrupted after step 0: there was nothing to save yet; to go on:")
    assert str(tmp_path / "run") in says
    interrupted_at_once.undo()
    assert launch(tiny, tmp_path / "run", resume=True, stages=2) == 0
    assert_same_end(tmp_path / "run", undisturbed)


# --- nothing left to train ----------------------------------------------------------------


def test_a_finished_run_has_nothing_to_resume(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    monkeypatch.setattr(LocalEngine, "warm_up", lambda engine: pytest.fail("workers started"))
    for config in (copy / "config.yaml", None):
        for options in ({"stages": 1}, {"single": True, "overrides": ("optimizer.lr=0.1",)}):
            assert launch(config, copy, resume=True, **options) == 0
            said = capsys.readouterr()
            assert said.err == ""
            assert said.out == (
                f"nothing to do: the run in {copy} has trained all its 3 epochs; to go on, raise "
                "schedule.epochs, as --set schedule.epochs=6\n"
            )
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("epochs_asked_for", [1, 2])
def test_fewer_epochs_than_were_trained_are_refused(
    copy: Path, capsys: pytest.CaptureFixture[str], epochs_asked_for: int
) -> None:
    fewer = (f"schedule.epochs={epochs_asked_for}",)
    for options in ({"dry_run": True}, {"single": True}):
        assert launch(None, copy, resume=True, overrides=fewer, **options) == 2
        assert capsys.readouterr().err == (
            f"error: --resume: schedule.epochs is {epochs_asked_for}, but the run in {copy} is in "
            "epoch 3 already; use --set schedule.epochs=3 or more, or start a new run\n"
        )


def test_fewer_epochs_may_be_what_was_trained(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints" / "step-00000012")
    assert launch(None, copy, resume=True, single=True, overrides=("schedule.epochs=2",)) == 0
    assert "has trained all its 2 epochs; to go on" in capsys.readouterr().out


def test_what_was_trained_but_not_tested_is_no_finished_run(tmp_path: Path) -> None:
    job = smallest(tmp_path)
    last = len(items_of(job)) - 3
    with pytest.raises(InterruptedRunError):
        train(job, tmp_path / "run", interrupted_after(last))
    with hold(tmp_path / "run") as held:
        start, _ = start_state(held.folder, job)
        assert start.position.step == 6
        assert nothing_left(job, start, held.path) == ""
    train(job, tmp_path / "run", lambda: False)
    with hold(tmp_path / "run") as held:
        assert "all its 2 epochs" in nothing_left(job, start_state(held.folder, job)[0], held.path)


def test_a_finished_run_of_one_block_after_another_can_not_be_lengthened(tmp_path: Path) -> None:
    job = smallest(tmp_path, "schedule.greedy=true")
    train(job, tmp_path / "run", lambda: False)
    with hold(tmp_path / "run") as held:
        said = nothing_left(job, start_state(held.folder, job)[0], held.path)
    assert said == f"nothing to do: the run in {tmp_path / 'run'} has trained all its 4 epochs"


def test_a_run_that_patience_ended_has_nothing_to_resume_until_it_has_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = tmp_path / "smallest.yaml", tmp_path / "run"
    config.write_text(SMALLEST, encoding="utf-8")
    early = ("schedule.epochs=9", "schedule.patience=2", "optimizer.lr=1e-12")
    assert launch(config, run, single=True, overrides=early) == 0
    why = "2 epochs brought no lower tested error than epoch 1"
    log = (run / "run.log").read_text(encoding="utf-8")
    said = f" ended early, after epoch 3 of 9, by schedule.patience 2: {why}\n"
    assert log.endswith(said)
    assert max(digests(run)) == epochs(run)[-1]["step"] == 9
    capsys.readouterr()
    assert launch(None, run, resume=True, single=True) == 0
    assert capsys.readouterr().out == (
        f"nothing to do: the run in {run} ended early, after epoch 3 of 9: {why}; to go on, raise "
        "schedule.patience, as --set schedule.patience=4, or leave it out (null)\n"
    )
    assert launch(None, run, resume=True, stages=1, overrides=("schedule.patience=4",)) == 0
    assert [line["epoch"] for line in epochs(run)] == [1, 2, 3, 4, 5]
    assert launch(None, run, resume=True, single=True, overrides=("schedule.patience=null",)) == 0
    assert [line["epoch"] for line in epochs(run)] == [*range(1, 10)]
    undisturbed = tmp_path / "undisturbed"
    assert launch(config, undisturbed, single=True, overrides=(early[0], early[2])) == 0
    assert final_digests(run) == final_digests(undisturbed)


# --- looking on while a run is at work ----------------------------------------------------


def test_a_checkpoint_that_is_dropped_while_somebody_looks(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--dry-run --resume` beside a run: it looks again, at the next one."""
    later = tmp_path / "later"
    newest = copy / "checkpoints" / "step-00000012"
    newest.rename(later)
    opened, seen = resume.checkpoint_in, []

    def dropped(checkpoints: Folder, name: str) -> Checkpoint:
        found = opened(checkpoints, name)
        seen.append(name)
        if name == "step-00000008":
            shutil.rmtree(copy / "checkpoints" / name)
            later.rename(newest)
        return found

    monkeypatch.setattr(resume, "checkpoint_in", dropped)
    assert launch(None, copy, resume=True, dry_run=True) == 0
    assert seen == ["step-00000008", "step-00000012"]


def test_looking_on_needs_no_claim(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(copy):
        assert launch(None, copy, resume=True, dry_run=True) == 0
        assert launch(None, copy, resume=True) == 2
    assert capsys.readouterr().err == (f"error: --run-dir {copy}: another run is at work in it\n")


# --- longer -------------------------------------------------------------------------------


def test_longer_than_planned(undisturbed: Path, tmp_path: Path) -> None:
    """More epochs, other checkpoints: allowed changes; the run equals one planned so."""
    longer = ("schedule.epochs=4", "runtime.checkpoint_every_steps=3")
    planned, resumed = tmp_path / "planned", tmp_path / "resumed"
    shutil.copytree(undisturbed, resumed)
    config = undisturbed / "config.yaml"
    assert launch(config, resumed, resume=True, stages=3, overrides=longer) == 0
    assert launch(config, planned, single=True, overrides=longer) == 0
    assert final_digests(resumed) == final_digests(planned)
    assert epochs(resumed) == epochs(planned)
    log = (resumed / "run.log").read_text(encoding="utf-8")
    assert "schedule.epochs changed from 3 to 4; schedule.milestones stays [1]\n" in log


@pytest.mark.parametrize(
    ("milestones", "epochs_now", "note"),
    [
        ("[0.5]", 6, "by the changed schedule the learning rate goes up from 0.0025 to 0.01"),
        ("[0.5]", 3, None),
        ("[1]", 6, None),
    ],
)
def test_a_rate_that_goes_up_with_more_epochs_is_told(
    tmp_path: Path, milestones: str, epochs_now: int, note: str | None
) -> None:
    def of(epochs: int) -> Job:
        changes = (f"schedule.milestones={milestones}", f"schedule.epochs={epochs}")
        return smallest(tmp_path, "optimizer.lr=0.01", *changes)

    train(of(2), tmp_path / "run", lambda: False)
    with hold(tmp_path / "run") as held:
        notes = start_state(held.folder, of(epochs_now))[1]
    assert [text for text in notes if "goes up" in text] == [note] * (note is not None)


# --- interrupted after every single item --------------------------------------------------

SMALLEST = """\
model: {name: mlp, hidden_layers: 1, hidden: 8, dropout: 0.2}
loss: {name: pred}
schedule: {epochs: 2, milestones: [1]}
data: {name: digits, batch_size: 16, train_limit: 40, test_limit: 20}
"""


def smallest(tmp_path: Path, *overrides: str) -> Job:
    config = tmp_path / "smallest.yaml"
    config.write_text(SMALLEST, encoding="utf-8")
    return make_job(Options(config, single=True, gpus="cpu", overrides=overrides))


def train(job: Job, folder: Path, interrupted: Callable[[], bool]) -> None:
    """Train or go on in single mode, as `launch` does, asking `interrupted` after every item."""
    batches = load_batches(job.config.data, job.config.runtime.seed)
    course = course_of(job.config, job.specs, batches.steps_per_epoch, batches.evaluation_batches)
    with hold(folder) as held:
        start = start_state(held.folder, job)[0] if held.holds_run else RunState()
        store = held.prepare(job, start, course.steps_per_epoch)
        run = make_run(job, held.folder, start, batches, course, BackgroundWriter(store), ignore)
        try:
            carry_out(replace(run, interrupted=interrupted), None)
        finally:
            store.close()


def items_of(job: Job) -> list[Item]:
    batches = load_batches(job.config.data, job.config.runtime.seed)
    course = course_of(job.config, job.specs, batches.steps_per_epoch, batches.evaluation_batches)
    return list(Feed(course, RunState().position))


def interrupted_after(item: int) -> Callable[[], bool]:
    asked = []

    def answer() -> bool:
        asked.append(1)
        return len(asked) >= item

    return answer


TESTED_FIRST = ("runtime.eval_before_training=true",)
SELDOM_TESTED = ("runtime.checkpoint_every_steps=2", "runtime.eval_every_epochs=2")
NEVER_TESTED = ("runtime.eval_every_epochs=0", "optimizer.name=sgd")
ITEMS = {TESTED_FIRST: 23, SELDOM_TESTED: 16, NEVER_TESTED: 11}
"""How many items such a run feeds."""


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """Run directories of undisturbed runs."""
    folders = {overrides: tmp_path_factory.mktemp("whole") for overrides in ITEMS}
    for overrides, folder in folders.items():
        train(smallest(folder, *overrides), folder / "run", lambda: False)
    return {overrides: folder / "run" for overrides, folder in folders.items()}


@pytest.mark.parametrize(
    ("overrides", "number"),
    [(overrides, number) for overrides in ITEMS for number in range(1, ITEMS[overrides] + 1)],
)
def test_interrupted_after_any_item(
    tmp_path: Path,
    wholes: dict[tuple[str, ...], Path],
    overrides: tuple[str, ...],
    number: int,
) -> None:
    job, folder, whole = smallest(tmp_path, *overrides), tmp_path / "run", wholes[overrides]
    items = items_of(job)
    assert len(items) == ITEMS[overrides]
    # at the last snapshot and the stop nothing is left to do
    nothing_left_to_do = number > len(items) - 2
    with nullcontext() if nothing_left_to_do else pytest.raises(InterruptedRunError):
        train(job, folder, interrupted_after(number))
    done = [item.batch_id for item in items[:number] if isinstance(item, TrainBatch)]
    assert max(digests(folder)) == max(done, default=0)
    train(job, folder, lambda: False)
    assert final_digests(folder) == final_digests(whole)
    assert epochs(folder) == epochs(whole)


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    job = smallest(tmp_path)
    train(job, tmp_path / "undisturbed", lambda: False)
    steps = []
    while True:
        try:  # 5 items close an epoch; after fewer than that its test begins again
            train(job, tmp_path / "run", interrupted_after(6))
            break
        except InterruptedRunError as error:
            steps.append(error.step)
    assert steps == [3, 3, 6]  # the fourth interruption finds nothing left to do
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "undisturbed")
    assert epochs(tmp_path / "run") == epochs(tmp_path / "undisturbed")


# --- damaged checkpoints ------------------------------------------------------------------


def flip_one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("options", [{"single": True}, {"stages": 2}])
def test_a_damaged_block_file(
    undisturbed: Path, copy: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    damaged = copy / "checkpoints" / "step-00000012" / "block-02.safetensors"
    flip_one_byte(damaged)
    assert launch(undisturbed / "config.yaml", copy, resume=True, **options) == 1
    says = capsys.readouterr().err
    assert says.count("\n") == 1
    assert says.startswith(f"error: {damaged}: is damaged: ")
    assert "the previous complete checkpoint is step-00000008" in says

    advice = re.search(r"\((mv .*)\) and repeat the command$", says)
    assert advice
    subprocess.run(shlex.split(advice[1]), check=True, timeout=60)
    assert launch(undisturbed / "config.yaml", copy, resume=True, **options) == 0
    assert_same_end(copy, undisturbed)
