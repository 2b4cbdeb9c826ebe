"""The launcher's end of the fork server, where no process is needed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from launch.engines.local import ForkServerClient

if TYPE_CHECKING:
    import pytest


class Unkillable:
    """A process in uninterruptible sleep."""

    pid = 4711

    def kill(self) -> None:
        """Not even this ends it."""

    def wait(self, timeout: float) -> int:
        raise subprocess.TimeoutExpired("fork server", timeout)


def test_a_fork_server_that_not_even_sigkill_ends_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: Unkillable())
    server = ForkServerClient()
    server.run()
    server.close()
    assert capsys.readouterr().err == (
        "process 4711, which starts workers, was killed and has not ended within 5 s: what it "
        "waits for does not answer; it ends, with its workers, once that does\n"
    )
    assert server.how_it_ended() is None
