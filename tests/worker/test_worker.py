"""What a worker refuses to become."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fuzz.examples import EXAMPLES

from pipeline.protocol.credentials import Invitation
from pipeline.protocol.messages import Failure, Setup
from pipeline.transport.in_memory import MemoryControl
from pipeline.transport.rejections import Rejections
from pipeline.worker.heartbeat import Activity
from pipeline.worker.process import failure_of
from pipeline.worker.worker import Worker

if TYPE_CHECKING:
    from pipeline.protocol.messages import Message

(SETUP,) = (message for message in EXAMPLES if isinstance(message, Setup))
RIGHT: dict[str, Any] = {
    "model": {"name": "mlp"},
    "loss": {"name": "predsim"},
    "data": {"name": "digits"},
}


class Nowhere:
    rejections = Rejections("the link")


def refused(config: dict[str, Any], user_code: tuple[str, ...] = ()) -> Failure:
    """What is told to the coordinator by a worker that is to be this."""
    control, nowhere = MemoryControl(), Nowhere()
    client: Any = control.client(0)
    worker = Worker(Invitation("run", 0, 0, "nowhere", user_code), client, nowhere, Activity())
    message: Message = replace(SETUP, config=config)
    control.send(0, message)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - it crosses the boundary as data
        worker.live()
    assert isinstance(caught.value, Exception)
    return failure_of(caught.value, worker)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "the coordinator's config: model: is missing"),
        ({**RIGHT, "model": {"name": "mpl"}}, "the coordinator's config: model.name: 'mpl'"),
        ({**RIGHT, "model": [[]]}, "the coordinator's config: model: expected keys and values"),
        ({**RIGHT, "extra": {}}, "the coordinator's config: extra: unknown key"),
    ],
)
def test_a_malformed_configuration_is_refused_in_one_line(
    config: dict[str, Any], says: str
) -> None:
    failure = refused(config)
    assert failure.summary.startswith(says)
    assert "\n" not in failure.summary
    assert (failure.misused, failure.traceback) == (True, "")


@pytest.mark.parametrize("started_with", [(), ("somebody:else",)])
@pytest.mark.parametrize(
    "section", [{"model": {"factory": "os:system"}}, {"loss": {"rule": "os:system"}}]
)
def test_a_message_can_not_name_code_to_be_imported(
    section: dict[str, Any], started_with: tuple[str, ...]
) -> None:
    failure = refused({**RIGHT, **section}, started_with)
    assert failure.summary == (
        "stage 0: told to import os:system, started to import "
        f"{', '.join(started_with) or 'nothing'}"
    )
