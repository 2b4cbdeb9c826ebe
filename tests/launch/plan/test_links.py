"""What a plan says of its links: carrier, reason, time."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from launch.job import Options
from launch.plan.checks import make_job
from launch.plan.links import planned_links, print_links
from pipeline.planning.hosts import Host

if TYPE_CHECKING:
    from pathlib import Path

    from launch.job import Job

CONFIG = """\
model: {name: mlp, hidden_layers: 3, hidden: 1024}
loss: {name: predsim}
data: {name: digits, batch_size: 100}
"""
DEVICE = (
    "{macs_per_s: {fp32: 1.0e+14}, memory_bytes: 8.0e+10, link_bytes_per_s: 1.0e+10, "
    "link_latency_s: 1.0e-5, network_bytes_per_s: 1.0e+8, network_latency_s: 0.01}\n"
)
SENT = 100 * (1024 * 4 + 8)


def job_on(
    folder: Path, *devices: str, transport: str = "tcp", known: bool = True, single: bool = False
) -> Job:
    """Of as many stages as there are devices."""
    (folder / "mlp.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "device.yaml").write_text(DEVICE, encoding="utf-8")
    job = make_job(
        Options(
            folder / "mlp.yaml",
            stages=len(devices),
            gpus="0-7",
            single=single,
            dry_run=True,
            assume=folder / "device.yaml" if known else None,
            overrides=(f"runtime.transport={transport}",),
        )
    )
    placed = zip(job.plan.stages, devices, strict=True)
    stages = tuple(replace(stage, device=device) for stage, device in placed)
    return replace(job, plan=replace(job.plan, stages=stages))


def test_every_link_has_a_carrier_and_its_time(tmp_path: Path) -> None:
    links = planned_links(job_on(tmp_path, "a/cuda:0", "a/cuda:1", "b/cuda:0"))
    assert [link.name for link in links] == ["coordinator → 0", "0 → 1", "1 → 2"]
    assert [link.kind for link in links] == ["stream", "device", "stream"]
    assert [link.nbytes for link in links] == [100 * (64 + 8), SENT, SENT]
    times = [7200 / 1e8 + 0.01, SENT / 1e10 + 1e-5, SENT / 1e8 + 0.01]
    assert [link.seconds for link in links] == pytest.approx(times)


def test_the_launcher_is_on_a_host_too(tmp_path: Path) -> None:
    """Where that of stage 0 is another, examples cross a network, which the forecast counts."""
    job = job_on(tmp_path, "a/cuda:0", "a/cuda:1")
    found = {}
    for host in ("a", "b"):
        plan = replace(job.plan, fed_from=host)
        link = planned_links(replace(job, plan=plan))[0]
        assert job.known_speed is not None
        speed = job.known_speed.timing.prospect(plan, max_in_flight=2).images_per_s
        found[host] = (link.kind, speed)
    assert [kind for kind, _ in found.values()] == ["shared", "stream"]
    # two slots, each back after the wire, 10 ms there, the stage's work, and 10 ms back
    work_s = job.known_speed.timing.works(job.plan)[0].total_s
    assert found["b"][1] == pytest.approx(100 * 2 / (7200 / 1e8 + 0.02 + work_s))
    assert found["a"][1] > 10 * found["b"][1]


@pytest.mark.parametrize(
    ("launcher", "host", "kind"),
    [("10.0.0.1", "a", "shared"), ("10.0.0.2", "b", "stream"), ("10.0.0.3", "10.0.0.3", "stream")],
    ids=["with stages", "without", "lends nothing"],
)
def test_the_host_of_the_launcher_is_known_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, host: str, kind: str
) -> None:
    monkeypatch.setattr("launch.plan.checks._check_system", lambda *given: None)  # of this machine
    (tmp_path / "mlp.yaml").write_text(CONFIG, encoding="utf-8")
    hosts = Host("a", "10.0.0.1", ("cpu",), 2), Host("b", "10.0.0.2", ("cpu",), 2)
    cluster: Any = SimpleNamespace(address=launcher, hosts=lambda wanted: hosts)
    job = make_job(Options(tmp_path / "mlp.yaml", stages=2, engine="ray"), cluster)
    assert job.plan.fed_from == host
    assert planned_links(job)[0].kind == kind


@pytest.mark.parametrize(
    ("devices", "transport", "kind", "why"),
    [
        (("cpu", "cpu"), "ipc", "shared", "both ends are on one machine"),
        (("cuda:0", "cuda:0"), "ipc", "device", "both ends are on CUDA devices of one machine"),
        (("cuda:0", "cpu"), "tcp", "shared", "both ends are on one machine, and one of them is on"),
        (("a/cpu", "b/cpu"), "tcp", "stream", "between hosts no memory can be shared"),
        (("a/cpu", "b/cpu"), "tcp-plain", "plain-stream", "between hosts, and runtime.transport t"),
    ],
)
def test_the_carrier_follows_from_where_the_ends_are(
    tmp_path: Path, devices: tuple[str, str], transport: str, kind: str, why: str
) -> None:
    link = planned_links(job_on(tmp_path, *devices, transport=transport))[1]
    assert link.kind == kind
    assert link.why.startswith(why)


def test_without_cryptography_frames_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.plan.links.why_no_seal", lambda: "there is no cryptography")
    links = planned_links(job_on(tmp_path, "cpu", "b/cpu"))
    assert [link.kind for link in links] == ["shared", "frames"]
    assert links[1].why == "between hosts, without a sealed stream: there is no cryptography"


def test_what_is_printed_names_links_and_what_is_not_known(tmp_path: Path) -> None:
    def printed(job: Job) -> list[str]:
        stream = io.StringIO()
        print_links(job, Console(file=stream, width=100))
        return [line for line in stream.getvalue().splitlines() if line.strip()]

    lines = printed(job_on(tmp_path, "a/cuda:0", "a/cuda:0", "b/cuda:0", known=False))
    assert lines[0] == "Links, with what a batch takes on its way over each:"
    assert lines[2].split() == [
        "coordinator",
        "→",
        "0",
        "a",
        "sealed",
        "stream",
        "7.03",
        "KiB",
        "–",
    ]
    assert "coordinator → 0, 1 → 2: between hosts no memory can be shared." in lines
    assert lines[-2].startswith("–: how fast such links are is known once --measure has found it")
    known = printed(job_on(tmp_path, "a/cuda:0", "b/cuda:0"))
    assert known[3].split()[-4:] == ["401", "KiB", "14", "ms"]
    assert not any(line.startswith("–") for line in known)
    assert printed(job_on(tmp_path, "cuda:0", single=True)) == []


def test_the_network_is_counted_in_the_prediction(tmp_path: Path) -> None:
    beside, apart = (
        job_on(tmp_path, *hosts) for hosts in (("cuda:0", "cuda:1"), ("cuda:0", "b/cuda:0"))
    )
    assert beside.known_speed
    works = [beside.known_speed.timing.works(job.plan)[0] for job in (beside, apart)]
    assert works[0].link_s == pytest.approx(100 * 4096 / 1e10)
    assert works[1].link_s == pytest.approx(100 * 4096 / 1e8)
    assert works[1].latency_s == works[1].credit_s == 0.01
