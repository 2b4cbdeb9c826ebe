"""`--gpus SPEC` -> device names, without importing torch.

    SPEC is `cpu`, or numbers and ranges parted by commas: `0-3`, `0,2,5`, `0-1,4`

The order is kept: the first device gets the first stage.
"""

from __future__ import annotations

import ctypes
import re
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipeline.errors import GPUS, ConfigError, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PART = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
_SUCCESS = 0
"""CUDA_SUCCESS of the driver interface."""
_LONGEST_NAME = 256
_MOST_DEVICES = 1024


def visible_gpus(load: Callable[[str], Any] = ctypes.CDLL) -> int:
    """How many CUDA devices this process may use; 0 without a driver.

    Asks the driver itself, which honours CUDA_VISIBLE_DEVICES and creates no context. Workers may
    still use CUDA: they come from a fork server that was executed, not forked, from this process.

    Args:
        load: opens a shared library by name.
    """
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != _SUCCESS or driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS:
        return 0
    return count.value


def gpu_names(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[str, ...]:
    """Names of the visible CUDA devices, as "NVIDIA H200"; from the driver, as `visible_gpus`."""
    return tuple(_gpu_name(load("libcuda.so.1"), number) for number in range(visible_gpus(load)))


def gpu_memory(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[int, ...]:
    """Bytes of memory of the visible CUDA devices; from the driver, as `visible_gpus`."""
    return tuple(_gpu_bytes(load("libcuda.so.1"), number) for number in range(visible_gpus(load)))


def _gpu_bytes(driver: Any, number: int) -> int:
    device, size = ctypes.c_int(0), ctypes.c_size_t(0)
    if driver.cuDeviceGet(ctypes.byref(device), number) != _SUCCESS:
        return sys.maxsize  # unknown: nothing is too large for it
    if driver.cuDeviceTotalMem_v2(ctypes.byref(size), device) != _SUCCESS:
        return sys.maxsize
    return size.value


def _gpu_name(driver: Any, number: int) -> str:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_LONGEST_NAME)
    if driver.cuDeviceGet(ctypes.byref(device), number) != _SUCCESS:
        return "unknown"
    driver.cuDeviceGetName(name, _LONGEST_NAME, device)
    return name.value.decode(errors="replace")


def devices(spec: str | None, count: Callable[[], int] = visible_gpus) -> tuple[str, ...]:
    """Names of the devices to use: ("cuda:0", …), or ("cpu",).

    Args:
        spec: text of `--gpus`; None means every visible GPU, else the CPU.
        count: gives how many GPUs are visible; not called where `spec` is `cpu`.

    Raises:
        ConfigError: for text that is no such list, or a GPU that is not there.
    """
    if spec == "cpu":
        return ("cpu",)
    if spec is None:
        return tuple(f"cuda:{number}" for number in range(count())) or ("cpu",)
    ranges = _ranges(spec)
    _check_visible(spec, ranges, count())
    if (named := sum(last - first + 1 for first, last in ranges)) > _MOST_DEVICES:
        raise ConfigError(GPUS, f" {cut(spec)}: {named:,} devices; name at most {_MOST_DEVICES}")
    return tuple(f"cuda:{n}" for first, last in ranges for n in range(first, last + 1))


def _ranges(spec: str) -> list[tuple[int, int]]:
    ranges = [_range(part, spec) for part in spec.split(",")]
    for before, after in pairwise(sorted(ranges)):
        if after[0] <= before[1]:
            raise _wrong(spec, f"device {after[0]} is given twice")
    return ranges


def _range(part: str, spec: str) -> tuple[int, int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise _wrong(spec, f"{cut(part)!r} is neither a number nor a range")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise _wrong(spec, f"the range {part} runs backwards")
    return first, last


def _wrong(spec: str, reason: str) -> ConfigError:
    return ConfigError(
        GPUS,
        f" {cut(spec) or repr(spec)}: {reason}; expected cpu, or device numbers and ranges, each "
        "device once, as 0-3 or 0,2,5",
    )


def _check_visible(spec: str, ranges: Sequence[tuple[int, int]], visible: int) -> None:
    beyond = [max(first, visible) for first, last in ranges if last >= visible]
    if not beyond:
        return
    cure = "cpu" if visible == 0 else "0" if visible == 1 else f"0-{visible - 1}"
    raise ConfigError(
        GPUS,
        f" {cut(spec)}: this machine has no CUDA device {beyond[0]} ({visible} visible); use ",
        GPUS,
        f" {cure}",
    )
