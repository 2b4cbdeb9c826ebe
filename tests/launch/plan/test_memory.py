"""What a machine's memory can't hold is refused before anything starts; what may not is told."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from launch.job import Options
from launch.machine.gpus import devices
from launch.plan import memory
from launch.plan.checks import make_job
from launch.plan.known_speed import cautions
from launch.plan.memory import host_memory
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from launch.job import Job

GIB = 1 << 30
SYNTHETIC = """\
model: {name: vgg, layers: [8, M], hidden_layers: 1, hidden: 16}
loss: {name: pred, dim_in_decoder: 64}
data: {name: synthetic, size: 32, train_images: 64, test_images: 16, batch_size: 16}
"""
FOLDER = SYNTHETIC.replace("name: synthetic", "name: imagefolder, root: ROOT").replace(
    "train_images: 64, test_images: 16, ", ""
)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A machine with 16 GiB and a GPU of 8."""
    has = {"cpu": 16 * GIB, "cuda:0": 8 * GIB}
    monkeypatch.setattr(memory, "memory_of_places", lambda places: has)
    monkeypatch.setattr("launch.plan.division.devices", partial(devices, count=lambda: 1))
    return has


def job(
    folder: Path, *overrides: str, text: str = SYNTHETIC, gpus: str = "cpu", **more: bool
) -> Job:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return make_job(Options(path, gpus=gpus, overrides=overrides, **more))


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(
    ("overrides", "gpus", "largest", "cure"),
    [
        (("data.size=60000",), "cpu", "for the images", "data.size"),
        (("data.train_images=100000000",), "cpu", "for the images", "fewer images"),
        (("data.test_images=100000000",), "0", "cpu has 16 GiB and needs", "fewer images"),
        (("model.hidden=1000000", "data.size=256"), "cpu", "for weights", "model.hidden"),
        (("model.hidden=1000000", "data.size=64"), "0", "cuda:0 has 8 GiB", "model.hidden"),
        (
            ("model.layers=[9000]", "data.size=512", "data.batch_size=64"),
            "cpu",
            "for what block 0 (conv 3→9000) is given and makes of a batch of 64 images",
            "a smaller data.batch_size",
        ),
        (
            ("model.layers=[9000, M4]", "data.size=512", "runtime.precision=bf16"),
            "0",
            "and makes of a batch of 16 images",
            "a smaller data.batch_size",
        ),
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_what_can_not_fit_is_refused_with_numbers_and_cure(
    tmp_path: Path, overrides: tuple[str, ...], gpus: str, largest: str, cure: str, single: bool
) -> None:
    with pytest.raises(ConfigError) as caught:
        job(tmp_path, *overrides, gpus=gpus, single=single)
    said = str(caught.value)
    assert said.startswith("memory: ")
    assert largest in said
    assert cure in said.rpartition("; use ")[2]
    assert "\n" not in said
    planned = job(tmp_path, *overrides, gpus=gpus, single=single, dry_run=True)
    assert f"{said}: here it could not be trained" in cautions(planned)


@pytest.mark.usefixtures("places")
def test_what_would_be_measured_is_refused_first(tmp_path: Path) -> None:
    for dry in (False, True):
        with pytest.raises(ConfigError, match="--measure: memory: cpu has 16 GiB and needs"):
            job(tmp_path, "data.size=60000", measure=True, dry_run=dry)


@pytest.mark.usefixtures("places")
def test_images_of_a_folder_are_not_kept_but_a_batch_is(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(10):
                (folder / f"{number}.png").write_bytes(b"")
    text = FOLDER.replace("ROOT", str(tmp_path))
    assert job(tmp_path, "data.size=2000", text=text).too_large == ""
    with pytest.raises(ConfigError, match="is given and makes of a batch of 16 images"):
        job(tmp_path, "data.size=60000", text=text)


def test_what_may_fit_is_told_and_what_fits_is_not(tmp_path: Path, places: dict[str, int]) -> None:
    assert cautions(job(tmp_path)) == []
    places["cpu"] = 1_200_000
    (said,) = cautions(job(tmp_path))
    assert said.startswith("memory: training is estimated to need ")
    assert "on cpu, which has 1.14 MiB: it may end for lack of memory" in said


def test_other_machines_are_not_compared_with_this_one(
    tmp_path: Path, places: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    del places["cuda:0"]
    monkeypatch.setattr("launch.plan.division.devices", devices)
    wide = ("model.hidden=1000000", "data.size=256")
    assert cautions(job(tmp_path, *wide, gpus="0-3", dry_run=True)) == []
    device = tmp_path / "device.yaml"
    device.write_text("{macs_per_s: {fp32: 1e14}, memory_bytes: 1e9, link_bytes_per_s: 1e10}")
    path = tmp_path / "run.yaml"
    imagined = make_job(Options(path, gpus="cpu", dry_run=True, assume=device, overrides=wide))
    assert cautions(imagined) == []


def test_memory_of_the_host_is_what_its_control_group_allows(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  1 kB\nSwapTotal:   1024 kB\n", encoding="utf-8")
    whole = host_memory(tmp_path, info)
    assert whole == host_memory(tmp_path, tmp_path / "none") + (1 << 20)
    for text, limit in (("max", whole), (str(1 << 62), whole)):
        (tmp_path / "memory.max").write_text(f"{text}\n", encoding="utf-8")
        assert host_memory(tmp_path, info) == limit
    (tmp_path / "memory.max").write_text("4096\n", encoding="utf-8")
    (tmp_path / "memory.swap.max").write_text("1024\n", encoding="utf-8")
    assert host_memory(tmp_path, info) == 5120
    (tmp_path / "memory.swap.max").write_text("0\n", encoding="utf-8")
    assert host_memory(tmp_path, info) == 4096


@pytest.mark.parametrize(
    ("places", "asked"),
    [(["cpu"], False), ([], False), (["cuda:0"], True), (["cpu", "cuda:1"], True)],
)
def test_a_driver_is_asked_only_for_its_own_devices(
    monkeypatch: pytest.MonkeyPatch, places: list[str], asked: bool
) -> None:
    monkeypatch.setattr(memory, "gpu_memory", lambda: (GIB, 2 * GIB))
    expected = {"cpu", "cuda:0", "cuda:1"} if asked else {"cpu"}
    assert memory.memory_of_places(places).keys() == expected
