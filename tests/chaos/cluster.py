"""Runs on a Ray cluster of imitated hosts that lose parts of it: they must end as one process does.

    python tests/chaos/cluster.py          # from the root of a clone, as root; a line for each case
    python tests/chaos/cluster.py --storm 20 --seed 1

Three hosts (`support/hosts.py`), the launcher and Ray's head on the first. Each case trains, is
disturbed in its own way, and must end with the block files, by SHA-256, that `--single` gives; a
storm hits one run again and again. Beside each case stand the seconds until it was training again.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a script finds `support`
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rather packages than tests of them
from support.hosts import ImitatedHost, imitated_hosts, why_not
from support.processes import COMMAND, final_digests, launch, nothing_ignored, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

DIGITS = """\
model: {name: mlp, hidden_layers: 3, hidden: 64, dropout: 0.2}
loss: {name: predsim}
schedule: {epochs: 15, milestones: [8]}
data: {name: digits, batch_size: 32, crop_padding: 1}
runtime: {checkpoint_every_steps: 20, max_restarts: 1000}
"""
VGG = """\
model: {name: vgg8b, feat_mult: 0.125, hidden: 128, dropout: 0.1}
loss: {name: predsim, dim_in_decoder: 256}
schedule: {epochs: 2}
data: {name: synthetic, size: 32, train_images: 256, test_images: 64, batch_size: 32}
runtime: {checkpoint_every_steps: 2, max_restarts: 1000}
"""
CPUS = (1, 1, 3)
"""That the hosts lend: with three stages, the last host has room for two more."""
STAGES = 3
TOKEN = "0123456789abcdef" * 2
PORT = 6379
RAY = (sys.executable, "-m", "ray.scripts.scripts")
STARTS_S, ENDS_S = 120.0, 400.0
AGAIN = "training again"


class RayOnHosts:
    """A Ray cluster on imitated hosts, with a token; what belongs to it on each."""

    def __init__(self, hosts: Sequence[ImitatedHost], cpus: Sequence[int]) -> None:
        self.hosts, self._cpus = hosts, cpus
        self.address = f"{hosts[0].address}:{PORT}"

    def start(self, *numbers: int) -> None:
        """Let hosts be nodes; the first of all is the head."""
        for number in numbers:
            host = self.hosts[number]
            first = ("--head", f"--port={PORT}", "--include-dashboard=false")
            role = (
                (*first, f"--temp-dir={host.private}")
                if not number
                else (f"--address={self.address}",)
            )
            log = (host.folder / "ray.log").open("ab")
            host.start(
                *RAY, "start", "--block", *role, f"--node-ip-address={host.address}",
                f"--num-cpus={self._cpus[number]}", "--object-store-memory=80000000",
                "--disable-usage-stats",
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
            until(lambda host=host: host.processes("/raylet/raylet "), f"{host.name}", STARTS_S)
            if not number:
                until(self._head_is_ready, "Ray's head", STARTS_S)

    def _head_is_ready(self) -> bool:
        return b"block forever" in (self.hosts[0].folder / "ray.log").read_bytes()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_worker_niceness": "0",
        }

    # what can be hit

    def stages_on(self, host: ImitatedHost) -> list[int]:
        """Process ids of the stages there."""
        forks = set(host.processes("launch.engines.fork_server"))
        return sorted(pid for pid in forks if _parent(pid) in forks)

    def agents_on(self, host: ImitatedHost) -> list[int]:
        """Process ids of those actors there that have stages."""
        return sorted({_parent(_parent(pid)) for pid in self.stages_on(host)})

    def await_spares(self, host: ImitatedHost) -> None:
        """Until a second agent is there, with all that workers need."""
        servers = "launch.engines.fork_server"

        def there() -> bool:
            forks = set(host.processes(servers))
            ready = [pid for pid in forks if _parent(pid) not in forks and _has_torch(pid)]
            return len(ready) == 2

        until(there, f"a second agent on {host.name}", STARTS_S)

    def homes(self) -> list[ImitatedHost]:
        """Hosts that have stages."""
        return [host for host in self.hosts if self.stages_on(host)]


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _has_torch(pid: int) -> bool:
    """Whether a fork server has imported it, and waits."""
    with suppress(OSError):
        is_there = "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
        asleep = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
        return is_there and asleep
    return False


def kill(pids: Sequence[int] | dict[int, str]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class Training:
    """A `pipeline-launch` on the first host."""

    cluster: RayOnHosts
    folder: Path
    config: str
    more: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.yaml").write_text(self.config, encoding="utf-8")
        self.run_dir = self.folder / "run"
        self.process = self._launched("--stages", str(STAGES), *self.more)

    def _launched(self, *more: str) -> subprocess.Popen[Any]:
        words = (COMMAND, str(self.folder / "run.yaml"), "--engine=ray", "--gpus=cpu")
        where = (f"--ray-address={self.cluster.address}", f"--run-dir={self.run_dir}")
        self.said = self.folder / "said"
        with self.said.open("wb") as said, nothing_ignored():
            return self.cluster.hosts[0].start(
                *words, *where, "--view=plain", *more,
                env=self.cluster.environment, stdout=said, stderr=said,
            )  # fmt: skip

    def resume(self) -> None:
        """Go on after an end."""
        self.process = self._launched("--resume", "--stages", str(STAGES))

    @property
    def log(self) -> str:
        path = self.run_dir / "run.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def wait_for(self, text: str, times: int = 1, deadline_s: float = STARTS_S) -> float:
        """Until the log holds it so often; seconds that it took."""
        began = time.monotonic()

        def there() -> bool:
            assert self.process.poll() is None or self.log.count(text) >= times, self.all_said
            return self.log.count(text) >= times

        until(there, f"{text!r} in the log; {self.all_said}", deadline_s)
        return time.monotonic() - began

    @property
    def all_said(self) -> str:
        return f"{self.said.read_text(errors='replace')[-3000:]}\n{self.log[-3000:]}"

    def hit(self, act: Callable[[], object], deadline_s: float = STARTS_S) -> float:
        """Disturb it; seconds until it trains again."""
        before = self.log.count(AGAIN)
        act()
        return self.wait_for(AGAIN, before + 1, deadline_s)

    def ends(self, status: int = 0, deadline_s: float = ENDS_S) -> None:
        until(lambda: self.process.poll() is not None, f"its end: {self.all_said}", deadline_s)
        found = self.process.wait()
        assert found == status, f"exit status {found}: {self.all_said}"


# --- cases --------------------------------------------------------------------------------


def undisturbed(training: Training) -> str:
    training.ends()
    return f"{time.monotonic() - training.began:.0f} s in all"


def a_stage(training: Training) -> str:
    cluster = training.cluster
    took = training.hit(lambda: kill(cluster.stages_on(cluster.hosts[1])))
    return f"again after {took:.1f} s"


def an_actor(training: Training) -> str:
    """That whose processes train; a second one is there."""
    host = training.cluster.hosts[1]
    training.cluster.await_spares(host)
    took = training.hit(lambda: kill(training.cluster.agents_on(host)))
    return f"again after {took:.1f} s"


def a_raylet(training: Training) -> str:
    training.cluster.await_spares(training.cluster.hosts[2])
    took = training.hit(lambda: kill(training.cluster.hosts[1].processes("/raylet/raylet ")))
    assert [host.number for host in training.cluster.homes()] == [0, 2]
    return f"again after {took:.1f} s"


def a_host(training: Training) -> str:
    took = training.hit(training.cluster.hosts[1].turn_off)
    return f"again after {took:.1f} s"


def room_that_comes(training: Training) -> str:
    """The last host goes, and leaves no room; it joins again later."""
    cluster = training.cluster
    kill(cluster.hosts[2].processes("/raylet/raylet "))
    training.wait_for("no room: ", 2)
    before = training.log.count(AGAIN)
    cluster.start(2)
    took = training.wait_for(AGAIN, before + 1)
    return f"waited for room; again {took:.1f} s after the host had joined"


def a_cable(training: Training) -> str:
    host = training.cluster.hosts[1]
    host.cut()
    time.sleep(20.0)
    host.join()
    fed = training.log.count("checkpoint ")
    took = training.wait_for("checkpoint ", fed + 1)
    assert "restart " not in training.log, training.all_said
    return f"healed {took:.1f} s after it was back"


def an_interruption_without_room(training: Training) -> str:
    kill(training.cluster.hosts[2].processes("/raylet/raylet "))
    training.wait_for("no room: ")
    _press_ctrl_c(training)
    training.ends(130, 30.0)
    assert "a checkpoint was written" in training.all_said, training.all_said
    training.cluster.start(2)
    training.resume()
    return "interrupted, resumed"


def the_head(training: Training) -> str:
    kill(training.cluster.hosts[0].processes("gcs_server"))
    began = time.monotonic()
    training.ends(1, 120.0)
    took = time.monotonic() - began
    assert "--resume" in training.said.read_text(), training.all_said
    for host in training.cluster.hosts:
        kill(host.processes("ray"))
    time.sleep(2.0)
    training.cluster.start(0, 1, 2)
    training.resume()
    return f"exit status 1 after {took:.0f} s, resumed"


def the_launcher(training: Training) -> str:
    kill(training.cluster.hosts[0].processes("pipeline-launch"))
    training.process.wait(10.0)
    began = time.monotonic()
    until(lambda: not _left(training.cluster), "the end of all workers", 30.0)
    took = time.monotonic() - began
    training.resume()
    return f"nothing left after {took:.1f} s, resumed"


def _left(cluster: RayOnHosts) -> list[str]:
    words = ("launch.engines", "ray::PipelineAgent")
    return [
        line for host in cluster.hosts for word in words for line in host.processes(word).values()
    ]


def _press_ctrl_c(training: Training) -> None:
    for pid in training.cluster.hosts[0].processes("pipeline-launch"):
        os.kill(pid, signal.SIGINT)


CASES: dict[str, tuple[str, Callable[[Training], str]]] = {
    "digits, undisturbed": (DIGITS, undisturbed),
    "vgg8b × 0.125, undisturbed": (VGG, undisturbed),
    "a stage killed": (DIGITS, a_stage),
    "an actor killed": (DIGITS, an_actor),
    "a raylet killed": (DIGITS, a_raylet),
    "a host turned off": (DIGITS, a_host),
    "no room until a host joins": (DIGITS, room_that_comes),
    "interrupted without room": (DIGITS, an_interruption_without_room),
    "a cable out for 20 s": (DIGITS, a_cable),
    "Ray's head killed": (DIGITS, the_head),
    "the launcher killed": (DIGITS, the_launcher),
}


@contextmanager
def cluster_on(folder: Path, cpus: Sequence[int] = CPUS) -> Iterator[RayOnHosts]:
    with imitated_hosts(folder, len(cpus)) as hosts:
        cluster = RayOnHosts(hosts, cpus)
        cluster.start(*range(len(cpus)))
        yield cluster


def single(folder: Path, config: str) -> dict[int, str]:
    """What one process gives."""
    folder.mkdir()
    path = folder / "single.yaml"
    path.write_text(config, encoding="utf-8")
    assert launch(path, folder / "run", single=True) == 0
    return final_digests(folder / "run")


def storm(training: Training, hits: int, seed: int) -> str:
    """Hit it again and again, and mend what can be mended."""
    draws, cluster, told = random.Random(seed), training.cluster, list[str]()
    for _ in range(hits):
        time.sleep(draws.uniform(0.5, 2.0))
        what = draws.choice(("stage", "stage", "actor", "actor", "raylet"))
        host = draws.choice([host for host in cluster.homes() if what != "raylet" or host.number])
        if what == "stage":
            took = training.hit(lambda: kill(cluster.stages_on(host)[:1]))  # noqa: B023
        elif what == "actor":
            took = training.hit(lambda: kill(cluster.agents_on(host)))  # noqa: B023
        else:
            before = training.log.count(AGAIN)
            kill(host.processes("/raylet/raylet "))
            until(lambda: not host.processes("/raylet/raylet "), "its end")  # noqa: B023
            cluster.start(host.number)
            took = training.wait_for(AGAIN, before + 1)
        told.append(f"{what} {took:.1f}")
    return ", ".join(told)


@click.command()
@click.option("--only", "names", multiple=True, help="Cases whose names hold this.")
@click.option("--storm", "hits", default=0, help="Instead: hit one run so often.")
@click.option("--seed", default=1, show_default=True, help="Of the storm.")
def main(names: tuple[str, ...], hits: int, seed: int) -> None:
    """Train through every loss; exit status 1 where a run ends otherwise."""
    if why := why_not():
        print(f"skipped: {why}")
        return
    chosen = {k: v for k, v in CASES.items() if not names or any(name in k for name in names)}
    if hits:
        long = DIGITS.replace("epochs: 15", f"epochs: {15 + 8 * hits}")
        chosen = {
            f"a storm of {hits}, seed {seed}": (long, lambda run: storm(run, hits, seed)),
        }
    failed, expected = 0, dict[str, dict[int, str]]()
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as temp:
        for number, (name, (config, act)) in enumerate(chosen.items()):
            folder = Path(temp) / str(number)
            folder.mkdir()
            try:
                if config not in expected:
                    expected[config] = single(folder / "single", config)
                with cluster_on(folder) as cluster:
                    training = Training(cluster, folder / "t", config)
                    if act is not undisturbed:
                        training.wait_for("checkpoint ")
                    said = act(training)
                    training.ends()
                    equal = final_digests(training.run_dir) == expected[config]
            except AssertionError as error:
                equal, said = False, str(error)
            failed += not equal
            print(f"{name}: {'equal' if equal else 'DIFFERENT'}; {said}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen)} cases, of which {failed} ended otherwise")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
