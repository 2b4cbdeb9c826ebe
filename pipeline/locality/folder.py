"""The folder of a proof: what its processes are asked, and what they find. Plain values, as JSON.

asked.json       config, device, number of steps, the blocks of each unit
initial-0.safetensors   what block 0 begins with that another run has learned
recorded.json    the traces of all units in the whole network, and the facts of its data
tape-0           what unit 0 received
alone-0.json     the trace of unit 0, trained alone from that
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.facts import facts_of_tree
from pipeline.locality.trace import trace_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.data.facts import DataFacts
    from pipeline.locality.trace import Trace


@dataclass(frozen=True, slots=True)
class Asked:
    """What a proof is of. `config`: as a tree; `units`: the blocks of each, by index."""

    config: dict[str, Any]
    device: str
    steps: int
    units: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ProofFolder:
    """Written and read by the processes of a proof, one after the other."""

    path: Path

    def ask(self, asked: Asked, initial: Mapping[int, bytes]) -> None:
        self._write("asked", asdict(asked))
        for block, data in initial.items():
            self._initial(block).write_bytes(data)

    def asked(self) -> Asked:
        tree = self._read("asked")
        return Asked(**{**tree, "units": tuple(map(tuple, tree["units"]))})

    def initial(self, blocks: Sequence[int]) -> dict[int, bytes]:
        """What some blocks begin with, of those that begin with what another run has learned."""
        files = {block: self._initial(block) for block in blocks}
        return {block: file.read_bytes() for block, file in files.items() if file.exists()}

    def tape(self, unit: int) -> Path:
        """The folder of the tape of a unit."""
        return self.path / f"tape-{unit}"

    def keep_recorded(self, traces: Sequence[Trace], facts: DataFacts | None = None) -> None:
        """`facts`: None where the recording has failed before they were known."""
        traced = [trace.tree() for trace in traces]
        self._write("recorded", {"traces": traced, "facts": facts and asdict(facts)})

    def recorded(self) -> list[Trace]:
        return [trace_of(tree) for tree in self._read("recorded")["traces"]]

    def facts(self) -> DataFacts:
        """Of the data, as the recording has read them."""
        return facts_of_tree(self._read("recorded")["facts"])

    def keep_alone(self, unit: int, trace: Trace) -> None:
        self._write(f"alone-{unit}", trace.tree())

    def alone(self, unit: int) -> Trace:
        return trace_of(self._read(f"alone-{unit}"))

    def _initial(self, block: int) -> Path:
        return self.path / f"initial-{block}.safetensors"

    def _write(self, name: str, tree: dict[str, Any]) -> None:
        (self.path / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")

    def _read(self, name: str) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))
        return tree
