"""Runs on a Ray cluster of imitated hosts that lose parts of it: they must end as one process does.

    python tests/chaos/cluster.py          # from the root of a clone, as root; a line for each case
    python tests/chaos/cluster.py --storm 20 --seed 1

Three hosts (`support/hosts.py`), Ray's head on the first, and the launcher there too unless the
case says otherwise. Each case trains, is disturbed in its own way, and must end with the block
files, by SHA-256, that `--single` gives; a storm hits one run again and again. Beside each case
stand the seconds until it was training again.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a script finds `support`
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rather packages than tests of them
from support.cable import Cable
from support.hosts import why_not
from support.processes import digests, final_digests, images_per_s, launch, until
from support.ray_on_hosts import AGAIN, Training, cluster_on, kill
from support.terminal import terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from support.hosts import ImitatedHost
    from support.ray_on_hosts import RayOnHosts
    from support.terminal import Terminal

DIGITS = """\
model: {name: mlp, hidden_layers: 3, hidden: 64, dropout: 0.2}
loss: {name: predsim}
schedule: {epochs: 15, milestones: [8]}
data: {name: digits, batch_size: 32, crop_padding: 1}
runtime: {checkpoint_every_steps: 20, max_restarts: 1000}
"""
SNAPSHOT_STEPS = 20
LONGER = DIGITS.replace("epochs: 15", "epochs: 60")
"""Until second agents are there, one host after the other."""
LONG = DIGITS.replace("epochs: 15", "epochs: 150")
"""That a cluster without its head, which Ray ends after a minute, does not train to its end."""
VGG = """\
model: {name: vgg8b, feat_mult: 0.125, hidden: 128, dropout: 0.1}
loss: {name: predsim, dim_in_decoder: 256}
schedule: {epochs: 2}
data: {name: synthetic, size: 32, train_images: 256, test_images: 64, batch_size: 32}
runtime: {checkpoint_every_steps: 2, max_restarts: 1000}
"""
WIRE = """\
model: {name: vgg, layers: [8, 8], hidden_layers: 0}
loss: {name: pred}
schedule: {epochs: 4}
data: {name: synthetic, size: 32, train_images: 3200, test_images: 64, batch_size: 16}
runtime: {max_in_flight: 1}
"""
"""The wire decides its speed, not the processor, of which the cable here takes its share."""
GIGABIT = Cable(1e9, delay_s=0.01)
HOP_S = 0.56e-3
"""Of 0.5 MiB by sealed stream without a cable (benchmarks/RESULTS.md, links)."""
CPUS = (1, 1, 3)
"""That the hosts lend: with three stages, the last host has room for two more."""
TEAM = f"{DIGITS}parallel: {{members: 3}}\n"
REPLICAS_OF_ONE = "parallel: {replicas: {1: 2}}\n"
REPLICAS = DIGITS + REPLICAS_OF_ONE
THREE_STAGES = ("--stages", "3")


# --- cases --------------------------------------------------------------------------------


def undisturbed(training: Training) -> str:
    training.ends()
    assert "restart " not in training.log, training.all_said
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


def a_host_that_is_back(training: Training) -> str:
    """Its power is back at once; there is no room without it."""
    cluster = training.cluster

    def off_and_on() -> None:
        _turn_off_and_on(cluster, cluster.hosts[2])
        cluster.start(2)

    took = training.hit(off_and_on)
    return f"again after {took:.1f} s"


def room_that_comes(training: Training) -> str:
    """The last host goes, and leaves no room; it joins again later."""
    cluster = training.cluster
    kill(cluster.hosts[2].processes("/raylet/raylet "))
    training.wait_for("no room: ", 2)
    before = training.log.count(AGAIN)
    cluster.start(2)
    took = training.wait_for(AGAIN, before + 1)
    from_start = time.monotonic() - cluster.raylet_at
    assert training.log.count("restart ") == 1, "by the loss alone"
    return (
        f"again {took:.1f} s after the host had joined, {from_start:.1f} s after its raylet began"
    )


def a_cable(training: Training) -> str:
    host = training.cluster.hosts[1]
    host.cut()
    time.sleep(20.0)
    host.join()
    fed = training.log.count("checkpoint step-")
    took = training.wait_for("checkpoint step-", fed + 1)
    assert "restart " not in training.log, training.all_said
    return f"healed {took:.1f} s after it was back"


def a_slow_wire(training: Training) -> str:
    """Beside what `--dry-run` forecasts from the speed of one process and what the wire does."""
    training.ends()
    alone = images_per_s(training.folder.parent / "single" / "run")
    network = {
        "network_bytes_per_s": GIGABIT.bits_per_s / 8,
        "network_latency_s": _round_trip_s(training.cluster) / 2 + HOP_S,
    }
    some = 1e12
    macs_per_s = some * alone / _forecast(training, some, network, single=True)
    forecast = _forecast(training, macs_per_s, network)
    found = images_per_s(training.run_dir)
    return (
        f"{found:,.0f} images/s, forecast {forecast:,.0f} ({forecast / found - 1:+.1%}); "
        f"one process does {alone:,.0f}"
    )


def _round_trip_s(cluster: RayOnHosts) -> float:
    """Of one byte from the first host to the second and back, by a plain socket."""
    answers = (
        "import socket\n"
        "one, _ = socket.create_server(('0.0.0.0', 5001)).accept()\n"
        "while said := one.recv(1): one.sendall(said)"
    )
    asks = (
        "import socket, statistics, sys, time\n"
        "one, took = socket.create_connection((sys.argv[1], 5001)), []\n"
        "for _ in range(30):\n"
        "    began = time.monotonic(); one.sendall(b'x'); one.recv(1)\n"
        "    took.append(time.monotonic() - began)\n"
        "print(statistics.median(took))"
    )
    first, second = cluster.hosts[:2]
    with second.start(sys.executable, "-c", answers) as answering:
        listens = ("sh", "-c", "grep -c :1389 /proc/net/tcp || true")
        until(lambda: int(second.run(*listens)), "somebody who answers")
        said = first.run(sys.executable, "-c", asks, second.address)
        answering.wait(10.0)
    return float(said)


def _forecast(
    training: Training, macs_per_s: float, network: dict[str, float], *, single: bool = False
) -> float:
    """Images/s on devices of that speed."""
    device = {
        "macs_per_s": {"fp32": macs_per_s},
        "memory_bytes": 1e9,
        "link_bytes_per_s": 1e10,
        **network,
    }
    path = training.folder / "device.json"
    path.write_text(json.dumps(device), encoding="utf-8")
    said = training.dry_run(f"--assume={path}", single=single)
    found = re.search(r"Predicted .*: ([\d,]+) images/s", said)
    assert found, said
    return float(found[1].replace(",", ""))


def an_interruption_without_room(training: Training) -> str:
    kill(training.cluster.hosts[2].processes("/raylet/raylet "))
    training.wait_for("no room: ")
    assert training.terminal, "on which Ctrl-C is pressed"
    training.terminal.press("\x03")
    began = time.monotonic()
    training.ends(130, 30.0)
    took = time.monotonic() - began
    assert "a checkpoint was written" in training.said, training.all_said
    _is_as_before(training.terminal)
    training.cluster.start(2)
    training.resume()
    return f"exit status 130 after {took:.1f} s with a checkpoint, the terminal as before, resumed"


def the_head(training: Training) -> str:
    kill(training.cluster.hosts[0].processes("gcs_server"))
    began = time.monotonic()
    training.ends(1, 120.0)
    took = time.monotonic() - began
    assert "--resume" in training.said, training.all_said
    assert training.terminal, "which is left as it was"
    _is_as_before(training.terminal)
    newest, due = max(digests(training.run_dir)), _newest_due(training)
    assert newest >= due, f"step {newest} is on the disk, {due} had been reached"
    _left_after(training, 30.0)
    training.cluster.start_anew()
    training.resume()
    return f"exit status 1 after {took:.0f} s, step {newest} saved, the terminal as before, resumed"


def _newest_due(training: Training) -> int:
    """The last step of which a snapshot had to be taken before an epoch ended that was counted."""
    done = [int(step) for step in re.findall(r"epoch \d+/\d+  step (\d+)", training.log)]
    return max(done, default=0) // SNAPSHOT_STEPS * SNAPSHOT_STEPS


def _is_as_before(screen: Terminal) -> None:
    until(lambda: not screen.changes(), f"a terminal as before: {screen.changes()}", 10.0)
    assert "\x1b[?25l" in screen.text, "the live view was not there"


def the_launcher(training: Training) -> str:
    _kill_launcher(training)
    took = _left_after(training, 30.0)
    training.resume()
    return f"nothing left after {took:.1f} s, resumed"


def the_launcher_behind_a_cut_cable(training: Training) -> str:
    training.host.cut()
    _kill_launcher(training)
    took = _left_after(training, 180.0)
    training.host.join()
    training.cluster.start_anew()
    training.resume()
    return f"nothing left after {took:.1f} s, resumed"


def _kill_launcher(training: Training) -> None:
    kill(training.host.processes("pipeline-launch"))
    training.process.wait(10.0)


def _left_after(training: Training, deadline_s: float) -> float:
    """Seconds until no host has anything of this run any more."""
    began = time.monotonic()
    while (left := training.left()) and time.monotonic() - began < deadline_s:
        time.sleep(0.1)
    assert not left, f"after {deadline_s} s there are still {left}"
    return time.monotonic() - began


@dataclass(frozen=True)
class Case:
    """`words`: of the command; `cable`: of all hosts but the first; `cpus`: that the hosts lend."""

    act: Callable[[Training], str]
    config: str = DIGITS
    words: tuple[str, ...] = THREE_STAGES
    cable: Cable | None = None
    cpus: tuple[int, ...] = CPUS
    launcher_on: int = 0
    on_terminal: bool = False


CASES = {
    "digits, undisturbed": Case(undisturbed),
    "vgg8b × 0.125, undisturbed": Case(undisturbed, VGG),
    "a team of three": Case(undisturbed, TEAM, ()),
    "replicas of a stage": Case(undisturbed, REPLICAS),
    "a wire of 1 Gbit/s and 10 ms": Case(
        a_slow_wire, WIRE, ("--stages", "2"), GIGABIT, cpus=(1, 1, 0)
    ),
    "a wire that loses 1 %": Case(undisturbed, cable=Cable(1e9, delay_s=0.01, loss=0.01)),
    "a stage killed": Case(a_stage),
    "a member of a team killed": Case(a_stage, TEAM, ()),
    "a replica killed": Case(a_stage, REPLICAS),
    "an actor killed": Case(an_actor, LONGER),
    "a raylet killed": Case(a_raylet, LONGER),
    "a raylet killed, with a replica": Case(a_raylet, LONGER + REPLICAS_OF_ONE),
    "a host turned off": Case(a_host),
    "a host turned off and on": Case(a_host_that_is_back),
    "no room until a host joins": Case(room_that_comes),
    "interrupted without room": Case(an_interruption_without_room, on_terminal=True),
    "a cable out for 20 s": Case(a_cable),
    "Ray's head killed": Case(the_head, LONG, cpus=(0, 1, 2), on_terminal=True),
    "Ray's head killed on a host with a stage": Case(the_head, LONG, on_terminal=True),
    "the launcher killed": Case(the_launcher),
    "the launcher killed, its host cut off with the head": Case(the_launcher_behind_a_cut_cable),
    "the launcher killed, its host cut off from the head": Case(
        the_launcher_behind_a_cut_cable, launcher_on=1
    ),
}


def single(folder: Path, config: str) -> dict[int, str]:
    """What one process gives."""
    folder.mkdir()
    path = folder / "single.yaml"
    path.write_text(config, encoding="utf-8")
    assert launch(path, folder / "run", single=True) == 0
    return final_digests(folder / "run")


def storm(training: Training, hits: int, seed: int) -> str:
    """Hit it again and again; what is lost of the cluster is there again soon."""
    draws, cluster, told = random.Random(seed), training.cluster, list[str]()
    for number in range(1, hits + 1):
        time.sleep(draws.uniform(0.5, 2.0))
        what = draws.choice(("stage", "stage", "actor", "actor", "raylet", "host"))
        with_stages = cluster.homes()
        if what in ("raylet", "host"):  # the first host has the head and the launcher
            with_stages = [host for host in with_stages if host.number]
        host = draws.choice(with_stages)
        with ThreadPoolExecutor(1) as meanwhile:  # it may train again before a host has joined
            mended: list[Future[None]] = []

            def strike(what: str = what, host: ImitatedHost = host) -> None:
                _BLOWS[what](cluster, host)
                if what in ("raylet", "host"):
                    mended.append(meanwhile.submit(cluster.start, host.number))  # noqa: B023

            took = training.hit(strike)
            for each in mended:
                each.result()
        told.append(f"{what} of {host.name} {took:.1f}")
        print(f"{number}: {told[-1]}", file=sys.stderr, flush=True)
    return ", ".join(told)


def _kill_stage(cluster: RayOnHosts, host: ImitatedHost) -> None:
    kill(cluster.stages_on(host)[:1])


def _kill_agents(cluster: RayOnHosts, host: ImitatedHost) -> None:
    kill(cluster.agents_on(host))


def _kill_raylet(cluster: RayOnHosts, host: ImitatedHost) -> None:
    kill(host.processes("/raylet/raylet "))
    until(lambda: not host.processes("/raylet/raylet "), "its end")


def _turn_off_and_on(cluster: RayOnHosts, host: ImitatedHost) -> None:
    host.turn_off()
    host.turn_on()


_BLOWS = {
    "stage": _kill_stage,
    "actor": _kill_agents,
    "raylet": _kill_raylet,
    "host": _turn_off_and_on,
}


def carry_out(case: Case, folder: Path) -> tuple[dict[int, str], str]:
    """SHA-256 of what was learned, and what there is to say of it."""
    with ExitStack() as stack:
        cluster = stack.enter_context(cluster_on(folder, case.cpus, case.cable))
        screen = stack.enter_context(terminal()) if case.on_terminal else None
        where = (case.launcher_on, screen)
        training = Training(cluster, folder / "t", case.config, case.words, *where)
        if case.act is not undisturbed:
            training.wait_for("checkpoint step-")
        said = case.act(training)
        training.ends()
        return final_digests(training.run_dir), said


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
        act = partial(storm, hits=hits, seed=seed)
        chosen = {f"a storm of {hits}, seed {seed}": Case(act, long)}
    failed, expected = 0, dict[str, dict[int, str]]()
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as temp:
        for number, (name, case) in enumerate(chosen.items()):
            folder = Path(temp) / str(number)
            folder.mkdir()
            try:
                if case.config not in expected:
                    expected[case.config] = single(folder / "single", case.config)
                found, said = carry_out(case, folder)
                equal = found == expected[case.config]
            except AssertionError as error:
                equal, said = False, str(error)
            failed += not equal
            print(f"{name}: {'equal' if equal else 'DIFFERENT'}; {said}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen)} cases, of which {failed} ended otherwise")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
