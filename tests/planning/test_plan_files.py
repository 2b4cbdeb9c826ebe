"""Files that people write beside a config: devices imagined, plans of their own, costs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from launch.job import Options
from launch.plan.checks import make_job
from pipeline.errors import ConfigError
from pipeline.network.specs import BlockSpec, LayerSpec
from pipeline.planning.plan import Plan, StagePlan
from pipeline.planning.plan_files import load_costs, load_device, load_plan

if TYPE_CHECKING:
    from pathlib import Path

DEVICE = "{macs_per_s: {fp32: 1.5e14}, memory_bytes: 80e9, link_bytes_per_s: 5e10}\n"


def job_with_plan(folder: Path, text: str, stages: int | None = None) -> Plan:
    """The plan of the tiny network (blocks 0 to 3) under `--plan`."""
    (folder / "plan.yaml").write_text(text, encoding="utf-8")
    given = Options(folder / "tiny.yaml", gpus="cpu", plan=folder / "plan.yaml", stages=stages)
    return make_job(given).plan


@pytest.mark.usefixtures("tiny")
def test_a_plan_written_by_hand_is_obeyed(tmp_path: Path) -> None:
    text = "stages:\n- {blocks: [0, 1], device: cpu}\n- {blocks: [2, 3], device: cpu}\n"
    assert job_with_plan(tmp_path, text) == Plan(
        (StagePlan(0, (0, 1), "cpu"), StagePlan(1, (2, 3), "cpu"))
    )


@pytest.mark.usefixtures("tiny")
def test_a_plan_json_of_a_run_is_a_plan(tmp_path: Path) -> None:
    job = make_job(Options(tmp_path / "tiny.yaml", gpus="cpu", stages=2))
    text = json.dumps({"single": False, **job.plan.tree(job.costs)}, indent=1)
    assert job_with_plan(tmp_path, text) == job.plan


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: [{blocks: [0, 1, 2, 3], device: 'cuda:0'}]", "stage 0 is on cuda:0, which is"),
        ("stages: [{blocks: [0, 2, 1, 3], device: cpu}]", "must be 0 to 3, each once and in order"),
        ("stages: [{blocks: [0, 1, 2], device: cpu}]", "must be 0 to 3"),
        ("stages: [{blocks: [], device: cpu}]", "stages.0.blocks"),
        ("stages: []", "stages: is empty; at least 1 is needed"),
        ("stages: [{blocks: [0, 1, 2, 3], device: cpu, stage: 1}]", "stage 1 stands where stage 0"),
        (
            "stages: [{blocks: [0, 1, 2, 3], devise: cpu}]",
            "devise: unknown key; allowed here: blocks, device, stage",
        ),
        ("[1, 2]", "plan.yaml"),
        (
            "stages: [{blocks: [0, 1, 2], device: cpu}, {blocks: [3], device: cpu}]",
            "stage 1 can't begin with block 3 (output 16→10): it stays with the block before it",
        ),
    ],
)
def test_a_plan_that_can_not_be_obeyed(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_with_plan(tmp_path, text)
    assert said in str(caught.value)
    assert "plan.yaml" in str(caught.value)


@pytest.mark.usefixtures("tiny")
def test_a_plan_has_its_own_number_of_stages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --stages out"):
        job_with_plan(tmp_path, "stages: [{blocks: [0, 1, 2, 3], device: cpu}]", stages=1)


def test_a_device_that_is_imagined(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(DEVICE, encoding="utf-8")
    device = load_device(path)
    assert (device.macs_per_s.fp32, device.memory_bytes, device.link_bytes_per_s) == (
        1.5e14,
        80e9,
        5e10,
    )
    assert (device.link_latency_s, device.overhead_s) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{memory_bytes: 1, link_bytes_per_s: 1}", "macs_per_s: is missing"),
        (DEVICE.replace("1.5e14", "0"), "macs_per_s.fp32: 0 is not allowed"),
        (
            DEVICE.replace("{fp32: 1.5e14}", "1.5e14"),
            "macs_per_s: 1.5e+14 is not allowed: a speed is that of a precision, write "
            "{bf16: 1.5e+14} or {fp32: 1.5e+14}",
        ),
        (DEVICE.replace("fp32", "fp8"), "macs_per_s.fp8: unknown key; allowed here: fp32, bf16"),
        (DEVICE.replace("{fp32: 1.5e14}", "fast"), "macs_per_s: expected keys and values (fp32,"),
        (
            DEVICE.replace("1.5e14", "1e25"),
            "macs_per_s.fp32: 1e+25 is not allowed: input should be less",
        ),
        (DEVICE.replace("5e10", "1e-300"), "link_bytes_per_s: 1e-300 is not allowed"),
        (DEVICE.replace("memory", "memroy"), "memroy_bytes: unknown key; allowed here: macs_per_s"),
        (DEVICE.replace("80e9", "a lot"), "memory_bytes: 'a lot' is not allowed"),
    ],
)
def test_a_device_that_can_not_be(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_device(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_costs_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    one, two = specs_of(1), specs_of(2)
    path.write_text(
        "{network: mlp, device: cpu, batch_size: 8, measured: now, copied_per_s: 1e9,\n"
        f" blocks: [{{block: 0, name: {one[0].name}, forward_s: 1, learn_s: 2}}]}}\n",
        encoding="utf-8",
    )
    assert load_costs(path, one, 8).blocks[0].learn_s == 2
    for specs, batch_size, said in (
        (two, 8, "blocks.1: must be block 1, linear 4→4; found nothing"),
        ([replace(one[0], layer=LayerSpec("linear", 4, 5))], 8, "linear 4→5"),
        (one, 16, "batch_size: 8, but these are the costs of batches of 16"),
    ):
        with pytest.raises(ConfigError, match="remove the file and measure again") as caught:
            load_costs(path, specs, batch_size)
        assert said in str(caught.value)


@pytest.mark.parametrize(("text", "found"), [("", "null"), ("- 1", r"\[1\]")])
def test_a_file_of_costs_that_holds_none(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"costs.yaml: expected keys and values .* found {found}"):
        load_costs(path, specs_of(1), 8)


def specs_of(blocks: int) -> list[BlockSpec]:
    layer = LayerSpec("linear", 4, 4)
    return [BlockSpec(index, (4,), layer, (4,), (4,), 4) for index in range(blocks)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("plan.yaml", "", "expected keys and values (stages, single, costs), found null"),
        ("plan.json", "[1]", "expected keys and values (stages, single, costs), found [1]"),
        (
            "plan.json",
            '{"stages": null}',
            "stages: null is not allowed: input should be a list, as [",
        ),
        (
            "plan.yaml",
            "stages: [1]",
            "stages.0: expected keys and values (blocks, device, stage, member, in_rounds), f",
        ),
        ("plan.json", '{"stages": }', "JSON syntax: Expecting value"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_plan(tmp_path / name, specs_of(1), ["cpu"])
    assert str(caught.value).startswith(f"{tmp_path / name}:")
    assert said in str(caught.value)


def test_json_may_be_indented_by_tabs(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{\n\t"stages": [\n\t\t{"blocks": [0], "device": "cpu"}\n\t]\n}\n', "utf-8")
    assert load_plan(path, specs_of(1), ["cpu"]).stages[0].blocks == (0,)
