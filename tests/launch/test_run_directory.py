"""Whose run folder it is: one command's at a time, and the same folder from first to last."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.disk import fill, remount, small_disk
from support.processes import contents, launch

from launch import run_directory
from launch.run_directory import folder_named, hold, hold_new
from pipeline.errors import ConfigError
from pipeline.storage.atomic import write_synced
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- held ---------------------------------------------------------------------------------


def test_one_command_at_a_time(here: Path) -> None:
    with hold(Path("run")), pytest.raises(ConfigError) as caught, hold(Path("run")):
        pass
    assert str(caught.value) == "--run-dir run: another run is at work in it"
    with hold(Path("run")):
        pass


def fail_in(name: str, *, writes: bool = False) -> None:
    with hold(Path(name)) as run:
        assert run.path.is_dir()
        if writes:
            write_synced(run.folder, "file", b"")
        raise ConfigError("something is wrong with the data")


@pytest.mark.parametrize("name", ["run", "a/b/run", "./a/../run"])
def test_what_was_made_for_nothing_is_removed_again(here: Path, name: str) -> None:
    (here / "a").mkdir()
    with pytest.raises(ConfigError, match="wrong"):
        fail_in(name)
    assert [path.name for path in here.rglob("*")] == ["a"]


def test_what_holds_something_or_was_there_stays(here: Path) -> None:
    (here / "empty").mkdir()
    for name, writes in (("empty", False), ("a/full", True)):
        with pytest.raises(ConfigError, match="wrong"):
            fail_in(name, writes=writes)
    assert (here / "empty").is_dir()
    assert (here / "a/full/file").exists()


def removed(run: Path) -> None:
    run.rmdir()


def moved_away(run: Path) -> None:
    run.rename(run.with_name("away"))


def replaced(run: Path) -> None:
    moved_away(run)
    run.mkdir()


@pytest.mark.parametrize("change", [removed, moved_away, replaced])
def test_what_becomes_another_folder_before_it_is_locked_is_opened_anew(
    here: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    lock, changes = Folder.lock, [change]

    def late(folder: Folder) -> bool:
        if changes:
            changes.pop()(here / "run")
        return lock(folder)

    monkeypatch.setattr(Folder, "lock", late)
    with hold(here / "run") as run:
        assert run.folder.is_at(here / "run")
        write_synced(run.folder, "file", b"")
    assert os.listdir(here / "run") == ["file"]
    assert list(here.rglob("file")) == [here / "run" / "file"]


def test_a_name_that_never_leads_to_a_folder_ends(here: Path) -> None:
    (here / "run").symlink_to("nowhere")
    with pytest.raises(
        ConfigError, match="run: can't be opened: No such file or directory; choose"
    ):
        hold(here / "run").__enter__()


# --- names of their own -------------------------------------------------------------------


class SameSecond:
    """A clock that stands."""

    @staticmethod
    def now() -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5)


def test_runs_that_start_in_the_same_second(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "datetime", SameSecond)
    with ExitStack() as stack:
        runs = [stack.enter_context(hold_new("digits")) for _ in range(4)]
        write_synced(runs[2].folder, "file", b"")
        plain = "runs/digits-20260102-030405"
        names = [str(run.path) for run in runs]
        assert names == [plain, f"{plain}-2", f"{plain}-3", f"{plain}-4"]
    assert os.listdir("runs") == ["digits-20260102-030405-3"]


@pytest.mark.parametrize("name", ["x" * 250, "ü" * 120, "\udcff\udcfe"])
def test_a_config_with_a_long_or_odd_name_has_a_folder(here: Path, name: str) -> None:
    with hold_new(name) as run:
        write_synced(run.folder, "file", b"")
    (found,) = os.listdir("runs")
    assert found.isprintable()


# --- refused before anything starts -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (".", "is the current folder, or holds it; a new run needs a folder of its own, as --run"),
        ("/", "is the current folder, or holds it; "),
        ("..", "is the current folder, or holds it; "),
        ("link", "is the current folder, or holds it; "),
        ("tiny.yaml", "can't be opened: Not a directory; choose another folder"),
        ("tiny.yaml/run", "can't be made: Not a directory; choose another folder"),
        ("x" * 300, "can't be made: File name too long; choose another folder"),
        ("a/" + "ü" * 200, "can't be made: File name too long; choose another folder"),
        ("/".join(["x" * 200] * 25), "can't be made: File name too long; choose another folder"),
        ("/proc/none", "can't be made: No such file or directory; choose another folder"),
        ("mine", "holds plan.json, which a run writes itself; choose another folder"),
        ("begun", "already holds a run (config.yaml); add --resume to go on with it, or choose"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_a_folder_that_is_none_for_a_run(
    tiny: Path, here: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    (here / "link").symlink_to(".")
    for file in ("mine/plan.json", "begun/config.yaml"):
        (here / file).parent.mkdir()
        (here / file).touch()
    before = contents(here)
    assert launch(tiny, Path(name)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --run-dir {name}: {says}")
    assert said.count("\n") == 1
    assert contents(here) == before


@pytest.mark.parametrize("text", ["", "a\nb", "a\rb", "\x1b[31m", "\udcff", "a/\u2028b", "a\0b"])
def test_a_name_that_can_not_be_shown_in_a_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        folder_named("--run-dir", text)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(f"--run-dir {text!a}: ")


@pytest.mark.parametrize("text", ["a run", "ünïcödé", "実験\u3000一", "a~/run", "-x"])
def test_a_name_that_can_be_shown(text: str) -> None:
    assert folder_named("--run-dir", text) == Path(text)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("name", ["disk", "disk/run"])
def test_a_disk_that_takes_nothing(
    tiny: Path, here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with small_disk(here / "disk", "64k"):
        fill(here / "disk")
        assert launch(tiny, Path(name)) == 2
        assert os.listdir("disk") == ["ballast"]
        remount(here / "disk", "ro")
        assert launch(tiny, Path(name)) == 2
    full, read_only = capsys.readouterr().err.splitlines()
    assert full.startswith(f"error: --run-dir {name}: can't be written: No space left on device; ")
    assert read_only.startswith(f"error: --run-dir {name}: can't be ")
    assert ": Read-only file system; " in read_only
