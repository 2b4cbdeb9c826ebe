"""Python objects in place of names."""

from __future__ import annotations

from threading import Lock, Thread
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.system import given as given_module
from pipeline.system.given import DATA, NETWORK, RULE, Given, inherit, is_given, objects_given
from pipeline.system.named_object import called, named_object
from pipeline.system.packed import unpacked, users_modules
from pipeline.system.sources import own_code


class Thing:
    """Of this module, which no worker could import by its name."""

    def __init__(self) -> None:
        self.parts = [1, 2]


def test_names_lead_to_what_is_given_and_of_networks_to_copies() -> None:
    network, data = Thing(), object()
    with objects_given(Given(network, Thing, data)):
        copy = called(named_object(NETWORK), {})
        assert type(copy) is Thing
        assert copy.parts == network.parts
        assert copy.parts is not network.parts
        assert named_object(RULE) is Thing
        assert called(named_object(DATA), {}) is data


@pytest.mark.parametrize("name", [NETWORK, RULE, DATA])
def test_what_nobody_has_given_is_said_in_a_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^the \w+ of this run is a Python object, which no com"):
        called(named_object(name), {})
    assert is_given(name)
    assert not is_given("my_rules:Rule")


def test_another_thread_has_objects_of_its_own() -> None:
    found: list[Any] = []

    def look() -> None:
        with pytest.raises(ConfigError):
            named_object(RULE)
        with objects_given(Given(rule=int)):
            found.append(named_object(RULE))

    with objects_given(Given(rule=Thing)):
        thread = Thread(target=look)
        thread.start()
        thread.join()
        assert named_object(RULE) is Thing
    assert found == [int]


def test_what_travels_is_rebuilt_where_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_module, "_inherited", [])
    given = Given(Thing(), Thing, modules=users_modules()).for_workers()
    with objects_given(given):
        sent = own_code([NETWORK])
    inherit(memoryview(given.packed))
    try:
        assert own_code([NETWORK]) == sent != ()
        assert called(named_object(NETWORK), {}).parts == [1, 2]
        assert named_object(RULE).__name__ == "Thing"
    finally:
        given_module._rebuilt.cache_clear()
    assert Given(data=Thing()).for_workers().packed == b""


def test_classes_of_a_test_module_travel_by_value() -> None:
    packed = Given(Thing(), None, modules=users_modules()).for_workers().packed
    network, rule = unpacked(packed)
    assert (network.parts, rule) == ([1, 2], None)
    assert b"parts" in packed  # what __init__ does
    assert __name__.encode() in packed


def test_what_can_not_travel_is_named() -> None:
    network = Thing()
    network.parts = Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigError) as caught:
        Given(network).for_workers()
    assert str(caught.value) == (
        "the network: can't be sent to worker processes: TypeError: cannot pickle '_thread.lock' "
        "object; leave out what is held of this process (files, locks, threads), or train without "
        "stages"
    )
