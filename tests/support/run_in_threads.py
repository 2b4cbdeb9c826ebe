"""A whole run in threads, over links in memory: no sockets, no processes, no files of tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event as Signal
from threading import Thread
from typing import TYPE_CHECKING, Any

from pipeline.config.sections import Config, build_config
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.engine import End
from pipeline.coordinator.watchdog import Watchdog
from pipeline.data.batches import load_batches
from pipeline.data.facts import data_facts
from pipeline.learning.block import Block
from pipeline.network.from_config import network_specs
from pipeline.planning.cost import block_costs
from pipeline.planning.hosts import Place, this_machine
from pipeline.planning.plan import make_plan, plan_members, with_replicas
from pipeline.protocol.addresses import Carrier, LinkAddress
from pipeline.protocol.credentials import Invitation
from pipeline.protocol.messages import Complete
from pipeline.run.events import Note
from pipeline.run.recorder import Recorder
from pipeline.run.run import Run
from pipeline.run.timeline_file import TimelineFile
from pipeline.schedule.feed import Feed, course_of
from pipeline.schedule.items import Stop
from pipeline.single import SingleTrainer
from pipeline.storage.background_writer import BackgroundWriter
from pipeline.storage.checkpoint import RunState
from pipeline.storage.folder import Folder
from pipeline.trained.initial import initial_of
from pipeline.transport.in_memory import MemoryControl, MemorySender, memory_link
from pipeline.transport.rejections import Rejections
from pipeline.worker.heartbeat import Activity
from pipeline.worker.process import failure_of
from pipeline.worker.worker import Worker
from support.drawing import WORKER

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from torch import Tensor

    from pipeline.run.events import Event
    from pipeline.transport.interfaces import Sender


TREE: dict[str, Any] = {
    "model": {"name": "vgg", "layers": [4, "M", 6], "hidden": 16, "dropout": 0.2},
    "loss": {"name": "predsim", "dim_in_decoder": 32},
    "schedule": {"epochs": 2, "milestones": [1]},
    "data": {
        "name": "synthetic",
        "size": 6,
        "channels": 2,
        "train_images": 22,
        "test_images": 9,
        "batch_size": 8,
        "crop_padding": 1,
        "flip": True,
    },
}
"""3 hidden blocks and the output; 2 epochs of 3 steps (the last of 6 images), 2 test batches."""


def config_of(
    loss: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    schedule: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    **runtime: Any,
) -> Config:
    given = {
        "loss": loss,
        "model": model,
        "schedule": schedule,
        "data": data,
        "optimizer": optimizer,
        "parallel": parallel,
    }
    chosen = {section: values for section, values in given.items() if values is not None}
    return build_config({**TREE, **chosen, "runtime": runtime}, "test")


@dataclass
class Store:
    """Keeps every checkpoint in memory: bytes by block by step, and where it was."""

    files: dict[int, dict[int, bytes]] = field(default_factory=dict)
    states: dict[int, RunState] = field(default_factory=dict)
    newest: RunState = field(default_factory=RunState)

    def write(self, state: RunState) -> Path:
        step = state.position.step
        self.files[step] = {block: bytes(data) for block, data in state.files.items()}
        self.newest = self.states[step] = replace(state, files=self.files[step])
        return Path(f"step-{step}")


class Job:
    """A run whose checkpoints, lines and events are kept."""

    def __init__(
        self,
        folder: Path,
        stages: int,
        start: RunState | None = None,
        progress_interval_s: float = 0.0,
        trace: int = 0,
        **runtime: Any,
    ) -> None:
        config = config_of(**runtime)
        specs = network_specs(config, data_facts(config.data))
        start = start or RunState(initial=initial_of(config, specs))
        costs = block_costs(
            specs, batch_size=8, element_bytes=4, optimizer_name="adam", backprop=False
        )
        if config.parallel.members > 1:
            plan = plan_members(specs, config.parallel.members, ("cpu",))
        else:
            plan = make_plan(specs, costs, stages=stages, devices=("cpu",))
            plan = with_replicas(plan, config.parallel.replicas, costs, ("cpu",))
        batches = load_batches(config.data, config.runtime.seed)
        course = course_of(config, specs, batches.steps_per_epoch, batches.evaluation_batches)
        self.folder = folder
        held = Folder.open(folder)
        self.store, self.events, self._metrics = Store(), [], folder / "metrics.jsonl"
        self.listeners: list[Callable[[Event], None]] = [self.events.append]
        recorder = Recorder(
            held,
            course,
            ["cpu"] * plan.n_stages,
            [spec.name for spec in specs],
            BackgroundWriter(self.store, every=True),
            self._observe,
            start=start,
        )
        self.run = Run(
            id="run",
            config=config,
            plan=plan,
            batches=batches,
            feed=Feed(course, start.position, best=start.best),
            start=start,
            recorder=recorder,
            observer=self._observe,
            interrupted=lambda: self.interrupted,
            progress_interval_s=progress_interval_s,
            folder=held,
            timeline=(
                TimelineFile(held, plan, start.position.step, trace, self._observe)
                if trace
                else None
            ),
        )
        self.interrupted = False

    def _observe(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    @property
    def notes(self) -> list[str]:
        """What the person who watches was told."""
        return [event.text for event in self.events if isinstance(event, Note)]

    def lines(self) -> list[dict[str, Any]]:
        """The metrics, without what depends on time and on stages."""
        timed = ("time", "images_per_s", "seconds", "stages")
        text = self._metrics.read_text() if self._metrics.exists() else ""
        lines = map(json.loads, text.splitlines())
        return [{key: line[key] for key in line if key not in timed} for line in lines]


class Lost(BaseException):
    """Stands for the sudden end of a process: no clean-up, no last words."""


class Fate:
    """When a worker is lost: just before the `last`-th time that it touches the world outside.
    One that `hangs` does not die, but never does anything again. `next`: of its successor."""

    def __init__(
        self, last: int | None = None, *, hangs: bool = False, next: Fate | None = None
    ) -> None:
        self.last, self.acts, self.hangs, self.next = last, 0, hangs, next

    def act(self) -> None:
        self.acts += 1
        if self.acts == self.last:
            if self.hangs:
                Signal().wait()
            raise Lost


@dataclass
class Mortal:
    """A link or control end of a worker that may be lost at any call."""

    end: Any
    fate: Fate

    def __getattr__(self, name: str) -> Any:
        if name in ("send", "receive", "finish"):
            self.fate.act()
        return getattr(self.end, name)


@dataclass
class MemoryEndpoints:
    """Replaces `interfaces.Endpoints`: links by their address, within this process."""

    senders: dict[str, MemorySender]
    fate: Fate = field(default_factory=Fate)
    rejections: Rejections = field(default_factory=lambda: Rejections("link"))

    def listen(
        self, bind: str, slots: int, slot_bytes: int, peer: str = ""
    ) -> tuple[Any, LinkAddress]:
        self.senders[bind], receiver = memory_link(slots, timeout_s=60.0)
        return Mortal(receiver, self.fate), LinkAddress(bind, None, "word")

    def connect(
        self,
        address: LinkAddress,
        called_off: Callable[[], bool],
        tell: Callable[[str], None],
        peer: str = "",
    ) -> tuple[Any, Carrier]:
        sender = self.senders[address.endpoint]
        sender.heed(called_off)
        return Mortal(sender, self.fate), Carrier("shared")


KILLED = End("was killed by SIGKILL", silent=True)


class ThreadWorkers:
    """`engine.Workers` as threads, each of which tells its failure as a worker process does.

    `fates`: of the first worker of some stages; others live on. `has_room`: asked again and again,
    where a stage is to begin.
    """

    def __init__(
        self,
        stages: int,
        fates: dict[int, Fate] | None = None,
        user_code: tuple[str, ...] = (),
    ) -> None:
        self._user_code = user_code
        self.control, self.senders = MemoryControl(), dict[str, MemorySender]()
        self.killed: dict[int, End] = {}
        self.fates = fates or {}
        self._stages, self._threads = stages, dict[int, Thread]()
        self.has_room: Callable[[], bool] = lambda: True
        self._wanting: dict[int, int] = {}
        """Attempts of stages that wait for room."""

    def dead(self) -> dict[int, End]:
        self._find_room()
        return self.killed

    def home(self, stage: int) -> Place | None:
        return None if stage in self._wanting else Place(this_machine(("cpu",)), "cpu")

    def waiting(self) -> dict[int, str]:
        return dict.fromkeys(self._wanting, "1 CPU")

    def news(self) -> list[Event]:
        return []

    def replace(self, stage: int, attempt: int) -> None:
        self.killed.pop(stage, None)
        before = self.fates.get(stage)
        self.fates[stage] = (before.next if before else None) or Fate()
        self._wanting[stage] = attempt
        self._find_room()

    def _find_room(self) -> None:
        if self.has_room():
            for stage, attempt in self._wanting.items():
                self._begin(stage, attempt, self.fates.get(stage, Fate()))
            self._wanting.clear()

    def wake(self, stage: int) -> None:
        """Threads can't be stopped."""

    def start(self) -> None:
        self._wanting = dict.fromkeys(range(self._stages), 0)
        self._find_room()

    def leave(self) -> None:
        for thread in self._threads.values():
            thread.join(60.0)
            assert not thread.is_alive(), thread.name

    def end(self) -> None:
        """End workers that wait for a stage which has failed."""
        for sender in self.senders.values():
            sender.send(Stop())
            sender._shared.stops.put(None)  # as if the failed stage had taken it
        for stage, thread in self._threads.items():
            while thread.is_alive() and stage not in self.killed:  # and sent its states
                for step in range(99):
                    self.control.send(stage, Complete(step))
                thread.join(0.1)
        self.leave()

    def connect(
        self, address: LinkAddress, cancelled: Callable[[], bool], tell: Callable[[str], None]
    ) -> tuple[Sender, Carrier]:
        """The coordinator's link to stage 0."""
        sender = self.senders[address.endpoint]
        sender.heed(cancelled)
        return sender, Carrier("shared")

    def _begin(self, stage: int, attempt: int, fate: Fate) -> None:
        work = Thread(
            target=self._work, args=(stage, attempt, fate), name=f"{WORKER}{stage}", daemon=True
        )
        self._threads[stage] = work
        work.start()

    def _work(self, stage: int, attempt: int, fate: Fate) -> None:
        control: Any = Mortal(self.control.client(stage, attempt), fate)
        endpoints: Any = MemoryEndpoints(self.senders, fate)
        worker = Worker(
            Invitation("run", stage, attempt, "nowhere", self._user_code),
            control,
            endpoints,
            Activity(),
        )
        try:
            worker.live()
        except Lost:
            self.killed[stage] = KILLED
        except Exception as error:
            control.send(failure_of(error, worker))


def coordinator(
    job: Job,
    workers: ThreadWorkers,
    clock: Callable[[], float] | None = None,
    stall_timeout_s: float = 60.0,
) -> Coordinator:
    given = {"clock": clock} if clock else {}
    watchdog = Watchdog(heartbeat_timeout_s=60.0, stall_timeout_s=stall_timeout_s)

    def bind(*at: int) -> str:
        return "-".join(map(str, ("link", *at)))

    return Coordinator(job.run, workers.control, workers.connect, bind, workers, watchdog, **given)


def train_single(job: Job) -> None:
    SingleTrainer(job.run).run()


def train_pipelined(
    job: Job,
    fates: dict[int, Fate] | None = None,
    workers: ThreadWorkers | None = None,
    clock: Callable[[], float] | None = None,
) -> None:
    named = tuple(job.run.config.user_code.values())
    workers = workers or ThreadWorkers(job.run.plan.n_stages, fates, named)
    workers.start()
    coordinator(job, workers, clock).run()
    workers.leave()


def trained_alike(folder: Callable[[], Path], stages: int, **sections: Any) -> Job:
    """A job trained in single mode; a pipeline's checkpoints and metrics are the same."""
    single, pipelined = (Job(folder(), stages, **sections) for _ in range(2))
    train_single(single)
    train_pipelined(pipelined)
    assert pipelined.store.files == single.store.files
    assert pipelined.lines() == single.lines()
    return single


def check_resumed(
    whole: Job, folder: Callable[[], Path], step: int, stages: int, **sections: Any
) -> None:
    """A pipeline that goes on from `step` of a job ends as that has ended."""
    resumed = Job(folder(), stages, whole.store.states[step], **sections)
    train_pipelined(resumed)
    last = max(whole.store.files)
    assert resumed.store.files[last] == whole.store.files[last]


def plant_a_fault(
    monkeypatch: pytest.MonkeyPatch, text: str = "planted", at: tuple[int, int | None] = (1, 3)
) -> None:
    """A block fails `at` (its index, training batch)."""
    transfer = Block.transfer

    def fails(block: Block, h: Tensor, *, batch_id: int | None) -> Tensor:
        if (block.spec.index, batch_id) == at:
            raise ValueError(text)
        return transfer(block, h, batch_id=batch_id)

    monkeypatch.setattr(Block, "transfer", fails)
