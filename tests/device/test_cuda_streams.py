"""What a device has done so far: slots given back, sums copied, without waiting for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.device.cuda_streams import Glances, Incoming, Releases, marks_of, side_stream
from pipeline.worker.tensors import TensorPayload, payloads


def test_slots_are_released_in_order_when_the_device_has_come_so_far() -> None:
    done, released = [False, False, False], list[int]()
    marks = iter(range(3))

    def mark() -> Any:
        at = next(marks)
        return SimpleNamespace(query=lambda: done[at])

    releases = Releases(mark)
    for number in range(3):
        releases.after(lambda number=number: released.append(number))
    releases.look()
    assert (released, releases.waiting) == ([], True)
    done[0] = True
    releases.look()
    assert released == [0]
    done[2] = True
    releases.look()
    assert released == [0]  # the second is not done yet
    done[1] = True
    releases.look()
    assert (released, releases.waiting) == ([0, 1, 2], False)


def test_glances_show_what_has_landed_and_wait_for_nothing() -> None:
    done: list[bool] = []

    def mark() -> Any:
        at = len(done)
        done.append(False)
        return SimpleNamespace(query=lambda: done[at])

    glances, sums = Glances(mark), torch.tensor([3])
    assert glances.at([sums]) is None
    assert (glances.at([sums]), len(done)) == (None, 1)  # one copy at a time
    done[0] = True
    assert (glances.at([sums]), len(done)) == ([[3]], 2)
    assert glances.at([sums]) == [[3]]
    glances.forget()
    assert (glances.at([sums]), len(done)) == (None, 3)
    assert Glances(None).at([sums, sums + 1]) == [[3], [4]]


def test_who_watches_a_device_can_be_called_away() -> None:
    releases, looks = Releases(lambda: SimpleNamespace(query=lambda: False)), iter([False, True])
    releases.after(lambda: pytest.fail("the device is not done"))
    releases.watch(lambda: next(looks))
    assert (releases.waiting, next(looks, "asked twice")) == (True, "asked twice")


def test_on_a_cpu_everything_is_done_at_once() -> None:
    cpu, released = torch.device("cpu"), list[int]()
    releases = Releases(marks_of(cpu))
    releases.after(lambda: released.append(1))
    assert (released, releases.waiting) == ([1], False)
    x = torch.ones(3)
    assert Incoming(cpu).bring(x) is x
    assert side_stream(cpu) is None
    assert payloads((x,), None) == [TensorPayload(x)]
    assert payloads((x,), None)[0].device is None
