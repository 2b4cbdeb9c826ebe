"""Whether the processes of a run run the same code is found out, and said in a line."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from support.run_in_threads import Job, ThreadWorkers, coordinator

from pipeline.errors import StageFailedError, StageLostError
from pipeline.protocol.messages import PROTOCOL_VERSION, Hello
from pipeline.system.given import code_line
from pipeline.system.sources import (
    changed_files,
    difference,
    difference_between_hosts,
    own_code,
    running_code,
    unlike,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def test_every_source_file_and_version_is_named() -> None:
    names = [line.rpartition(" ")[0] for line in running_code()]
    assert len(names) == len(set(names))
    assert {"pipeline/learning/block.py", "pipeline/__init__.py", "launch/engines/local.py"} <= {
        *names
    }
    assert [name.split()[0] for name in names[:3]] == ["python", "torch", "numpy"]


SAME = ("python 3.11.7", "a/b.py 12")


@pytest.mark.parametrize(
    ("theirs", "common", "said"),
    [
        (SAME, False, None),
        (SAME[::-1], False, None),
        (("python 3.11.8", "a/b.py 12"), False, "python is 3.11.7 here, 3.11.8 there"),
        (("python 3.11.7", "a/b.py 13"), False, "a/b.py is 12 here, 13 there"),
        (SAME[:1], False, "a/b.py is 12 here, not there there"),
        ((*SAME, "a/c d.py 1"), False, "a/c d.py is not there here, 1 there"),
        ((*SAME[:1], "a/c d.py 1"), True, None),
        (("python 3.11.7", "a/b.py 13", "z 1"), True, "a/b.py is 12 here, 13 there"),
        ((), False, "python is 3.11.7 here, not there there"),
    ],
)
def test_the_first_difference_is_named(
    theirs: Sequence[str], common: bool, said: str | None
) -> None:
    assert difference(SAME, theirs, common=common) == said


FACTS = (
    "python 3.11.7", "torch 2.9.0:/here/torch", "numpy 2.1.0:/here/numpy",
    "pipeline/dtypes.py 11", "processor AMD EPYC 9575F",
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "other", "differs", "odd"),
    [
        (1, "torch 2.9.0:/there/torch", None, []),
        (1, "torch 2.8.0:/there/torch", None, ["torch is 2.8.0, elsewhere 2.9.0"]),
        (4, "processor AMD 9", None, ["processor is AMD 9, elsewhere AMD EPYC 9575F"]),
        (0, "python 3.11.8", "python is 3.11.7 here, 3.11.8 there", []),
        (3, "pipeline/dtypes.py 12", "pipeline/dtypes.py is 11 here, 12 there", []),
    ],
)  # fmt: skip
def test_hosts_must_run_the_same_code_and_should_compute_alike(
    line: int, other: str, differs: str | None, odd: list[str]
) -> None:
    theirs = [*FACTS[:line], other, *FACTS[line + 1 :]]
    assert difference_between_hosts(FACTS, theirs) == differs
    assert unlike(FACTS, theirs) == odd


def test_files_that_both_have_and_that_differ_are_named() -> None:
    before = ("/a/net.py 12", "/a/gone.py 1", "/a/same.py 7", f"{code_line.__module__} 5")
    now = ("/a/new.py 1", f"{code_line.__module__} 6", "/a/same.py 7", "/a/net.py 13")
    assert changed_files(before, now) == ["/a/net.py"]
    assert changed_files(now, now) == changed_files((), now) == []


@pytest.mark.parametrize("changed", ["nets_of_mine", "helper_of_mine", "deep_of_mine.part"])
def test_modules_of_the_users_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """The named one, what lies beside it, and what belongs to its package."""
    (tmp_path / "deep_of_mine").mkdir()
    texts = {"nets_of_mine": "import helper_of_mine", "helper_of_mine": "W = 1"}
    texts |= {"deep_of_mine.__init__": "import deep_of_mine.part", "deep_of_mine.part": "W = 2"}
    for name, text in texts.items():
        (tmp_path / f"{name.replace('.', '/')}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for name in ("nets_of_mine", "deep_of_mine"):
        import_module(name)
    factory = f"{changed.partition('.')[0]}:net".replace("helper", "nets")
    before = own_code([factory])
    assert own_code([factory]) == before
    path = tmp_path / f"{changed.replace('.', '/')}.py"
    path.write_text("W = 3")
    assert str(difference(before, own_code([factory]))).startswith(f"{path} is ")


def test_who_has_no_factory_has_no_code_of_their_own() -> None:
    assert own_code([]) == own_code(["sys:exit"]) == own_code(["not_there:net"]) == ()


def test_a_worker_of_other_code_ends_the_run_and_is_not_replaced(
    folder: Callable[[], Path],
) -> None:
    other = tuple(line.replace("block.py ", "block.py x") for line in running_code())
    workers = ThreadWorkers(2)
    workers.control.client(1).send(Hello("run", PROTOCOL_VERSION, 1, other))
    with pytest.raises(
        StageFailedError, match=r"runs other code .* pipeline/learning/block\.py is "
    ) as said:
        coordinator(Job(folder(), 2), workers).run()
    assert not isinstance(said.value, StageLostError)
    assert "\n" not in str(said.value)
