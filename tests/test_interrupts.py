"""What signals do to a run: asked of handlers in this process, which is its own addressee."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from launch.cli import main as launch
from launch.interrupts import INTERRUPTIONS, interrupts_noted
from launch.reproduce import main as reproduce
from launch.verify import main as verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click import Command


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Whatever a test does to the handlers of this process."""
    before = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    for number in INTERRUPTIONS:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_signal_is_noted(number: signal.Signals) -> None:
    with interrupts_noted() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()
    assert signal.getsignal(number) is signal.default_int_handler


def test_signals_close_together_are_one() -> None:
    now = [100.0]
    with interrupts_noted(lambda: now[0]) as interrupted:
        for later in (0.0, 0.06, 0.9):
            now[0] = 100.0 + later
            signal.raise_signal(signal.SIGTERM)
        assert interrupted()
        now[0] = 101.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # nothing interrupts the cleaning


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_what_was_ignored_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interrupts_noted() as interrupted:
        signal.raise_signal(number)
        assert not interrupted()
        for other in set(INTERRUPTIONS) - {number}:
            assert signal.getsignal(other) not in (signal.SIG_IGN, signal.default_int_handler)
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(launch, ["tiny.yaml"]), (verify, ["tiny.yaml"]), (reproduce, ["--list"])],
)
def test_ctrl_c_before_anything_has_begun(
    monkeypatch: pytest.MonkeyPatch, command: Command, arguments: list[str]
) -> None:
    """While modules are imported, which takes most of the time until then."""

    def interrupted(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.job.Options", interrupted)
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")
