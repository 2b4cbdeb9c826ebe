"""Damaged image files for as long as one likes, from the root of a clone:

    python tests/fuzz/images.py --minutes 5

`image_folder.py` says which rules hold. Each round is a process with bounded memory and time. The
last line is JSON; exit status 1: a file broke a rule and lies, named, in build/fuzz/images.
`tests/fuzz/test_images.py` tries a few of them.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

ROUND = 2000
MOST_BYTES = 3 << 30
"""Of a process: 0.4 GB of libraries, and the largest image with what its decoding takes."""
MOST_S = 60
KEPT = REPOSITORY / "build" / "fuzz" / "images"


@click.command()
@click.option("--minutes", type=float, default=5.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first round.")
@click.option("--child", is_flag=True, hidden=True, help="Be the process of one round.")
def main(minutes: float, seed: int, child: bool) -> None:
    """Try files until the time is over or one breaks a rule."""
    if child:
        one_round(seed)
        return
    began, rounds, read, peak = time.monotonic(), 0, 0, 0
    while time.monotonic() - began < 60 * minutes:
        command = [sys.executable, __file__, "--child", "--seed", str(seed + rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(json.dumps({"seed": seed + rounds, "broken": done.returncode}), flush=True)
            sys.exit(1)
        found = json.loads(done.stdout.splitlines()[-1])
        rounds, read, peak = rounds + 1, read + found["read"], max(peak, found["peak_mb"])
    print(json.dumps({"files": rounds * ROUND, "read": read, "peak_rss_mb": peak}), flush=True)


def one_round(seed: int) -> None:
    """Try `ROUND` files; the one at work lies in the folder of what broke a rule until it is
    done, so that it is there however this process ends."""
    from fuzz.imagefiles import files, is_read_or_refused, readers

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the end of a file that takes too long
    KEPT.mkdir(parents=True, exist_ok=True)
    read, ready = 0, readers()
    for name, data in files(seed, ROUND):
        path = KEPT / f"seed-{seed}-{name}"
        path.write_bytes(data)
        signal.alarm(MOST_S)
        read += is_read_or_refused(path, ready[len(data) % len(ready)])
        signal.alarm(0)
        path.unlink()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"read": read, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
