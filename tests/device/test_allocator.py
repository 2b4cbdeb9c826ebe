"""Large tensors are found again where the last one of that size was."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from pipeline.device.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{prepare}
print([faults() for _ in range(40)][-1])
"""
PAGES = 48_000_000 // 4096


def faults_of_the_fortieth_tensor(prepare: str) -> int:
    script = SCRIPT.format(prepare=prepare)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_large_tensor_soon_costs_no_new_pages() -> None:
    assert faults_of_the_fortieth_tensor("assert keep_freed_memory()") < PAGES // 100
