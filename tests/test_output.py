"""Whoever reads the output may go away at any time: that ends no run, and harms none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from processes import HELD, digests

from launch.output import Outlet, lost_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from processes import Launcher

    Start = Callable[..., Launcher]

QUIET = "nothing is shown any more, training goes on"


@contextmanager
def broken_pipe() -> Iterator[int]:
    """The end to write into of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def closed_terminal() -> Iterator[int]:
    """A terminal that is no more: whatever is written to it is EIO."""
    master, terminal = os.openpty()
    os.close(master)
    yield terminal
    os.close(terminal)


def outlet_into(descriptor: int) -> Outlet:
    return Outlet(os.fdopen(os.dup(descriptor), "wb"), "utf-8", line_buffering=True)


@pytest.mark.parametrize("gone", [broken_pipe, closed_terminal])
def test_what_nobody_takes_is_dropped(gone: Callable[[], Iterator[int]]) -> None:
    with gone() as descriptor:
        outlet = outlet_into(descriptor)
        assert lost_output(outlet) == ""
        assert print("one", file=outlet) is print("two", file=outlet, flush=True) is None
        says = lost_output(outlet)
        outlet.close()
    assert says.startswith("the output can't be written: ")


def test_what_is_taken_arrives() -> None:
    reader, writer = os.pipe()
    outlet = outlet_into(writer)
    print("one", file=outlet)
    assert os.read(reader, 10) == b"one\n"
    assert lost_output(outlet) == ""
    for end in (outlet.close, lambda: os.close(reader), lambda: os.close(writer)):
        end()


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("gone", [broken_pipe, closed_terminal])
@pytest.mark.parametrize("view", ["plain", "live"])
def test_training_goes_on(
    launcher: Start, tmp_path: Path, gone: Callable[[], Iterator[int]], view: str
) -> None:
    with gone() as output:
        run = launcher("tiny.yaml", "--run-dir", "run", "--single", "--view", view, output=output)
        assert run.exit_status() == 0
    assert max(digests(tmp_path / "run")) == 12
    says = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    # the picture is drawn by another thread, perhaps when the last event is over
    assert says.count(QUIET) in ((1,) if view == "plain" else (0, 1))


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
def test_a_closed_terminal_ends_a_run_with_a_checkpoint(launcher: Start, tmp_path: Path) -> None:
    """The signal that follows it is the first and only one; nobody reads the last words."""
    program = HELD.format(step=3)
    how = ("--run-dir", "run", "--view", "plain")
    with closed_terminal() as output:
        run = launcher("tiny.yaml", *how, program=program, output=output)
        run.wait_for("held")
        os.killpg(run.process.pid, signal.SIGHUP)
        assert run.exit_status() == 130
    assert max(digests(tmp_path / "run")) == 3


def test_a_list_that_is_not_read_to_its_end() -> None:
    with broken_pipe() as output:
        done = subprocess.run(
            [sys.executable, "-m", "launch.reproduce", "--list"],
            stdout=output, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_list_that_a_disk_does_not_take() -> None:
    with Path("/dev/full").open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "launch.reproduce", "--list"],
            stdout=output, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.stderr == "the output can't be written: No space left on device\n"


def test_what_is_wrong_is_said_without_a_stdout(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m launch.cli absent.yaml >&-', sys.executable],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: absent.yaml")
    assert done.stderr.count("\n") == 1
