"""Python objects in place of names: `model.factory: pipeline.fit:network`.

What a configuration names is imported by its name, in every process. `pipeline.fit` is given
objects instead, which have none; for as long as it works these names lead to them, here and, by way
of the process that forks workers (`launch/engines/local.py`), in its workers:

    fit ──packed──▶ fork server ──fork──▶ worker ──unpacked──▶ network, Rule

Data go nowhere: only the process that feeds the run reads them.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.system.packed import Modules, packed, packed_modules, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORK, RULE, DATA = "pipeline.fit:network", "pipeline.fit:loss", "pipeline.fit:data"
"""What a configuration says in place of a user's own names: arguments of `pipeline.fit`."""


@dataclass(frozen=True, slots=True)
class Given:
    """The objects of one run. `modules`: those that they may be defined in. `packed`: what workers
    need, as it travels; empty where there are no workers."""

    network: Any = None
    rule: Any = None
    data: Any = None
    modules: Modules = field(default_factory=Modules)
    packed: bytes | memoryview = field(default=b"", repr=False)

    def for_workers(self) -> Given:
        """The same, ready to travel.

        Raises:
            ConfigError: where they can't.
        """
        if self.network is None and self.rule is None:
            return self
        what = " and ".join(
            what
            for what, each in (("the network", self.network), ("the rule", self.rule))
            if each is not None
        )
        return replace(self, packed=packed(what, (self.network, self.rule), self.modules))


_given: ContextVar[Given | None] = ContextVar("given", default=None)
"""Of the run that this thread carries out."""
_inherited: list[memoryview] = []
"""In a worker and in the process that forks it: what the launcher has packed."""


@contextmanager
def objects_given(given: Given) -> Iterator[None]:
    """Inside, in this thread, the names lead to these objects."""
    token = _given.set(given)
    try:
        yield
    finally:
        _given.reset(token)


def inherit(data: memoryview) -> None:
    """From now on, in this process and those that it forks, the names lead to what is packed in
    `data`; nothing is rebuilt before it is asked for."""
    _inherited.append(data)


def in_callers_process() -> bool:
    """Whether this thread works for `pipeline.fit`: processes that come meanwhile, and signals, are
    the caller's own."""
    return _given.get() is not None


def is_given(named: str | None) -> bool:
    """Whether what a configuration names is an object of `pipeline.fit`."""
    return named in (NETWORK, RULE, DATA)


def own_modules() -> tuple[str, ...]:
    """The user's modules that the objects may be defined in, and that workers import, by their
    outermost names."""
    modules = _current().modules
    return (*modules.found, *modules.here)


def code_line() -> tuple[str, ...]:
    """The line of `sources.own_code` for what travels to workers: every process has the same."""
    packed = _current().packed
    return (f"{__name__} {sha256(packed).hexdigest()[:16]}",) if packed else ()


def given_object(named: str) -> Any:
    """What one of the names leads to: a function that gives the network or the data; the rule.

    Raises:
        ConfigError: where there is no rule.
    """
    if named == RULE:
        return _object("rule", _current().rule)
    return {NETWORK: _network, DATA: _data}[named]


def _network() -> Any:
    return copy.deepcopy(_object("network", _current().network))


def _data() -> Any:
    return _object("data", _current().data)


def _object(what: str, found: Any) -> Any:
    if found is None:
        raise ConfigError(
            f"the {what} of this run is a Python object, which no command has: go on with it by "
            "pipeline.fit(…, run_dir=…, resume=True), given the same"
        )
    return found


def _current() -> Given:
    given = _given.get()
    if given is None and _inherited:
        return _rebuilt()
    return given or Given()


@cache
def _rebuilt() -> Given:
    data = _inherited[-1]
    network, rule = unpacked(data)
    return Given(network, rule, modules=packed_modules(data), packed=data)
