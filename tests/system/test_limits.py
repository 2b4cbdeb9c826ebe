"""What the system refuses is said with its limit and a cure, and without a traceback."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

from launch.command import status_of
from pipeline.coordinator.engine import End
from pipeline.coordinator.watchdog import Watchdog
from pipeline.errors import ConfigError, StageFailedError
from pipeline.system import descriptors
from pipeline.system.descriptors import check_enough
from pipeline.system.limits import cure_of, with_cure
from pipeline.transport import sockets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def raised(error: Exception) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "fs.file-max"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ulimit -v"),
        (MemoryError(), "ulimit -v"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"),
            "data.batch_size",
        ),
        (ImportError("libx.so: failed to map segment from shared object"), "ulimit -v"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "of your own"),
    ],
)
def test_a_limit_of_the_system_is_named(
    error: Exception, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limit in with_cure(error)
    assert status_of(lambda: raised(error)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: {type(error).__name__}")
    assert limit in said


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("shape mismatch"), KeyError(24), ImportError("no y")]
)
def test_a_bug_is_none_of_them(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert cure_of(error) is None
    assert status_of(lambda: raised(error)) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stages", "limit", "reserved", "enough"),
    [
        (2, 44, False, True), (2, 43, False, False), (2, 44, True, False), (2, 58, True, True),
        (30, 100, False, True), (31, 100, False, False), (500, -1, True, True),
        (500, 1024, False, False),
    ],
)  # fmt: skip
def test_too_few_descriptors_are_found_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, stages: int, limit: int, reserved: bool, enough: bool
) -> None:
    monkeypatch.setattr(descriptors, "raise_limit", lambda: limit)
    if enough:
        check_enough(stages, reserved=reserved)
    else:
        with pytest.raises(ConfigError, match=rf"^{stages} processes: .* have {limit} \(ulimit -n"):
            check_enough(stages, reserved=reserved)


def test_the_limit_that_counts_is_the_one_in_force() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert str(most) in with_cure(OSError(errno.EMFILE, "Too many open files"))


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff", b"x" * 80])
def test_sockets_lie_where_their_paths_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    odd = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(odd)
    monkeypatch.setattr(sockets.tempfile, "tempdir", os.fsdecode(odd))
    with sockets.socket_folder() as folder:
        assert str(folder).startswith("/tmp/pipeline-")
    assert os.listdir(odd) == []


def test_where_there_is_no_place_for_sockets_a_cure_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*given: Any, **named: Any) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(sockets.tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match=r"No usable .*; let TMPDIR name a folder"):
        sockets.socket_folder().__enter__()


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("how", ["can't be started: OSError", "was killed by SIGABRT"])
def test_what_would_come_back_at_start_is_said_once(
    folder: Callable[[], Path], stage: int, how: str
) -> None:
    from support.run_in_threads import Job, ThreadWorkers, coordinator

    workers = ThreadWorkers(2)
    workers.killed[stage] = End(how, silent=True, comes_back=True, traceback="its own")
    with pytest.raises(StageFailedError) as said:
        coordinator(Job(folder(), 2), workers).run()
    assert type(said.value) is StageFailedError
    assert (said.value.summary.endswith(how), said.value.remote_traceback) == (True, "its own")


def test_a_stage_that_may_be_silent_is_not_missed() -> None:
    watch = Watchdog(heartbeat_timeout_s=10.0, stall_timeout_s=20.0)
    watch.heard(0, 0.0)
    watch.heard(1, 5.0)
    assert watch.problem(12.0, feed_waits=False, silent=[0]) is None
    assert watch.problem(12.0, feed_waits=False, silent=[1]) == (
        0, "hangs: no sign of life for 12.0 s",
    )  # fmt: skip
