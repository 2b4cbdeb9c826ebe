"""How the tests are distributed among processes: `tests/conftest.py`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support import REPOSITORY
from support.distribution import RealOnesInTurn, group_of


@pytest.mark.parametrize(
    ("asked", "cores", "processes"),
    [
        (["tests"], 2, 2),
        (["tests"], 16, 4),
        (["tests"], 1, 0),
        (["tests/protocol", "tests/schedule"], 2, 0),
        (["tests/storage", "tests/config", "tests/network"], 2, 2),
        (["tests/test_layering.py::test_circles_are_found"], 2, 0),
    ],
)
def test_a_few_files_are_tested_by_one_process(
    asked: list[str],
    cores: int,
    processes: int,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    config = SimpleNamespace(args=asked, invocation_params=SimpleNamespace(dir=REPOSITORY))
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=config) == processes


def test_files_that_start_processes_are_one_group_and_others_none() -> None:
    scopes = RealOnesInTurn(SimpleNamespace(getvalue=lambda name: ["2*popen"]))
    of = {
        "tests/processes/test_faults.py::test_a": "processes",
        "tests/rehearsal/test_rehearsal.py::test_b[1]": "processes",
        "tests/api/test_export.py::test_c": "export",
        "tests/schedule/test_feed.py::test_d": "tests/schedule/test_feed.py::test_d",
    }
    assert {nodeid: scopes._split_scope(nodeid) for nodeid in of} == of


def test_every_test_that_starts_processes_is_in_a_group(request: pytest.FixtureRequest) -> None:
    """Of those that this process knows."""
    started = [item for item in request.session.items if item.get_closest_marker("processes")]
    assert all(group_of(item.path) for item in started)


def test_tests_that_start_processes_are_begun_first(pytestconfig: pytest.Config) -> None:
    (ours,) = (
        each
        for each in pytestconfig.hook.pytest_collection_modifyitems.get_hookimpls()
        if each.plugin_name.endswith("conftest.py")
    )
    quick, real = (
        SimpleNamespace(get_closest_marker=marks.get) for marks in ({}, {"processes": "yes"})
    )
    in_turn, shared = [quick, real], [quick, real]
    ours.function(config=SimpleNamespace(), items=in_turn)
    ours.function(config=SimpleNamespace(workerinput={}), items=shared)
    assert (in_turn, shared) == ([quick, real], [real, quick])
