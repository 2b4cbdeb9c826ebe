"""Starts the real thing for tests: runs in this process, launchers of their own, planted faults.

A run in this process (`launch`) is the whole command but for the parsing of its line; its
workers are real. A `Launcher` is a process of its own, with a temporary folder of its own, by
which everything that it starts can be found.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

import psutil

from launch.command import status_of
from launch.engines.interrupts import INTERRUPTIONS
from launch.job import Options
from launch.launcher import launch as launch_options
from pipeline.data.batches import load_batches
from pipeline.schedule.feed import course_of
from pipeline.schedule.items import TrainBatch
from pipeline.storage.background_writer import BackgroundWriter
from pipeline.storage.checkpoint import checkpoint_in, complete_checkpoints
from pipeline.storage.folder import Folder
from support import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy import generic
    from numpy.typing import NDArray

    from launch.job import Job
    from pipeline.data.batches import Batches
    from pipeline.run.run import Run
    from pipeline.schedule.feed import Course
    from pipeline.schedule.items import Item

    Found = TypeVar("Found")

_PACKAGES_FIRST = f"import launch, pipeline, sys; sys.path.append({str(REPOSITORY / 'tests')!r})\n"
"""`tests` has folders of the same names."""
DEADLINE_S = 60.0
COMMAND = str(Path(sys.executable).with_name("pipeline-launch"))

TINY = """\
model: {name: mlp, hidden_layers: 3, hidden: 16, dropout: 0.2}
loss: {name: predsim}
schedule: {epochs: 3, milestones: [1]}
data: {name: digits, batch_size: 32, crop_padding: 1, train_limit: 100, test_limit: 40}
"""
"""3 hidden blocks and the output; 3 epochs of 4 steps (the last of 4 images), 2 test batches."""
TINY_EPOCH = 4
STRANGER = "127.0.0.2"
_FLIPPED_BYTE = 500
"""Of what a sender says over a stream: in the first batch."""


def until(condition: Callable[[], Found], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """The first true answer of `condition`, asked again and again.

    Raises:
        AssertionError: saying `what` did not happen within the deadline.
    """
    give_up = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < give_up, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)
    return found


# --- runs and what they leave -------------------------------------------------------------


def launch(config: Path | None, run_dir: Path, **options: Any) -> int:
    """Carry out a run on the CPU in this process; its exit status. Its workers are real."""
    given = {"gpus": "cpu", "view": "quiet", **options}
    with patch("launch.training.BackgroundWriter", partial(BackgroundWriter, every=True)):
        return status_of(lambda: launch_options(Options(config, run_dir=run_dir, **given)))


@contextmanager
def one_fork_server() -> Iterator[None]:
    """Runs in this process share a fork server: each would import torch anew. But for those with
    objects of their own for their workers, which need one of their own."""
    from launch.engines.local import ForkServerClient

    shared, own = ForkServerClient(), ForkServerClient
    with (
        patch(
            "launch.engines.local.ForkServerClient",
            lambda packed=b"": own(packed) if packed else shared,
        ),
        patch(
            "launch.engines.local.LocalEngine.close",
            lambda engine: None if engine._server is shared else engine._server.close(),
        ),
    ):
        yield
    shared.close()


def course_and_batches(job: Job) -> tuple[Course, Batches]:
    """What is trained, and with what."""
    batches = load_batches(job.config.data, job.config.runtime.seed)
    parts = (batches.steps_per_epoch, batches.evaluation_batches)
    return course_of(job.config, job.specs, *parts), batches


def digests(run_dir: Path) -> dict[int, dict[int, str]]:
    """SHA-256 of every block file by step; read from the files, not from the manifests."""
    found = {}
    for path in complete_checkpoints(run_dir / "checkpoints"):
        checkpoint = checkpoint_in(Folder.open(path.parent), path.name)
        checkpoint.read()  # raises where a file is not what its manifest says
        found[checkpoint.state.position.step] = checkpoint.digests
    return found


def final_digests(run_dir: Path) -> dict[int, str]:
    """SHA-256 of every block file of the newest checkpoint."""
    found = digests(run_dir)
    return found[max(found)]


def epochs(run_dir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each epoch, without what depends on time and on stages."""
    timed = ("time", "images_per_s", "seconds", "stages")
    return [{k: v for k, v in one.items() if k not in timed} for one in _metrics(run_dir)]


def images_per_s(run_dir: Path) -> float:
    """The median of its epochs but the first, in which everything begins."""
    return median(one["images_per_s"] for one in _metrics(run_dir)[1:])


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Of every file below a folder; None for folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def python(*arguments: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, to its end; `given`: as for `subprocess.run`."""
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60}
    return subprocess.run([sys.executable, *arguments], check=False, **{**usual, **given})


class Started(BaseException):
    """Something was started that should not have been."""


# --- launchers that are processes ---------------------------------------------------------


class Launcher:
    """A `pipeline-launch` of its own, and the processes and files that belong to it.

    Args:
        folder: its working directory, where its output goes too.
        temp: its TMPDIR; the path must be short enough for sockets.
        program: Python to run in place of the console script; it can import `support`.
        output: where both its streams go, in place of files.
    """

    def __init__(
        self,
        folder: Path,
        temp: Path,
        *arguments: str | Path,
        program: str | None = None,
        output: int | None = None,
    ) -> None:
        self._folder, self.temp = folder, temp
        command = (
            [COMMAND] if program is None else [sys.executable, "-c", _PACKAGES_FIRST + program]
        )
        with (
            (folder / "stdout").open("wb") as out,
            (folder / "stderr").open("wb") as err,
            nothing_ignored(),
        ):
            self.process = psutil.Popen(
                [*command, *map(str, arguments), "--gpus", "cpu"],
                cwd=folder,
                env={**os.environ, "TMPDIR": str(temp)},
                stdin=subprocess.DEVNULL,
                stdout=out if output is None else output,
                stderr=err if output is None else output,
                start_new_session=True,  # a process group, as a shell gives a command one
            )

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self._folder / "stdout").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """What it has complained of so far."""
        return (self._folder / "stderr").read_text(encoding="utf-8")

    def press_ctrl_c(self) -> None:
        """As a terminal does: the signal goes to every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def exit_status(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end of the launcher itself."""
        return int(self.process.wait(deadline_s))

    def wait_for(self, path: str, text: str = "") -> None:
        """Wait until a file in its folder is there and holds `text`."""
        file = self._folder / path

        def there() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended early: {self.stdout}{self.stderr}")
            return file.exists() and text in file.read_text(encoding="utf-8")

        until(there, f"{text!r} in {path}; so far: {self.stdout}{self.stderr}")

    def wait_for_more(self, path: str) -> None:
        """Wait until a file has grown."""
        file = self._folder / path
        before = file.stat().st_size
        until(lambda: file.stat().st_size > before, f"more in {path}")

    def family(self) -> list[psutil.Process]:
        """Every living process with its TMPDIR: itself, fork server, workers, orphans too."""
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def ports(self) -> list[int]:
        """Where it listens, on this machine alone."""
        found = set()
        with suppress(psutil.Error):  # one of them ended meanwhile
            for process in (self.process, *self.process.children(recursive=True)):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        assert connection.laddr.ip == "127.0.0.1"
                        found.add(connection.laddr.port)
        return sorted(found)

    def fork_servers(self) -> list[psutil.Process]:
        """Its fork server, once there is one."""
        with suppress(psutil.Error):  # one of them ended meanwhile
            return [p for p in self.family() if any("fork_server" in arg for arg in p.cmdline())]
        return []

    def workers(self) -> list[psutil.Process]:
        """Its workers, by stage: the fork server's children, in the order of their start."""
        forks = self.fork_servers()  # of which workers are copies, under the same name
        servers = {fork.pid for fork in forks}
        with suppress(psutil.Error):  # one of them ended meanwhile
            return sorted((p for p in forks if p.ppid() in servers), key=lambda p: p.pid)
        return []

    def end(self) -> None:
        """End whatever is left of it, however the test went."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(DEADLINE_S)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get("TMPDIR") == str(self.temp)
        except psutil.Error:  # gone meanwhile, or somebody else's
            return False


@contextmanager
def nothing_ignored() -> Iterator[None]:
    """What is started in here heeds signals, even where the tests run under `nohup` or in the
    background of a script."""
    ignored = [number for number in INTERRUPTIONS if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


HELD = """\
from launch.cli import main
from support.processes import hold_feed

hold_feed({step})
main()
"""
"""Program of a launcher that gets no further than a step until it is interrupted, or the file
`released` is there."""


def hold_feed(step: int) -> None:
    """Plant in this process: before training batch `step` is fed, make the file `held` and wait
    until the interruption has been heeded, after which the run ends with exactly this step; or
    until the file `released` is there."""
    from pipeline.run.run import Run  # the class is changed, in a process that is made for it

    arrays = Run.arrays

    def held(run: Run, item: Item) -> tuple[NDArray[generic], ...]:
        if isinstance(item, TrainBatch) and item.batch_id == step:
            Path("held").touch()
            in_single_mode = current_thread() is main_thread()
            heeded = run.interrupted if in_single_mode else lambda: run.feed.interrupted
            until(lambda: heeded() or Path("released").exists(), "an interruption, or a release")
        return arrays(run, item)

    Run.arrays = held  # type: ignore[method-assign]


# --- workers with something planted: each stands for launch.engines.local._work ---------


def work_without_shared_memory(*arguments: Any) -> int:
    """A worker on a system that has no memfd: tensors travel as frames."""
    del os.memfd_create
    return _work(*arguments)


def work_on_an_island(*arguments: Any) -> int:
    """A worker that seems to be on a machine of its own: no other can reach its memory."""
    from pipeline.system import machine

    island = f"island-{os.getpid()}"
    machine._boot = lambda: island
    return _work(*arguments)


def work_among_wiretappers(*arguments: Any) -> int:
    """A worker on a machine of its own, too. Of what it sends by a stream, a bit of the first batch
    arrives otherwise, and all of it is said once more by somebody at another address."""
    from pipeline.transport import stream_sender, tcp_port
    from pipeline.transport.stream_format import GREETING_BYTES
    from support.wire import Wire

    connected = stream_sender.connected

    def tapped(endpoint: str, timeout_s: float) -> socket.socket:
        if not wires:
            wires.append(Wire(endpoint, flip_at=_FLIPPED_BYTE))
            return connected(wires[0].endpoint, timeout_s)
        where = tcp_port.host_of(endpoint), int(endpoint.rpartition(":")[2])
        with socket.create_connection(where, timeout_s, (STRANGER, 0)) as replay:
            replay.sendall(wires[0].sent[0])
            heard = b""
            with suppress(ConnectionResetError):
                while data := replay.recv(1 << 16):
                    heard += data
            assert len(heard) <= GREETING_BYTES, "nobody is let in who repeats what was said"
        wires[0].close()
        return connected(endpoint, timeout_s)

    wires: list[Wire] = []
    stream_sender.connected = tapped
    return work_on_an_island(*arguments)


def work_that_raises(*arguments: Any) -> int:
    """A worker whose block 2 fails at batch 3."""
    from pipeline.learning.block import Block

    transfer = Block.transfer

    def fails(block: Block, h: Any, *, batch_id: int | None) -> Any:
        if (block.spec.index, batch_id) == (2, 3):
            raise ValueError("planted\nand its second line")
        return transfer(block, h, batch_id=batch_id)

    Block.transfer = fails  # type: ignore[method-assign]
    return _work(*arguments)


def work_that_exits(*arguments: Any) -> int:
    """A worker of stage 1 that ends without a word."""
    if arguments[0].stage == 1:
        os._exit(3)
    return _work(*arguments)


def work_that_differs(*arguments: Any) -> int:
    """A worker whose block 1 moves one number of its bias at its second step."""
    from pipeline.learning.block import Block

    update, steps = Block.update, []

    def differs(block: Block, gradients: Any, lr: float) -> None:
        update(block, gradients, lr)
        if block.spec.index == 1:
            steps.append(block)
            if len(steps) == 2:
                block.encoder.bias.data[3] += 1e-6

    Block.update = differs  # type: ignore[method-assign]
    return _work(*arguments)


def _work(*arguments: Any) -> int:
    from launch.engines import local  # in a worker the true one: the test's patch stays behind

    return local._work(*arguments)
