"""Readers of the output may go away, or pause, at any time: no run ends by it or waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import HELD, digests, python

from launch.display.streams import Backlog, OutputStream, lost_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.processes import Launcher

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


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that is full, as that to a pager which is not scrolled on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@contextmanager
def paused_terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal on which Ctrl-S was pressed."""
    master, terminal = os.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    yield master, terminal
    os.close(master)
    os.close(terminal)


GONE = pytest.mark.parametrize("gone", [broken_pipe, closed_terminal])
FULL_DISK = partial(Path("/dev/full").open, "wb")
PAUSED = pytest.mark.parametrize("paused", [unread_pipe, paused_terminal])


@GONE
@pytest.mark.parametrize("waits", [True, False])
def test_what_nobody_takes_is_dropped(gone: Callable[[], Iterator[int]], waits: bool) -> None:
    with gone() as descriptor:
        outlet = OutputStream(descriptor, "utf-8")
        if not waits:
            outlet.wait_for_no_reader()
        assert lost_output(outlet) == ""
        assert print("one", file=outlet) is print("two", file=outlet, flush=True) is None
        assert outlet.settle()
    assert lost_output(outlet).startswith("the output can't be written: ")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends to read from and to write into."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_what_is_taken_arrives(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    outlet = OutputStream(writer, "utf-8")
    print("one", file=outlet)
    assert os.read(reader, 10) == b"one\n"
    outlet.reconfigure(line_buffering=True)
    outlet.wait_for_no_reader()
    print("two", end="", file=outlet, flush=True)
    assert os.read(reader, 10) == b"two"
    assert lost_output(outlet) == ""


@pytest.mark.parametrize(
    "data", [b"plain\n", "→\n".encode(), bytearray(b"more\n"), memoryview(b"m\n")]
)
def test_bytes_go_the_way_of_text(data: bytes, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    outlet = OutputStream(writer, "utf-8")
    print("first", end=" ", file=outlet)
    assert outlet.buffer.write(data) == len(data)
    outlet.buffer.flush()
    assert os.read(reader, 100) == b"first " + bytes(data)


def test_a_line_that_comes_while_the_output_ends(pipe: tuple[int, int]) -> None:
    """It is written by its own thread: no other would be there to write it."""
    late: list[Thread] = []

    class Ending(OutputStream):
        def settle(self) -> bool:
            settled = super().settle()
            late.append(Thread(target=print, args=("late",), kwargs={"file": self}))
            late[-1].start()
            return settled

    reader, writer = pipe
    outlet = Ending(writer, "utf-8")
    outlet.wait_for_no_reader()
    outlet.end()
    late[0].join()
    assert not outlet.is_behind
    assert os.read(reader, 10) == b"late\n"


@PAUSED
def test_who_does_not_read_holds_up_nobody(paused: Callable[[], Iterator[tuple[int, int]]]) -> None:
    with paused() as (reader, writer):
        outlet = OutputStream(writer, "ascii")
        outlet.wait_for_no_reader()
        for line in range(20_000):
            print(f"line {line} of a run that goes on →", file=outlet)
        assert outlet.is_behind
        if os.isatty(writer):
            termios.tcflow(writer, termios.TCOON)
        taken = b""
        while b"line 19999 of a run that goes on ?" not in taken:
            taken += os.read(reader, 65536)
        assert outlet.settle()
    said = [line for line in taken.decode().splitlines() if "lines left out" in line]
    assert len(said) == 1
    left_out = int(said[0].partition("[")[2].split()[0])
    assert taken.count(b"that goes on ?") + left_out == 20_000


@PAUSED
def test_the_end_does_not_wait_for_ever(
    paused: Callable[[], Iterator[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.display.streams.LAST_WORDS_S", 0.05)
    with paused() as (_, writer):
        outlet = OutputStream(writer, "utf-8")
        outlet.wait_for_no_reader()
        print("last words", file=outlet)
        assert not outlet.settle()
        assert outlet._reader_wait_s == 0  # it was used up: the next one does not wait
        outlet.lost = OSError()  # the thread ends as soon as the reader is gone


def test_a_descriptor_that_somebody_has_made_non_blocking(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    outlet = OutputStream(writer, "utf-8")
    outlet.wait_for_no_reader()
    text = "many lines\n" * 20_000
    outlet.write(text)
    taken = b""
    while len(taken) < len(text):
        taken += os.read(reader, 1000)
    assert (taken.decode(), outlet.settle(), outlet.lost) == (text, True, None)


@pytest.mark.parametrize(
    ("most", "texts", "kept"),
    [
        (9, ["one\n", "two\n"], "one\ntwo\n"),
        (7, ["one\n", "two\n"], "[1 lines left out: this output was not read for a while]\ntwo\n"),
        (
            5,
            ["a\nb\n", "c\n", "d\n"],
            "[2 lines left out: this output was not read for a while]\nc\nd\n",
        ),
        (1, ["longer than all\n"], "longer than all\n"),
    ],
)
def test_of_lines_that_wait_the_oldest_go(most: int, texts: list[str], kept: str) -> None:
    backlog = Backlog(most)
    for text in texts:
        backlog.add(text)
    assert backlog.take() == kept
    assert backlog.take() == ""


UNWAITING = "import launch.display.streams as o; o.LAST_WORDS_S = 0.1; "


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
@PAUSED
@pytest.mark.parametrize("view", ["plain", "live"])
def test_a_paused_reader_does_not_stop_a_run(
    launcher: Start, tmp_path: Path, paused: Callable[[], Iterator[tuple[int, int]]], view: str
) -> None:
    program = UNWAITING + "from launch.cli import main; main()"
    how = ("--run-dir", "run", "--single", "--view", view)
    with paused() as (_, output):
        run = launcher("tiny.yaml", *how, program=program, output=output)
        assert run.exit_status() == 0
    assert max(digests(tmp_path / "run")) == 12
    assert "epoch 3/3" in (tmp_path / "run" / "run.log").read_text(encoding="utf-8")


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
@PAUSED
def test_nor_the_signal_that_ends_it(
    launcher: Start, tmp_path: Path, paused: Callable[[], Iterator[tuple[int, int]]]
) -> None:
    """With workers, which have the same streams."""
    program = UNWAITING + HELD.format(step=3)
    with paused() as (_, output):
        run = launcher("tiny.yaml", "--run-dir", "run", program=program, output=output)
        run.wait_for("held")
        run.process.send_signal(signal.SIGTERM)
        assert run.exit_status() == 130
    assert max(digests(tmp_path / "run")) == 3


@pytest.mark.processes
@pytest.mark.usefixtures("tiny")
@GONE
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


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (broken_pipe, ""),
        (FULL_DISK, "the output can't be written: No space left on device\n"),
    ],
)
def test_a_list_that_is_not_taken_to_its_end(output: Callable[[], Any], says: str) -> None:
    with output() as stdout:
        done = python("-m", "launch.reproduce", "--list", stdout=stdout)
    assert (done.returncode, done.stderr) == (0, says)


CLOSED = """
import os, sys
from launch.display.streams import end_output, tolerate_streams
tolerate_streams()
file = open("file", "w")
os.system("echo of a child; echo of a child >&2")
print("printed", flush=True)
print("printed", file=sys.stderr)
os.write(1, b"by a library"), os.write(2, b"by a library")
end_output()
file.write(f"kept {file.fileno() > 2}")
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, CLOSED],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    shown = "of a child\nprinted\nby a library"
    assert done.returncode == 0
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else shown)
    assert done.stderr == ("" if "2>&-" in closed else shown)
    assert (tmp_path / "file").read_text() == "kept True"


def test_what_is_wrong_is_said_without_a_stdout(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m launch.cli absent.yaml >&-', sys.executable],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: absent.yaml")
    assert done.stderr.count("\n") == 1
