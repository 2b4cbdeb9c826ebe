"""What a worker keeps of the snapshots it has sent, in case the run has to go back to one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence


class KeptStates:
    """Block files of the snapshots that the run may still have to go back to, by step."""

    def __init__(self) -> None:
        self._files: dict[int, Sequence[bytes | memoryview]] = {}
        self._awaited: list[int] = []
        """Steps of those that the coordinator may not have yet: two of one step are two."""

    @property
    def all_complete(self) -> bool:
        """Whether the coordinator has the newest one, of every stage."""
        return not self._awaited

    def add(self, step: int, files: Sequence[bytes | memoryview]) -> None:
        """Keep the files of a snapshot, in the order of the stage's blocks."""
        self._files[step] = files
        self._awaited.append(step)

    def at(self, step: int) -> Sequence[bytes | memoryview]:
        """The files of a snapshot.

        Raises:
            ProtocolError: where they are not kept.
        """
        if step not in self._files:
            raise ProtocolError(f"no state of step {step} is kept, only of {sorted(self._files)}")
        return self._files[step]

    def drop_before(self, step: int) -> None:
        """This one is complete in all stages, and so are all before it."""
        if step in self._awaited:
            self._awaited = self._awaited[self._awaited.index(step) + 1 :]
        self._files = {kept: files for kept, files in self._files.items() if kept >= step}

    def drop_after(self, step: int) -> None:
        """The run has gone back to this one, or begins here."""
        self._awaited.clear()
        self._files = {kept: files for kept, files in self._files.items() if kept <= step}
