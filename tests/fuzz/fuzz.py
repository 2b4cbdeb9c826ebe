"""Coverage-guided fuzzing of what reads sockets and checkpoints, from the root of a clone:

    pip install atheris
    python tests/fuzz/fuzz.py codec --minutes 15
    python tests/fuzz/fuzz.py checkpoint --minutes 15

`targets.py` says which rules hold. The last line is JSON; exit status 1: an input broke a rule and
lies, named, beside the corpus. `tests/fuzz/test_targets.py` tries the same targets in no time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

if TYPE_CHECKING:
    from collections.abc import Iterable

TARGETS = ("codec", "checkpoint")
CHILD = Path(__file__).with_name("child.py")
LIMITS = ("-timeout=5", "-rss_limit_mb=1024", "-max_len=65536")
"""Of one input: 5 s, 1 GiB (with torch), and what libFuzzer makes of 64 KiB."""
_COVERED = re.compile(r"\bcov: (\d+)")
_STATISTIC = re.compile(r"stat::(\w+): +(\d+)")


@click.command()
@click.argument("target", type=click.Choice(TARGETS))
@click.option("--minutes", type=float, default=15.0, show_default=True)
@click.option(
    "--corpus", type=click.Path(path_type=Path), help="Grows from run to run [build/fuzz/TARGET]."
)
def main(target: str, minutes: float, corpus: Path | None) -> None:
    """Try inputs until the time is over or one breaks a rule."""
    if importlib.util.find_spec("atheris") is None:
        raise click.ClickException(
            "atheris, which drives libFuzzer, is not installed: pip install atheris "
            "(Linux, CPython 3.11 to 3.13), or run pytest tests/fuzz/test_targets.py without it"
        )
    corpus = corpus or REPOSITORY / "build" / "fuzz" / target
    sow(target, corpus)
    began = time.monotonic()
    status, lines = fuzz(target, corpus, round(minutes * 60))
    found = {"target": target, **statistics(lines), "seconds": round(time.monotonic() - began)}
    print(json.dumps({**found, "crashes": int(status != 0)}), flush=True)
    sys.exit(int(status != 0))


def sow(target: str, corpus: Path) -> None:
    """Put the seeds into the corpus."""
    from fuzz.seeds import seeds

    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(target):
        (corpus / sha256(seed).hexdigest()[:40]).write_bytes(seed)


def fuzz(target: str, corpus: Path, seconds: int) -> tuple[int, list[str]]:
    """Exit status and last words of libFuzzer, which ends its process itself."""
    where = (f"-artifact_prefix={corpus}-", f"-max_total_time={seconds}", "-print_final_stats=1")
    command = [sys.executable, str(CHILD), target, *LIMITS, *where, str(corpus)]
    with TemporaryDirectory(prefix="fuzz-") as temp:  # the child may end before it clears away
        child = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "TMPDIR": temp},
        )
        with child:
            assert child.stderr
            try:
                lines = [_told(line) for line in child.stderr]
            finally:
                child.terminate()  # it has ended by now, unless this process is to end
    return child.returncode, lines


def _told(line: str) -> str:
    sys.stderr.write(line)
    return line


def statistics(lines: Iterable[str]) -> dict[str, Any]:
    """What libFuzzer says of a run: inputs tried, edges covered, memory at its peak."""
    found: dict[str, Any] = {"inputs": 0, "edges": 0, "peak_rss_mb": 0}
    names = {"number_of_executed_units": "inputs", "peak_rss_mb": "peak_rss_mb"}
    for line in lines:
        if covered := _COVERED.search(line):
            found["edges"] = int(covered[1])
        if (said := _STATISTIC.match(line)) and said[1] in names:
            found[names[said[1]]] = int(said[2])
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
