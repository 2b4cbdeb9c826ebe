"""What is read from /proc/cpuinfo, and what becomes of it where there is none."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from launch.machine.provenance import processor
from pipeline.device import host as module
from pipeline.device.host import processor_fact

if TYPE_CHECKING:
    from pathlib import Path

CORE = "processor\t: {}\nvendor_id\t: AuthenticAMD\n{}flags\t\t: fpu vme\n\n"
NAMED = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC: x\n"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_FACTS", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def test_a_fact_is_that_of_the_first_core(told: Path) -> None:
    told.write_text(CORE.format(0, NAMED) + CORE.format(1, NAMED))
    assert processor_fact("processor") == "0"
    assert processor_fact("model") == "17"
    assert processor_fact("model name") == "AMD EPYC: x"
    assert processor_fact("bugs") == ""
    assert processor() == "AMD EPYC: x, family 25, model 17"


def test_a_name_may_be_all_there_is(told: Path) -> None:
    told.write_text("model name\t: One of its kind\n")
    assert processor() == "One of its kind"


def test_some_systems_do_not_tell(told: Path) -> None:
    assert processor_fact("vendor_id") == ""
    assert processor() == (platform.processor() or platform.machine())
    told.write_text("")
    assert processor() == (platform.processor() or platform.machine())
