"""What a sweep varies: values of keys, every one with every other, each combination with each seed.

    --over loss.name=pred,sim --seeds 1-2      loss.name=pred,seed=1   loss.name=sim,seed=1
                                               loss.name=pred,seed=2   loss.name=sim,seed=2

By seeds first: where a sweep ends early, all combinations have been tried as often.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from math import prod
from typing import TYPE_CHECKING, TypeVar

from pipeline.config.yaml_text import parsed, word_for
from pipeline.errors import ConfigError, cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Kind = TypeVar("Kind")

SEED = "runtime.seed"
MOST_RUNS = 10_000
_LONGEST_NAME = 150
"""Bytes; a file system takes 255, and a run's own files stand below."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One run of a sweep: values, as YAML, by key, and a seed."""

    settings: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        """That of its folder, which tells it from all others."""
        words = [f"{key}={word}" for key, word in self.settings]
        return _plain(",".join([*words, f"seed={self.seed}"]))

    @property
    def overrides(self) -> tuple[str, ...]:
        """As `--set` has them."""
        return (*(f"{key}={word}" for key, word in self.settings), f"{SEED}={self.seed}")


@dataclass(frozen=True, slots=True)
class Grid:
    """`axes`: the values of each key, as YAML, in the order in which they were given."""

    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds) * prod(map(len, self.axes.values()))

    def settings(self) -> list[tuple[tuple[str, str], ...]]:
        """Every value of each key with every one of the others, the last key's in turn."""
        return [tuple(zip(self.axes, words, strict=True)) for words in product(*self.axes.values())]

    def combinations(self) -> Iterator[Combination]:
        """All runs, in the order in which they are trained."""
        for seed in self.seeds:
            for settings in self.settings():
                yield Combination(settings, seed)

    def with_more(self, other: Grid) -> Grid:
        """This grid with the values and seeds of another of the same keys, which come last."""
        assert self.axes.keys() == other.axes.keys(), "one is extended by values, not by keys"
        axes = {key: _union(words, other.axes[key]) for key, words in self.axes.items()}
        return Grid(axes, _union(self.seeds, other.seeds))

    def check_size(self) -> None:
        """Raises ConfigError for far too many runs."""
        if len(self) > MOST_RUNS:
            raise ConfigError(f"a sweep of {self.in_words()}: at most {MOST_RUNS:,} are taken")

    def in_words(self) -> str:
        """As `3 of loss.name × 5 seeds = 15 runs`."""
        parts = [f"{len(words)} of {key}" for key, words in self.axes.items()]
        parts.append(_counted(len(self.seeds), "seed"))
        return f"{' × '.join(parts)} = {_counted(len(self), 'run')}"


def grid_of(over: Sequence[str], seeds: tuple[int, ...]) -> Grid:
    """What `--over`, given several times, and the seeds span.

    Raises:
        ConfigError: for a text that is wrong, a key that is given twice, or far too many runs.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in over:
        key, words = axis_of(text)
        if key in axes:
            raise ConfigError(f"--over {key}: is given twice; name all its values at once")
        axes[key] = words
    grid = Grid(axes, seeds)
    grid.check_size()
    return grid


def axis_of(text: str) -> tuple[str, tuple[str, ...]]:
    """`KEY=VALUE,VALUE,…`: the key, and its values as YAML; a list is one value in brackets.

    Raises:
        ConfigError: where it has another form, or names a value twice.
    """
    said = f"--over {cut(text)}"
    key, equals, given = text.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and section and dot and name and given):
        raise ConfigError(f"{said}: expected SECTION.KEY=VALUE,VALUE, as loss.name=pred,sim")
    if key == SEED:
        raise ConfigError(f"{said}: give seeds by --seeds, as --seeds {cut(given)}")
    values = parsed(f"[{given}]", said)
    words = tuple(map(word_for, values))
    _refuse_twice(words, said)
    return key, words


def seeds_of(text: str) -> tuple[int, ...]:
    """`1-5`, or `1,2,7-9`.

    Raises:
        ConfigError: where it has another form, or names a seed twice.
    """
    said = f"--seeds {cut(text)}"
    seeds: list[int] = []
    for part in text.split(","):
        if not (found := re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", part.strip())):
            raise ConfigError(f"{said}: expected seeds as 1-5, or 1,2,7")
        first = int(found[1])
        last = int(found[2] or first)
        if not first <= last < first + MOST_RUNS:
            raise ConfigError(f"{said}: {part} names no seeds, or more than {MOST_RUNS:,}")
        seeds += range(first, last + 1)
    _refuse_twice(list(map(str, seeds)), said)
    return tuple(seeds)


def _refuse_twice(words: Sequence[str], said: str) -> None:
    again = [word for number, word in enumerate(words) if word in words[:number]]
    if again:
        raise ConfigError(f"{said}: {again[0]} is given twice")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _union(some: tuple[Kind, ...], others: tuple[Kind, ...]) -> tuple[Kind, ...]:
    return tuple(dict.fromkeys((*some, *others)))


def _plain(name: str) -> str:
    """A name that needs no quotes, in few enough bytes; where something is lost, with a digest, so
    that two names stay two."""
    short = re.sub(r"[\[\]{}'\" ]", "", name)
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", short)[:_LONGEST_NAME]
    return plain if plain == name else f"{plain}-{sha256(name.encode()).hexdigest()[:6]}"
