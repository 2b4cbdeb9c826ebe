"""The process in which libFuzzer tries a target: `child.py TARGET FLAG …`; `fuzz.py` starts it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import atheris

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

READS_SOCKETS = (
    "errors",
    "schedule.reports",
    "schedule.items",
    "data.facts",
    "protocol.messages",
    "protocol.codec",
    "transport.payloads",
    "transport.zmq_link",
)
READS = {
    "codec": READS_SOCKETS,
    "checkpoint": (*READS_SOCKETS, "storage.checkpoint", "learning.block_file"),
}
"""Modules of which libFuzzer is told what of them has run."""


def main() -> None:
    """Returns never: libFuzzer ends the process."""
    target, *flags = sys.argv[1:]
    folder = REPOSITORY / "pipeline"
    names = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("[!_]*.py")
    }
    others = [f"pipeline.{name}" for name in sorted(names - {*READS[target]})]
    with atheris.instrument_imports(include=["pipeline"], exclude=others):
        for name in READS[target]:
            import_module(f"pipeline.{name}")
    from fuzz.mutations import mutated
    from fuzz.targets import TARGETS

    def another(data: bytes, most: int, seed: int) -> bytes:
        return mutated(target, data, most, seed, atheris.Mutate)

    atheris.Setup([sys.argv[0], *flags], TARGETS[target], custom_mutator=another)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
