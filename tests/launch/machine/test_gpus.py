"""`--gpus`: what is understood, what is refused and how, and counting without a driver."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from launch.machine.gpus import devices, gpu_memory, gpu_names, visible_gpus
from pipeline.errors import ConfigError, cut


def four() -> int:
    return 4


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        ("0", [0]),
        ("0-3", [0, 1, 2, 3]),
        ("2-2", [2]),
        ("0,2,3", [0, 2, 3]),
        ("3,0-1", [3, 0, 1]),
        (None, [0, 1, 2, 3]),
    ],
)
def test_lists_and_ranges_keep_their_order(spec: str | None, numbers: list[int]) -> None:
    assert devices(spec, four) == tuple(f"cuda:{number}" for number in numbers)


def test_cpu_without_gpus_and_without_asking_for_them() -> None:
    def asked() -> int:
        raise AssertionError("asked")

    assert devices("cpu", asked) == ("cpu",)
    assert devices(None, lambda: 0) == ("cpu",)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("0-x", "'0-x' is neither a number nor a range"),
        ("-1", "'-1' is neither a number nor a range"),
        ("0,", "'' is neither a number nor a range"),
        ("0 1", "'0 1' is neither a number nor a range"),
        ("", "'' is neither a number nor a range"),
        ("CPU", "'CPU' is neither a number nor a range"),
        ("٣", "'٣' is neither a number nor a range"),
        ("9" * 5000, "is neither a number nor a range"),
        ("3-1", "the range 3-1 runs backwards"),
        ("1,1", "device 1 is given twice"),
        ("2,0-3", "device 2 is given twice"),
    ],
)
def test_bad_text_is_named_with_rule_and_example(spec: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devices(spec, four)
    message = str(caught.value)
    assert message.startswith(f"--gpus {cut(spec) or repr(spec)}: ")
    assert reason in message
    assert message.endswith("each device once, as 0-3 or 0,2,5")


@pytest.mark.parametrize(
    ("spec", "visible", "message"),
    [
        ("7", 0, "--gpus 7: this machine has no CUDA device 7 (0 visible); use --gpus cpu"),
        ("1", 1, "--gpus 1: this machine has no CUDA device 1 (1 visible); use --gpus 0"),
        ("2-9", 4, "--gpus 2-9: this machine has no CUDA device 4 (4 visible); use --gpus 0-3"),
        (
            "0-999999",
            4,
            "--gpus 0-999999: this machine has no CUDA device 4 (4 visible); use --gpus 0-3",
        ),
    ],
)
def test_a_gpu_that_is_not_there(spec: str, visible: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devices(spec, lambda: visible)
    assert str(caught.value) == message


class FakeDriver:
    """The calls of libcuda that are used; `status` is what the first two return."""

    def __init__(self, count: int, init_status: int = 0, count_status: int = 0) -> None:
        self._count, self._init_status, self._count_status = count, init_status, count_status

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self._init_status

    def cuDeviceGetCount(self, reference: Any) -> int:
        reference._obj.value = self._count
        return self._count_status

    def cuDeviceGet(self, reference: Any, number: int) -> int:
        reference._obj.value = number
        return 0 if number < 2 else 101

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = f"GPU of {length} letters, {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = 5 << 30
        return 0


def test_the_driver_is_asked() -> None:
    assert visible_gpus({"libcuda.so.1": FakeDriver(3)}.__getitem__) == 3


@pytest.mark.parametrize("driver", [FakeDriver(3, init_status=100), FakeDriver(3, count_status=1)])
def test_a_driver_that_fails_has_no_gpus(driver: FakeDriver) -> None:
    assert visible_gpus(lambda name: driver) == 0


def test_no_driver_no_gpus() -> None:
    def load(name: str) -> FakeDriver:
        raise OSError(f"{name}: cannot open shared object file")

    assert visible_gpus(load) == 0


def test_this_machine_answers() -> None:
    assert len(gpu_names()) == visible_gpus()


def test_gpus_say_their_names() -> None:
    named = ("GPU of 256 letters, 0", "GPU of 256 letters, 1", "unknown")
    assert gpu_names(lambda name: FakeDriver(3)) == named
    assert gpu_names(lambda name: FakeDriver(3, init_status=100)) == ()


def test_gpus_say_their_memory() -> None:
    first, second, silent = gpu_memory(lambda name: FakeDriver(3))
    assert first == second == 5 << 30
    assert silent > 1 << 60


@pytest.mark.parametrize("spec", ["0-1024", "0-999999", ",".join(map(str, range(2000)))])
def test_no_more_devices_than_anybody_has(spec: str) -> None:
    with pytest.raises(ConfigError, match="devices; name at most 1024"):
        devices(spec, lambda: sys.maxsize)
    assert len(devices("0-1023", lambda: sys.maxsize)) == 1024
