"""A user's function that leaves processes behind, hangs, or holds the interpreter."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launch.plan import user_code
from launch.plan.user_code import awaited
from pipeline.errors import ConfigError
from pipeline.system import children
from pipeline.system.children import no_process_left

if TYPE_CHECKING:
    from collections.abc import Callable


def started_by_fork() -> int:
    pid = os.fork()
    if not pid:
        time.sleep(60)
    return pid


def started_by_subprocess() -> int:
    return subprocess.Popen(["sleep", "60"]).pid


def started_in_a_session() -> int:
    return subprocess.Popen(["sleep", "60"], start_new_session=True).pid


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", [started_by_fork, started_by_subprocess, started_in_a_session])
def test_a_process_that_is_left_running_is_ended_and_named(start: Callable[[], int]) -> None:
    pids = []
    with (
        pytest.raises(ConfigError, match=r"^leaves a process running \(\d+: .+\)"),
        no_process_left(),
    ):
        pids.append(start())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_one_that_says_no_command_line_is_named_all_the_same() -> None:
    """As every process does for a moment, when it has just become another program."""
    pid = os.fork()
    if not pid:
        start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
        ctypes.memset(start, 0, end - start)
        time.sleep(60)
        os._exit(0)
    try:
        while Path(f"/proc/{pid}/cmdline").read_text().strip("\0"):
            time.sleep(0.01)
        assert children._command(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not children._command(pid)


def test_one_that_was_ended_or_was_there_before_is_no_matter() -> None:
    with subprocess.Popen(["sleep", "60"]) as before:
        with no_process_left():
            subprocess.run(["true"], check=True)
        assert before.poll() is None
        before.kill()


def test_what_is_awaited_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(user_code, "TOLD_AFTER_S", 0.01)
    said, give_up = "", time.monotonic() + 20
    with awaited({"model.factory": "my:net"}, "planning"):
        while not said.endswith("\n") and time.monotonic() < give_up:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert said == "planning: waiting for model.factory my:net since 0.01 s (Ctrl-C ends it)\n"
    with awaited({}, "planning"):
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


HOLDS = """\
import ctypes, signal, sys
from launch.plan.user_code import awaited
signal.signal(signal.SIGTERM, lambda *given: None)
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests' own is ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with awaited({"model.factory": "my:net"}, "planning"):
    print("holds", flush=True)
    ctypes.PyDLL(None).sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_who_holds_the_interpreter(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"holds\n"
        process.send_signal(number)
        assert process.wait(20) == -number


def test_handlers_are_put_back_and_what_was_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with awaited({"model.factory": "my:net"}, "planning"):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
