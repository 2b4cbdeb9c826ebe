"""Stages that wait for room on a host: no time-out and no restart is used up, and the run says so.

Workers are threads; room appears once the run has said so often that there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.run_in_threads import Fate, Job, ThreadWorkers, coordinator, train_single

from pipeline.errors import InterruptedRunError
from pipeline.run.events import Note, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.run.events import Event

    Folder = Callable[[], Path]

COURSE: dict[str, Any] = {
    "schedule": {"epochs": 1},
    "checkpoint_every_steps": 1,
    "start_timeout_s": 5.0,
    "max_restarts": 1,
}
NO_ROOM = (
    "no room: stage 1 waits for 1 CPU. A host that joins is used at once; Ctrl-C ends the run, "
    "with a checkpoint of what is trained"
)

pytestmark = pytest.mark.usefixtures("torch_settings", "generators_of_their_own")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.coordinator.coordinator._POLL_S", 0.01)


class Scene:
    """A run of 2 stages, of which the second is lost after a while. `said` counts how often it was
    said that there is no room; while there is none, the clock is half a second later whenever it is
    read."""

    def __init__(self, folder: Path) -> None:
        self.job, self.workers = Job(folder, 2, **COURSE), ThreadWorkers(2, {1: Fate(18)})
        self.said, self.now = 0, 0.0
        self.job.listeners.append(self._hear)

    def _hear(self, event: Event) -> None:
        self.said += isinstance(event, Note) and event.text.startswith("no room")

    def clock(self) -> float:
        self.now += 0.5 * bool(self.workers.waiting())
        return self.now

    def train(self) -> None:
        coordinator(self.job, self.workers, self.clock).run()
        self.workers.leave()


def test_a_run_that_finds_no_room_waits_for_it_and_says_so(folder: Folder) -> None:
    scene, single = Scene(folder()), Job(folder(), 2, **COURSE)
    scene.workers.start()
    scene.workers.has_room = lambda: scene.said == 3
    scene.train()
    train_single(single)
    assert scene.job.store.files == single.store.files
    assert scene.job.notes.count(NO_ROOM) == 3
    waits = [event for event in scene.job.events if isinstance(event, Waiting)]
    assert len(waits) <= 1, "for a process that has room, but not for one that has none"
    assert [note for note in scene.job.notes if "(restart 1 of 1" in note]
    assert scene.now > 30.0  # of which 5 s would have been the start time-out


def test_the_first_start_waits_as_long_as_it_takes(folder: Folder) -> None:
    scene = Scene(folder())
    scene.workers.fates.clear()
    scene.workers.has_room = lambda: scene.said == 2
    scene.workers.start()
    scene.train()
    assert scene.said == 2
    assert "stage 0 waits for 1 CPU; stage 1 waits for 1 CPU" in "".join(scene.job.notes)


def test_an_interruption_meanwhile_leaves_the_newest_checkpoint(folder: Folder) -> None:
    scene = Scene(folder())
    scene.workers.start()
    scene.workers.has_room = lambda: False
    scene.job.listeners.append(lambda event: setattr(scene.job, "interrupted", scene.said == 1))
    with pytest.raises(InterruptedRunError, match="a checkpoint was written"):
        scene.train()
    assert scene.job.store.newest.position.step == max(scene.job.store.files) > 0
