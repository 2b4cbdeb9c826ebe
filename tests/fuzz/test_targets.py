"""The targets of the fuzzer, with a few hundred inputs each; they can fail; the fuzzer's report."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import fuzz, targets
from fuzz.mutations import mutated
from fuzz.seeds import seeds
from fuzz.targets import TARGETS, opened_files
from pipeline.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.storage.folder import Folder

SEEDS = {target: seeds(target) for target in TARGETS}
MOST = 1 << 16


def cut(data: bytes, most: int) -> bytes:
    """What a fuzzer does that knows nothing of trees, at its simplest."""
    return data[: min(len(data) // 2, most)]


def changed(target: str) -> st.SearchStrategy[bytes]:
    """Seeds with three changes each."""
    numbers = st.integers(0, 2**32)

    def change(data: bytes, draws: list[int]) -> bytes:
        for seed in draws:
            data = mutated(target, data, MOST, seed, cut if seed % 8 == 0 else lambda d, _: d)
        return data

    return st.builds(change, st.sampled_from(SEEDS[target]), st.lists(numbers, max_size=3))


def spoilt(target: str) -> st.SearchStrategy[bytes]:
    """Seeds with a few other bytes somewhere."""

    def spoil(data: bytes, place: float, by: bytes) -> bytes:
        start = int(place * len(data))
        return data[:start] + by + data[start + len(by) :]

    places = st.floats(0, 1, exclude_max=True)
    return st.builds(spoil, st.sampled_from(SEEDS[target]), places, st.binary(max_size=4))


# --- the rules hold -----------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    for seed in SEEDS[target]:
        TARGETS[target](seed)


@given(st.binary(max_size=300) | spoilt("codec") | changed("codec"))
@settings(max_examples=600)
def test_no_header_breaks_a_rule(data: bytes) -> None:
    targets.codec(data)


@given(st.binary(max_size=300) | spoilt("checkpoint") | changed("checkpoint"))
@settings(max_examples=400)
def test_no_checkpoint_breaks_a_rule(data: bytes) -> None:
    targets.checkpoint(data)


# --- the targets reach what they are for, and can fail ------------------------------------


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    calls, real = [], getattr(targets, name)

    def counted(*given: Any) -> Any:
        calls.append(given)
        return real(*given)

    monkeypatch.setattr(targets, name, counted)
    return calls


@pytest.mark.parametrize(
    ("target", "reached", "times"),
    [
        ("codec", "_is_delivered", 1),
        ("codec", "_no_other_memory_is_opened", 2),
        ("checkpoint", "_can_travel", 2),
    ],
)
def test_seeds_get_through(
    monkeypatch: pytest.MonkeyPatch, target: str, reached: str, times: int
) -> None:
    calls = count_calls(monkeypatch, reached)
    for seed in SEEDS[target]:
        TARGETS[target](seed)
    assert len(calls) >= times


def raising(error: Callable[[], Exception]) -> Callable[..., Any]:
    def raises(*given: Any) -> Any:
        raise error()  # a new one: with its traceback it keeps all that was at hand

    return raises


@pytest.mark.parametrize(
    ("target", "name", "error"),
    [
        ("codec", "decode", lambda: KeyError("type")),
        ("codec", "decode", lambda: ProtocolError("x" * 2000)),
        ("codec", "decode", lambda: ProtocolError("\udcff")),
        ("codec", "RingWriter", lambda: ValueError("cannot mmap an empty file")),
        ("checkpoint", "checkpoint_in", RecursionError),
        ("checkpoint", "checkpoint_in", lambda: ProtocolError("of the other half")),
    ],
    ids=["type", "length", "half a character", "ring", "depth", "half"],
)
def test_broken_rules_are_found(
    monkeypatch: pytest.MonkeyPatch, target: str, name: str, error: Callable[[], Exception]
) -> None:
    monkeypatch.setattr(targets, name, raising(error))
    with pytest.raises((type(error()), AssertionError, UnicodeEncodeError)):
        list(map(TARGETS[target], SEEDS[target]))


def test_a_file_of_others_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret, real = tmp_path / "secret", targets.checkpoint_in
    secret.write_bytes(b"secret")

    def curious(folder: Folder, name: str) -> Any:
        secret.read_bytes()
        return real(folder, name)

    monkeypatch.setattr(targets, "checkpoint_in", curious)
    with pytest.raises(AssertionError, match="secret"):
        targets.checkpoint(SEEDS["checkpoint"][0])


def test_opened_files_are_seen(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    with opened_files() as opened:
        (tmp_path / "here").write_text("x")
    (tmp_path / "before").read_text()
    assert opened == {str(tmp_path / "here")}


def test_changes_are_drawn_from_a_number_and_bounded() -> None:
    for target in TARGETS:
        one, again = ([mutated(target, s, MOST, 3, cut) for s in SEEDS[target]] for _ in range(2))
        assert one == again
        assert one != SEEDS[target]
        for seed in range(200):
            assert len(mutated(target, SEEDS[target][0], 300, seed, cut)) <= 300


# --- the fuzzer's own process ---------------------------------------------------------------


def test_what_libfuzzer_says_is_understood() -> None:
    said = [
        "#3\tNEW    cov: 12 ft: 12 corp: 1/1b exec/s: 0 rss: 37Mb\n",
        "#9\tDONE   cov: 345 ft: 678 corp: 1/1b lim: 4096 exec/s: 5 rss: 37Mb\n",
        "stat::number_of_executed_units: 4567\n",
        "stat::average_exec_per_sec:     890\n",
        "stat::peak_rss_mb:              123\n",
    ]
    assert fuzz.statistics(said) == {"inputs": 4567, "edges": 345, "peak_rss_mb": 123}
    assert fuzz.statistics([]) == {"inputs": 0, "edges": 0, "peak_rss_mb": 0}


def test_without_atheris_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(fuzz.main, ["codec", "--corpus", str(tmp_path / "corpus")])
    assert done.exit_code == 1
    assert "pip install atheris" in done.output
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("status", "crashes"), [(0, 0), (77, 1), (70, 1)], ids=["time is over", "crash", "hang"]
)
def test_the_report_is_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, crashes: int
) -> None:
    said = ["#9 DONE cov: 3 ft: 6\n", "stat::number_of_executed_units: 45\n"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(fuzz, "fuzz", lambda *given: (status, said))
    corpus = tmp_path / "corpus"
    done = CliRunner().invoke(fuzz.main, ["checkpoint", "--corpus", str(corpus)])
    assert done.exit_code == crashes
    assert done.output == (
        '{"target": "checkpoint", "inputs": 45, "edges": 3, "peak_rss_mb": 0, "seconds": 0, '
        f'"crashes": {crashes}}}\n'
    )
    assert {path.read_bytes() for path in corpus.iterdir()} == set(SEEDS["checkpoint"])


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(fuzz.__file__)), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "codec|checkpoint" in done.stdout
