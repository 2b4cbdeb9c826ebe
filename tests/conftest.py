"""What every test relies on: the same examples and draws everywhere, and settings put back."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from support import processes
from support.processes import TINY, Launcher, Started, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.transport.sockets import Sockets

MOST_PROCESSES = 4
"""That test at once: more would only wait for the one that has all tests marked `processes`."""
FEW_FILES = 9
"""So many, or fewer, are tested by one process: each takes seconds to import torch."""

settings.register_profile("same_everywhere", derandomize=True, deadline=None, database=None)
settings.load_profile("same_everywhere")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` of pyproject.toml means: this process alone for a few files."""
    files = set[Path]()
    for argument in config.args:
        path = config.invocation_params.dir / argument.partition("::")[0]
        files.update(path.rglob("test_*.py") if path.is_dir() else [path])
    cores = len(os.sched_getaffinity(0))
    return 0 if cores == 1 or len(files) <= FEW_FILES else min(cores, MOST_PROCESSES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes one carries out all tests that start real ones, one by one: what they
    wait for, and what they look for in the end, allows for quick tests beside them, not for each
    other. The others take what comes next, and so does this one when it is done. A file names a
    group of its own where its tests are heavy, but wait for nothing that is short of time beside
    others."""
    from support.distribution import RealOnesInTurn

    return RealOnesInTurn(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes test, what starts others is begun at once: it takes longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_stays() -> None:
    """To look through it at every collection of garbage would take longer than the tiny runs in
    between, some of which free their memory by one. The process that starts workers does the
    same. Modules that only tests of some files import come as the tests go on."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_draws_and_threads() -> None:
    """What a test draws, and the memory that products take for each thread, must not depend on
    which tests came before it."""
    import torch

    # not torch.manual_seed: that keeps a stack trace for each kind of device that is not there, and
    # takes as long as many a test
    torch.default_generator.manual_seed(0)
    # as a worker does; to hand thousands of tiny sums to threads would take 30 times as long
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_module_path() -> Iterator[None]:
    """A command leaves the current folder, which is the repository's in most tests: others import
    from it."""
    before = sys.path[:]
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """A command that is carried out in this process lets signals end it once it is done."""
    import signal

    from launch.engines.interrupts import INTERRUPTIONS

    before = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Closes every socket at the end, however the test went."""
    from support.kept_sockets import KeptSockets

    from pipeline.transport.rejections import Rejections

    sockets = KeptSockets(Rejections("here"))
    yield sockets
    sockets.close(0)


@pytest.fixture
def torch_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what `prepare_process` changes for the whole process."""
    import torch

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filling = torch.utils.deterministic
    monkeypatch.setattr(filling, "fill_uninitialized_memory", filling.fill_uninitialized_memory)
    mode = torch.get_deterministic_debug_mode()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield
    torch.set_deterministic_debug_mode(mode)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.fixture(scope="module", autouse=True)
def torch_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs in this process set determinism: set it back for the next module."""
    if not request.node.get_closest_marker("processes"):
        yield
        return
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Config file of a run that takes no time: 3 hidden layers, 3 epochs of 4 steps."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would train raises `Started`."""

    def start(*given: Any) -> None:
        raise Started

    monkeypatch.setattr("launch.engines.local.LocalEngine.warm_up", start)
    monkeypatch.setattr("launch.training.load_batches", start)
    monkeypatch.setattr("pipeline.locality.proof.carry_out", start)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    """Starts `pipeline-launch ARGUMENTS` in `tmp_path`; in the end nothing of it may be left:
    no process, no folder of sockets, nothing in shared memory."""
    started: list[Launcher] = []
    with _nothing_left() as temp:

        def start(*arguments: str | Path, **given: Any) -> Launcher:
            started.append(Launcher(tmp_path, temp, *arguments, **given))
            return started[-1]

        try:
            yield start
            for one in started:
                one.exit_status()
                until(lambda one=one: not one.family(), "the end of all processes", 10.0)
        finally:
            for one in started:
                one.end()


@pytest.fixture
def sockets_gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs in this process may leave no folder of sockets and nothing in shared memory."""
    with _nothing_left() as temp:
        elsewhere = SimpleNamespace(gettempdir=lambda: str(temp), mkdtemp=tempfile.mkdtemp)
        monkeypatch.setattr("pipeline.transport.sockets.tempfile", elsewhere)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_fork_server() -> Iterator[None]:
    """For all tests."""
    with processes.one_fork_server():
        yield


@contextmanager
def _nothing_left() -> Iterator[Path]:
    shared = set(os.listdir("/dev/shm"))
    temp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short enough for sockets
    try:
        yield temp
        until(lambda: not list(temp.glob("pipeline-*")), "the end of all socket folders", 5.0)
        # others on this machine may use shared memory for a while
        until(lambda: set(os.listdir("/dev/shm")) <= shared, "an unchanged /dev/shm")
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture
def generators_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in threads share the generators that are a process's: whoever draws from them is
    alone, until it is done or waits for its team."""
    from support.drawing import draw_in_turns

    draw_in_turns(monkeypatch)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new folder with each call."""
    return lambda: tmp_path_factory.mktemp("run")
