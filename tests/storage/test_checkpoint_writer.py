"""A checkpoint that is interrupted at every call that changes the disk, and each of its kinds.

Whatever fails, and wherever the process dies, the complete checkpoints are those from before, or
those and the new one; every one of them is whole; and the next write succeeds.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.disk import (
    TAKING_SPACE,
    Dead,
    FailingDisk,
    fill,
    immutable,
    no_space,
    remount,
    small_disk,
)

from pipeline.errors import CheckpointError
from pipeline.learning.block_file import encode_block
from pipeline.schedule.feed import Position
from pipeline.storage.checkpoint import (
    RunState,
    best_name,
    checkpoint_in,
    complete_checkpoints,
)
from pipeline.storage.checkpoint_writer import CheckpointStore
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

State = dict[int, dict[int, bytes]]
"""Blocks by step, of every complete checkpoint; of the best one, by `BEST`."""
BEST = -1

OLD, NEW = {0: b"old", 1: b"old as well"}, {0: b"new", 1: b"new as well", 2: b"and more"}


def store_in(run: Path, keep: int) -> CheckpointStore:
    return CheckpointStore(Folder.open(run), {"runtime": {"seed": 1}}, keep, steps_per_epoch=4)


def store_with_old(run: Path, keep: int = 1) -> CheckpointStore:
    """That of a run, made if it is not there, which has written `OLD` after step 4."""
    run.mkdir(exist_ok=True)
    store = store_in(run, keep)
    store.write(snapshot_of(4, OLD))
    return store


def snapshot_of(step: int, files: dict[int, bytes], *, is_best: bool = False) -> RunState:
    return RunState(Position(step, epoch_reported=False), dict(files), is_best=is_best)


def state_of(run: Path) -> State:
    """What is there and whole; raises where something complete is not whole."""
    paths = complete_checkpoints(run / "checkpoints")
    opened = (checkpoint_in(Folder.open(path.parent), path.name) for path in paths)
    state = {found.state.position.step: found.read() for found in opened}
    if paths and (best := best_name(folder := Folder.open(run / "checkpoints"))):
        state[BEST] = checkpoint_in(folder, best).read()
    return state


@dataclass(frozen=True)
class Scene:
    """What lies on the disk, what is written, and the states that may be seen from then on."""

    before: State
    keep: int
    step: int
    files: dict[int, bytes]
    between: tuple[State, ...]
    after: State
    is_best: bool = False

    def arrange(self, run: Path) -> CheckpointStore:
        (run / "checkpoints").mkdir(parents=True)
        for step, files in self.before.items():
            if step != BEST:
                is_best = files is self.before.get(BEST)
                store_in(run, 99).write(snapshot_of(step, files, is_best=is_best))
        return store_in(run, self.keep)

    @property
    def snapshot(self) -> RunState:
        return snapshot_of(self.step, self.files, is_best=self.is_best)

    @property
    def allowed(self) -> tuple[State, ...]:
        return (self.before, *self.between, self.after)


SCENES = {
    "the first": Scene({}, 1, 4, NEW, (), {4: NEW}),
    "one more": Scene({4: OLD}, 3, 8, NEW, (), {4: OLD, 8: NEW}),
    "in place of the last": Scene({4: OLD}, 1, 8, NEW, ({4: OLD, 8: NEW},), {8: NEW}),
    "in place of two": Scene(
        {4: OLD, 8: OLD, 12: OLD}, 2, 16, NEW,
        ({4: OLD, 8: OLD, 12: OLD, 16: NEW}, {8: OLD, 12: OLD, 16: NEW}), {12: OLD, 16: NEW},
    ),
    "the same again": Scene({4: NEW}, 1, 4, NEW, (), {4: NEW}),
    "another of the same step": Scene({4: OLD}, 1, 4, NEW, (), {4: NEW}),
    "of an earlier step": Scene({8: OLD}, 1, 4, NEW, (), {8: OLD, 4: NEW}),
    "the first best": Scene(
        {4: OLD}, 1, 8, NEW,
        ({4: OLD, 8: NEW}, {4: OLD, 8: NEW, BEST: NEW}), {8: NEW, BEST: NEW}, is_best=True,
    ),
    "a better one": Scene(
        {4: OLD, BEST: OLD}, 1, 8, NEW,
        ({4: OLD, 8: NEW, BEST: OLD}, {4: OLD, 8: NEW, BEST: NEW}), {8: NEW, BEST: NEW},
        is_best=True,
    ),
    "one that is not better": Scene(
        {4: OLD, BEST: OLD}, 1, 8, NEW, ({4: OLD, 8: NEW, BEST: OLD},), {8: NEW, BEST: OLD},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written here need not outlive the machine: hundreds of writes take no time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest) -> Scene:
    return SCENES[request.param]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def leaves_no_rubbish(folder: Path) -> bool:
    """Nothing half done; one that gave way may stay where the new one could not be synced."""
    usual = usual_names(state_of(folder))
    return [name for name in names(folder) if not name.startswith(".replaced-")] == usual


def usual_names(state: State) -> list[str]:
    return ["best" if step == BEST else f"step-{step:08d}" for step in sorted(state)]


class Attempts:
    """A write, tried in a new folder with each place at which it can fail."""

    def __init__(self, tmp_path: Path, scene: Scene) -> None:
        self._tmp_path, self.scene = tmp_path, scene
        self._count = 0

    def calls(self) -> int:
        """How many calls an undisturbed write makes; it must end as the scene says."""
        folder, disk, _ = self.write(None, no_space)
        assert state_of(folder) == self.scene.after
        assert names(folder) == usual_names(self.scene.after)
        assert len(disk.calls) > 15
        return len(disk.calls)

    def write(
        self, at: int | None, error: Callable[[], BaseException], **how: Any
    ) -> tuple[Path, FailingDisk, BaseException | None]:
        """The folder after a write in which call `at` failed, and what was raised."""
        self._count += 1
        folder = self._tmp_path / str(self._count)
        store = self.scene.arrange(folder)
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, at, error, **how)
            try:
                store.write(self.scene.snapshot)
            except (CheckpointError, Dead) as raised:
                return folder, disk, raised
            finally:
                store.close()
        return folder, disk, None

    def assert_well(self, folder: Path) -> None:
        """One of the states that may be, and the next write ends as this one should have."""
        assert state_of(folder) in self.scene.allowed
        store_in(folder, self.scene.keep).write(self.scene.snapshot)
        assert state_of(folder) == self.scene.after
        assert names(folder) == usual_names(self.scene.after)


@pytest.fixture
def attempts(tmp_path: Path, scene: Scene) -> Attempts:
    return Attempts(tmp_path, scene)


def test_one_call_fails(attempts: Attempts) -> None:
    scene = attempts.scene
    for at in range(attempts.calls()):
        folder, disk, raised = attempts.write(at, no_space)
        if raised:
            assert str(raised) == f"{folder}/checkpoints: can't be written: No space left on device"
            assert leaves_no_rubbish(folder), disk.calls[at]
        else:  # it was part of dropping something that is no longer needed
            assert state_of(folder).get(scene.step) == scene.files
        attempts.assert_well(folder)


def test_every_call_fails_from_one_on(attempts: Attempts) -> None:
    for at in range(attempts.calls()):
        folder, _, _ = attempts.write(at, no_space, times=None)
        attempts.assert_well(folder)


def test_space_runs_out_and_stays_out(attempts: Attempts) -> None:
    """What a full disk does: it takes no bytes, but it does remove and rename."""
    for at in range(attempts.calls()):
        folder, _, raised = attempts.write(at, no_space, names=TAKING_SPACE, times=None)
        assert leaves_no_rubbish(folder) or not raised
        attempts.assert_well(folder)


def test_the_process_dies_at_any_call(attempts: Attempts) -> None:
    scene, seen = attempts.scene, []
    for at in range(attempts.calls()):
        folder, _, raised = attempts.write(at, Dead, times=None)
        assert isinstance(raised, Dead) or state_of(folder).get(scene.step) == scene.files
        found = state_of(folder)
        assert found in scene.allowed
        seen.append(scene.allowed.index(found))
        store_in(folder, scene.keep).prepare()  # the next start
        assert state_of(folder) == found
        assert names(folder) == usual_names(found)
        attempts.assert_well(folder)
    assert seen == sorted(seen)
    assert scene.before == scene.after or {seen[0], seen[-1]} == {0, len(scene.allowed) - 1}


def test_a_write_may_take_less_than_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    store_in(tmp_path, 1).write(snapshot_of(4, NEW))
    assert state_of(tmp_path) == {4: NEW}


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP, None])
def test_the_best_takes_no_room_where_files_may_have_second_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise OSError(refusal, "no links")

    if refusal:
        monkeypatch.setattr(os, "link", refuse)
    store_in(tmp_path, 1).write(snapshot_of(4, NEW, is_best=True))
    assert state_of(tmp_path) == {4: NEW, BEST: NEW}
    files = [tmp_path / "checkpoints" / name for name in ("step-00000004", "best")]
    one, other = (file / "block-00.safetensors" for file in files)
    assert one.samefile(other) is (refusal is None)


def test_the_best_may_have_a_part_of_each_file(tmp_path: Path) -> None:
    tensors = {"encoder.weight": torch.ones(2, 3), "optimizer.encoder.weight.step": torch.ones(())}
    weights = {"encoder.weight": tensors["encoder.weight"]}
    run = Folder.open(tmp_path)
    store = CheckpointStore(
        run,
        {"runtime": {"seed": 1}},
        1,
        steps_per_epoch=4,
        is_weight=lambda block, name: name in weights and block == 0,
    )
    files = {0: encode_block(tensors), 1: encode_block(tensors)}
    for step in (4, 8):  # the second takes the place of the first
        store.write(snapshot_of(step, files, is_best=True))
    found = checkpoint_in(run.child("checkpoints"), "best")
    assert (found.form, found.state.position.step) == ("weights", 8)
    assert found.read() == {0: encode_block(weights), 1: encode_block({})}
    whole = checkpoint_in(run.child("checkpoints"), "step-00000008")
    assert (whole.form, whole.read()) == ("full", files)


# --- what stands in the way ---------------------------------------------------------------


def test_leftovers_of_a_killed_run_are_cleared_away(tmp_path: Path) -> None:
    store = store_with_old(tmp_path, 3)
    done = store.write(snapshot_of(8, NEW))
    for name in (".writing-step-00000012", ".writing-dropped-step-00000001"):
        shutil.copytree(done, done.with_name(name))
    done.rename(done.with_name(".replaced-step-00000008"))  # and its successor never appeared
    shutil.copytree(done.with_name("step-00000004"), done.with_name(".replaced-step-00000004"))
    done.with_name("notes").mkdir()
    assert state_of(tmp_path) == {4: OLD, 8: NEW}
    store.prepare()
    assert names(tmp_path) == ["notes", "step-00000004", "step-00000008"]
    assert state_of(tmp_path) == {4: OLD, 8: NEW}


# --- real disks ---------------------------------------------------------------------------


def refusal(store: CheckpointStore, step: int = 8) -> str:
    with pytest.raises(CheckpointError) as caught:
        store.write(snapshot_of(step, NEW))
    return str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "mend", "says"),
    [
        (fill, lambda disk: (disk / "ballast").unlink(), "No space left on device"),
        (partial(remount, how="ro"), partial(remount, how="rw"), "Read-only file system"),
    ],
)
def test_a_disk_that_refuses_for_a_while(
    tmp_path: Path, spoil: Callable[[Path], None], mend: Callable[[Path], None], says: str
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = store_with_old(disk)
        spoil(disk)
        assert refusal(store) == f"{disk}/checkpoints: can't be written: {says}"
        assert names(disk) == ["step-00000004"]
        assert state_of(disk) == {4: OLD}
        mend(disk)
        store.write(snapshot_of(8, NEW))
        assert state_of(disk) == {8: NEW}


def test_a_disk_that_fills_with_the_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        store = store_with_old(disk)
        large = replace(snapshot_of(8, NEW), files={n: bytes(100_000) for n in range(3)})
        with pytest.raises(CheckpointError, match="No space left on device"):
            store.write(large)
        assert names(disk) == ["step-00000004"]
        assert state_of(disk) == {4: OLD}
        store.write(snapshot_of(8, NEW))


def test_a_folder_that_may_not_be_changed(tmp_path: Path) -> None:
    store = store_with_old(tmp_path)
    with immutable(tmp_path / "checkpoints"):
        assert refusal(store).endswith("can't be written: Operation not permitted")
        assert state_of(tmp_path) == {4: OLD}
    store.write(snapshot_of(8, NEW))
    assert state_of(tmp_path) == {8: NEW}


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("precious")
    store = store_in(tmp_path, 1)
    assert refusal(store) == f"{tmp_path}/checkpoints: can't be written: Not a directory"
    assert (tmp_path / "checkpoints").read_text() == "precious"


# --- folders that are moved, or replaced by others ----------------------------------------


def test_a_run_directory_that_is_moved_is_followed(tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    store = store_with_old(run)
    run.rename(moved)
    shutil.copytree(moved, run)  # another run, under the old name
    (run / "checkpoints" / ".writing-step-00000012").mkdir()
    assert store.write(snapshot_of(8, NEW)) == moved / "checkpoints" / "step-00000008"
    assert state_of(moved) == {8: NEW}
    assert state_of(run) == {4: OLD}
    assert names(run) == [".writing-step-00000012", "step-00000004"]


def test_a_run_directory_that_was_deleted_is_not_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    store = store_with_old(run)
    shutil.rmtree(run)
    said = f"{run}/checkpoints: can't be written: the folder was deleted"
    assert refusal(store) == said
    assert not run.exists()
    run.mkdir()  # another run's
    assert refusal(store) == said
    assert list(run.iterdir()) == []


def test_checkpoints_that_were_removed_are_made_again_in_the_same_run(tmp_path: Path) -> None:
    store = store_with_old(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    store.write(snapshot_of(8, NEW))
    assert state_of(tmp_path) == {8: NEW}


def test_checkpoints_may_move_to_another_disk_meanwhile(tmp_path: Path) -> None:
    run, large = tmp_path / "run", tmp_path / "large"
    store = store_with_old(run, 2)
    (run / "checkpoints").rename(large)
    (run / "checkpoints").symlink_to(large)
    store.write(snapshot_of(8, NEW))
    assert state_of(run) == {4: OLD, 8: NEW}
    assert (run / "checkpoints").is_symlink()


def test_checkpoints_of_another_run_are_never_written_to(tmp_path: Path) -> None:
    """However its folder comes to be in the place of one's own."""
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        store_with_old(folder)
        (folder / "config.yaml").touch()
    store = store_in(run, 1)
    store.prepare()
    (run / "checkpoints").rename(run / "aside")
    (run / "checkpoints").symlink_to(other / "checkpoints")
    assert refusal(store).startswith(f"{run}/checkpoints: leads to the checkpoints of another run")
    with pytest.raises(CheckpointError, match=r"another run, in .*/other; each run needs its own"):
        store_in(run, 1).prepare()
    assert state_of(other) == {4: OLD}
    (run / "checkpoints").unlink()
    (run / "aside").rename(run / "checkpoints")
    store.write(snapshot_of(8, NEW))
    assert (state_of(run), state_of(other)) == ({8: NEW}, {4: OLD})


def test_two_runs_never_share_a_folder_of_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    stores = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(tmp_path / "shared")
        stores.append(store_in(tmp_path / name, 1))
    stores[0].write(snapshot_of(4, OLD))
    for _ in range(2):
        assert refusal(stores[1]).endswith("can't be written: another run is at work in it")
    assert state_of(tmp_path / "one") == {4: OLD}
    stores[0].close()
    stores[1].write(snapshot_of(8, NEW))
    assert state_of(tmp_path / "two") == {8: NEW}
