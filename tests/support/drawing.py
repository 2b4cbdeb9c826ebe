"""Workers in threads of one process draw as processes of their own would."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock, current_thread, local
from typing import TYPE_CHECKING, Any

import torch

from pipeline.learning import rule_calls, user_block
from pipeline.seeding import draws_kept, seeded_draws
from pipeline.worker import worker
from pipeline.worker.team_links import TeamLinks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


WORKER = "stage-"
"""How the names of their threads begin."""


def draw_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a network, or draws within a user's modules, does it while no other does; but
    for the time that it waits there for what its team has found."""
    turn, own = Lock(), local()
    build, gather = worker.build_stage, TeamLinks.gather

    def alone(*given: Any, **named: Any) -> Any:
        with turn:
            return build(*given, **named)

    @contextmanager
    def drawing(seed: int, device: torch.device) -> Iterator[None]:
        if own.__dict__.get("draws") or not current_thread().name.startswith(WORKER):
            with seeded_draws(seed, device):  # single mode sees to its own turns
                yield
            return
        with turn, seeded_draws(seed, device):
            own.draws = True
            try:
                yield
            finally:
                own.draws = False

    def gather_in_turns(links: TeamLinks, *given: Any) -> Any:
        if not own.__dict__.get("draws"):
            return gather(links, *given)
        with draws_kept(torch.device("cpu")):
            turn.release()
            try:
                return gather(links, *given)
            finally:
                turn.acquire()

    monkeypatch.setattr(worker, "build_stage", alone)
    monkeypatch.setattr(TeamLinks, "gather", gather_in_turns)
    for module in (user_block, rule_calls):
        monkeypatch.setattr(module, "seeded_draws", drawing)
