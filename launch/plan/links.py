"""What `--dry-run` says of each link: what will carry tensors over it, why, and in what time."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from launch.display.format import size_text
from launch.plan.dry_run import plain_table, say
from pipeline.protocol.addresses import CARRIERS
from pipeline.transport.seal import why_no_seal

if TYPE_CHECKING:
    from rich.console import Console

    from launch.job import Job
    from pipeline.planning.plan import StagePlan
    from pipeline.planning.prediction import Links

_NOT_KNOWN = (
    "–: how fast such links are is known once --measure has found it here, or --assume FILE says "
    "so (link_bytes_per_s; network_bytes_per_s between hosts)."
)


@dataclass(frozen=True, slots=True)
class PlannedLink:
    """The link to a stage. `kind`: of `CARRIERS`; `seconds`: for a batch, None where the carrier's
    speed is not known."""

    stage: int
    kind: str
    why: str
    nbytes: int
    seconds: float | None = None

    @property
    def name(self) -> str:
        """As the run calls it."""
        return f"{self.stage - 1} → {self.stage}" if self.stage else "coordinator → 0"


def print_links(job: Job, console: Console) -> None:
    """A row for each link that a batch crosses."""
    links = planned_links(job)
    if not links:
        return
    say(console, "Links, with what a batch takes on its way over each:")
    console.print()
    table = plain_table(("link", "carrier"), ("bytes", "time"))
    for link in links:
        time = "–" if link.seconds is None else f"{1e3 * link.seconds:.2g} ms"
        table.add_row(link.name, CARRIERS[link.kind], size_text(link.nbytes), time)
    console.print(table)
    for why in dict.fromkeys(link.why for link in links):
        names = ", ".join(link.name for link in links if link.why == why)
        say(console, f"{names}: {why}.")
    if any(link.seconds is None for link in links):
        say(console, _NOT_KNOWN)


def planned_links(job: Job) -> list[PlannedLink]:
    """In order; none of a run in one process. A run says of each link where it turns out otherwise,
    as in containers that can't reach each other's memory."""
    if job.in_one_process:
        return []
    facts, stages = job.facts, job.plan.stages
    sizes = job.plan.received_bytes(
        job.costs,
        job.config.data.batch_size,
        facts.example_bytes,
        facts.target_bytes,
    )
    speeds = job.known_speed.timing.links if job.known_speed else None
    found = []
    for before, stage, nbytes in zip([None, *stages], stages, sizes, strict=False):
        sender = before.host if before else job.plan.fed_from
        kind, why = _carrier(before, stage, sender, job.config.runtime.transport)
        seconds = None if speeds is None else _seconds(kind, nbytes, speeds)
        found.append(PlannedLink(stage.stage, kind, why, nbytes, seconds))
    return found


def _carrier(
    before: StagePlan | None, stage: StagePlan, sender: str, transport: str
) -> tuple[str, str]:
    """What will carry tensors to a stage, and why. `before`: None for the coordinator; `sender`:
    the host of either."""
    if stage.host != sender:
        if transport == "tcp-plain":
            return "plain-stream", "between hosts, and runtime.transport tcp-plain seals nothing"
        if why := why_no_seal():
            return "frames", f"between hosts, without a sealed stream: {why}"
        return "stream", "between hosts no memory can be shared"
    devices = [one.device.rpartition("/")[2] for one in (before, stage) if one]
    if before and all(device.startswith("cuda") for device in devices):
        return "device", "both ends are on CUDA devices of one machine"
    return "shared", "both ends are on one machine" + (
        ", and one of them is on no CUDA device" if any(d != "cpu" for d in devices) else ""
    )


def _seconds(kind: str, nbytes: int, speeds: Links) -> float | None:
    latency_s = 0.0
    if kind == "shared":
        per_s = speeds.copied_per_s
    elif kind == "device":
        per_s, latency_s = speeds.sent_per_s, speeds.latency_s
    else:
        per_s, latency_s = speeds.network_per_s, speeds.network_latency_s
    return nbytes / per_s + latency_s if isfinite(per_s) else None
