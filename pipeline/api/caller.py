"""What a run changes of the process that it is carried out in, which is the caller's: put back."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_one_at_a_time = RLock()
"""Threads of a process share all of these settings; a callback may well train another network."""
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def settings_kept() -> Iterator[None]:
    """Inside, torch is as in a worker's process; afterwards, as it was: threads, precision and
    determinism, and what all generators of this process draw next. One thread at a time is let
    in."""
    with _one_at_a_time, ExitStack() as stack:
        for value, put_back in _settings():
            stack.callback(put_back, value)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        if torch.get_default_device().type != "cpu":  # where it is, that would only cost time
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_no_autocast())
        yield


@contextmanager
def _no_autocast() -> Iterator[None]:
    """As outside of every autocast. Within one, even one that is off, torch keeps the bfloat16
    copies of weights that it has made, which a step would not change."""
    devices = ("cpu", "cuda")
    enabled = [torch.is_autocast_enabled(device) for device in devices]
    depth = torch.autocast_increment_nesting() - 1  # the only call that tells how deep
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()
        for device, was in zip(devices, enabled, strict=True):
            torch.set_autocast_enabled(device, was)


def _settings() -> Iterator[tuple[Any, Callable[[Any], object]]]:
    """Each setting as it is, and what sets it."""
    yield torch.get_num_threads(), torch.set_num_threads
    yield torch.get_default_dtype(), torch.set_default_dtype
    yield torch.get_float32_matmul_precision(), torch.set_float32_matmul_precision
    yield torch.get_deterministic_debug_mode(), torch.set_deterministic_debug_mode
    yield torch.get_rng_state(), torch.set_rng_state
    yield random.getstate(), random.setstate
    yield np.random.get_state(), np.random.set_state
    for owner, name in (
        (torch.utils.deterministic, "fill_uninitialized_memory"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
    ):
        yield getattr(owner, name), partial(setattr, owner, name)
    yield os.environ.get(_CUBLAS), _set_cublas
    # to ask for the device would initialise CUDA, in a process that may never need it
    yield torch.cuda.current_device() if _cuda_is_used() else 0, _set_cuda_device


def _set_cuda_device(device: int) -> None:
    if _cuda_is_used():
        torch.cuda.set_device(device)


def _set_cublas(value: str | None) -> None:
    if value is None:
        os.environ.pop(_CUBLAS, None)
    else:
        os.environ[_CUBLAS] = value


def _cuda_is_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
