"""What is read from /proc/cpuinfo; large tensors are found again where the last one was."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from launch.machine.provenance import processor
from pipeline.device import host
from pipeline.device.host import processor_fact

if TYPE_CHECKING:
    from pathlib import Path

CORE = "processor\t: {}\nvendor_id\t: AuthenticAMD\n{}flags\t\t: fpu vme\n\n"
NAMED = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC: x\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /proc/cpuinfo; to begin with there is none."""
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def test_a_fact_is_that_of_the_first_core(cpuinfo: Path) -> None:
    cpuinfo.write_text(CORE.format(0, NAMED) + CORE.format(1, NAMED))
    assert processor_fact("processor") == "0"
    assert processor_fact("model") == "17"
    assert processor_fact("model name") == "AMD EPYC: x"
    assert processor_fact("bugs") == ""
    assert processor() == "AMD EPYC: x, family 25, model 17"


def test_a_name_may_be_all_there_is(cpuinfo: Path) -> None:
    cpuinfo.write_text("model name\t: One of its kind\n")
    assert processor() == "One of its kind"


def test_some_systems_do_not_tell(cpuinfo: Path) -> None:
    assert processor_fact("vendor_id") == ""
    assert processor() == (platform.processor() or platform.machine())
    cpuinfo.write_text("")
    assert processor() == (platform.processor() or platform.machine())


FAULTS = """
import resource, torch
from pipeline.device.host import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
print([faults() for _ in range(12)][-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_large_tensor_soon_costs_no_new_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    pages = 48_000_000 // 4096
    assert int(done.stdout) < pages // 100
