"""What is known of speed before training: measured and kept, or assumed; and what is printed."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from rich.console import Console

from launch.costfile import cost_file
from launch.forecast import print_forecast
from launch.job import Job, Options, make_job
from pipeline.errors import ConfigError
from pipeline.timing import BlockTimes, Links, Timing

if TYPE_CHECKING:
    from pathlib import Path

VGG19 = """\
model: {name: vgg19}
loss: {name: predsim}
data: {name: cifar10, download: false}
"""
DEVICE = "{macs_per_s: 1.5e14, memory_bytes: %s, link_bytes_per_s: %s, link_latency_s: 1e-5}\n"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def imagined(folder: Path, memory: str = "80e9", link: str = "1e15", gpus: str = "0-7") -> Job:
    (folder / "vgg19.yaml").write_text(VGG19, encoding="utf-8")
    (folder / "device.yaml").write_text(DEVICE % (memory, link), encoding="utf-8")
    return make_job(
        Options(folder / "vgg19.yaml", gpus=gpus, dry_run=True, assume=folder / "device.yaml")
    )


def printed(job: Job) -> str:
    assert job.foresight
    stream = io.StringIO()
    print_forecast(job, job.foresight, Console(file=stream, width=200))
    return stream.getvalue()


def test_speed_grows_until_one_layer_is_all_that_its_device_does(tmp_path: Path) -> None:
    """17 hidden layers; the slowest five have 189 of 2,274 million multiply-adds each: 8.3 %."""
    text = printed(imagined(tmp_path))
    rows = [line.split() for line in text.splitlines() if line.strip()[:2].strip().isdigit()]
    speedups = {int(row[0]): float(row[3].rstrip("×")) for row in rows}
    assert list(speedups) == [1, 2, 4, 8, 16, 32, 64]
    assert speedups[2] == pytest.approx(2, abs=0.02)
    assert speedups[64] == speedups[32]
    assert speedups[64] == pytest.approx(2274 / 189, rel=0.01)
    assert "More than 16 devices bring nothing: stage 1 (conv 64→64) alone is 8 % of" in text


def test_slow_links_are_named_as_the_reason(tmp_path: Path) -> None:
    text = printed(imagined(tmp_path, link="5e9"))
    assert "batches wait for links: from stage 0 to the next one takes" in text


def test_a_device_that_is_too_small_is_named(tmp_path: Path) -> None:
    text = printed(imagined(tmp_path, memory="1e8", gpus="0-3"))
    assert re.search(r"cuda:0 needs \d+ MiB and has 95\.4 MiB: use more devices", text)


def test_assumptions_are_for_dry_runs(tmp_path: Path) -> None:
    imagined(tmp_path)
    given = Options(tmp_path / "vgg19.yaml", gpus="cpu", assume=tmp_path / "device.yaml")
    with pytest.raises(ConfigError, match="--assume imagines a device: it goes with --dry-run"):
        make_job(given)


@pytest.mark.usefixtures("tiny", "torch_settings")
def test_what_was_measured_is_kept_and_used_and_may_be_edited(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    assert make_job(Options(config, gpus="cpu", stages=2)).foresight is None
    measured = make_job(Options(config, gpus="cpu", stages=2, measure=True))
    assert measured.foresight
    path = cost_file(measured.config, "cpu")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [block["name"] for block in tree["blocks"]] == [
        "linear 64→16",
        "linear 16→16",
        "linear 16→16",
        "output 16→10",
    ]
    assert 0 < tree["crowded_speed"] <= 1
    assert measured.foresight.timing.crowded_speed == tree["crowded_speed"]
    assert all(block["learn_s"] > 0 for block in tree["blocks"] if block["block"] != 2)
    tree["blocks"][0]["learn_s"] = 1000.0
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    edited = make_job(Options(config, gpus="cpu", stages=2))
    assert [stage.blocks for stage in edited.plan.stages] == [(0,), (1, 2, 3)]
    assert edited.foresight
    assert edited.foresight.timing.loads[0] > 1e12


@pytest.mark.usefixtures("tiny")
def test_costs_are_kept_apart_by_what_they_depend_on(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    jobs = [
        make_job(Options(config, gpus="cpu", overrides=overrides))
        for overrides in (
            (),
            ("runtime.seed=7",),
            ("data.batch_size=8",),
            ("runtime.threads_per_stage=2",),
            ("model.hidden=17",),
            ("runtime.cuda_graphs=false",),
        )
    ]
    paths = [cost_file(job.config, "cpu") for job in jobs]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 5
    assert cost_file(jobs[0].config, "cuda:0") != paths[0]


@pytest.mark.usefixtures("tiny")
def test_stages_are_timed_by_hand(tmp_path: Path) -> None:
    """Blocks of 1 + 2 s, 3 + 4 s, 5 + 6 s, 0 + 7 s; 16 numbers for each of 32 images are sent,
    2,048 bytes."""
    job = make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", stages=2))
    times = tuple(BlockTimes(n, *pair) for n, pair in enumerate([(1, 2), (3, 4), (5, 6), (0, 7)]))
    timing = Timing(times, job.costs, 32, Links(copied_per_s=1024.0), capacity=2.0)
    first, last = timing.works(job.plan)
    assert [stage.blocks for stage in job.plan.stages] == [(0,), (1, 2, 3)]
    assert (first.forward_s, first.send_s, first.learn_s, first.travel_s) == (1, 2.0, 2, 0.0)
    assert (last.forward_s, last.send_s, last.learn_s) == (3 + 4 + 5 + 6 + 0, 0.0, 7)
    found = timing.prospect(job.plan, max_in_flight=2)
    assert found.images_per_s == pytest.approx(32 / 25)
    assert found.stage_busy == pytest.approx((5 / 25, 1.0))
    assert found.device_busy == {"cpu": pytest.approx((5 + 25) / 25 / 2)}
