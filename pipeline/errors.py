"""The exception tree.

`ConfigError` is for the person at the keyboard: it names the thing, the rule and the cure. It is
raised before anything is started, wherever it can be known then; in the middle of a run only where
a user's own code does what it must not. Everything else is a `RunError`: the run had begun.
What only a bug in this project can break is an `assert`, not one of these.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


class PipelineError(Exception):
    """Base of everything this project raises on purpose."""

    @property
    def in_one_line(self) -> str:
        """What went wrong, where there is room for a line only."""
        return _first_line(str(self))


@dataclass(frozen=True, slots=True)
class Option:
    """What a user may ask for beside a configuration, by the name that Python has for it: an option
    of a command (`--run-dir`), and an argument of a function (`run_dir`). Each way of asking words
    it in its own errors."""

    name: str


def as_option(option: Option) -> str:
    """An option as commands call it: `--run-dir`."""
    if option == DATA_ROOT:
        return f"{as_option(SET)} data.root=DIR"
    return f"--{option.name.replace('_', '-')}"


STAGES, GPUS, SINGLE, RUN_DIR, RESUME, SET = map(
    Option, ("stages", "gpus", "single", "run_dir", "resume", "set")
)
"""Those that errors of a run name. `SET` goes before a key and its value."""
DATA_ROOT = Option("data_root")
"""What says in which folder data lie; with its value, DIR."""


class ConfigError(PipelineError):
    """Wrong usage or configuration, or a user's own code that does what it must not, perhaps only
    in the middle of a run; all else is told before anything is started or overwritten.

    `said`: the message in parts, in which an `Option` is data; `word`: what these are called where
    the error is read, which is a command line unless someone says else (`worded`).
    """

    def __init__(self, *said: str | Option) -> None:
        super().__init__(*said)
        self.said = said
        self.word: Callable[[Option], str] = as_option

    def __str__(self) -> str:
        return "".join(part if isinstance(part, str) else self.word(part) for part in self.said)


@contextmanager
def worded(word: Callable[[Option], str]) -> Iterator[None]:
    """Lets every ConfigError inside call options by their names here."""
    try:
        yield
    except ConfigError as error:
        error.word = word
        raise


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration.

    `at`: where it was given, as `run.yaml:7`, or as it was given, `--set loss.beta=2`; `key`: the
    dotted key, empty for the whole; `rule`: what is wrong, what is allowed, and the cure; `line`:
    all of it, for people.
    """

    at: str
    key: str
    rule: str
    line: str


class WrongKeysError(ConfigError):
    """All that is wrong with a configuration: one thing in a line, several numbered."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        lines = [problem.line for problem in problems]
        if len(lines) > 1:
            lines = [f"  {number}. {line}" for number, line in enumerate(lines, 1)]
            lines.insert(0, f"{source}: {len(problems)} things are wrong:")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)

    @property
    def in_one_line(self) -> str:
        """All of it: the first of several lines only says how many there are."""
        return "; ".join(problem.line for problem in self.problems)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error about a word that is none of those known: what was meant, if any of them
    is like it."""
    close = closest(word, known)
    return f"; did you mean {close}?" if close else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like another one, whatever the case of letters, if any is."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


class RunError(PipelineError):
    """A run that had begun cannot go on."""


class ProtocolError(RunError):
    """A peer said something that its life cycle does not allow, or that is not well formed."""


class TimedOutError(RunError):
    """A wait ended: the message says who waited for whom, for what, and how long."""


class CheckpointError(RunError):
    """A checkpoint is incomplete, damaged, or does not belong to this configuration."""


class CalledOffError(RunError):
    """A wait was called off: the run begins again or ends."""


class EngineLostError(RunError):
    """What starts and watches the workers is gone, and they with it or soon after."""


class StageFailedError(RunError):
    """A stage stopped. `summary` is one line; `remote_traceback` is the worker's own, or empty."""

    def __init__(self, summary: str, remote_traceback: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.remote_traceback = remote_traceback


class CutShortError(StageFailedError):
    """What comes next can't be read; what was learned up to `step` is saved."""

    def __init__(self, cause: PipelineError, step: int) -> None:
        remote = cause.remote_traceback if isinstance(cause, StageFailedError) else ""
        super().__init__(f"{cause}; a checkpoint of step {step} was written", remote)
        self.step = step


class StageLostError(StageFailedError):
    """A stage died, failed or hangs, and another process may take its place.

    `batch_id`: the training batch at which it failed by its own account; 0 where it gave none.
    `nonfinite`: whether it was a loss or a state that is not finite, for which the run is to begin
    again (`bad_batches.py`).
    """

    def __init__(
        self,
        stage: int,
        summary: str,
        remote_traceback: str = "",
        *,
        batch_id: int = 0,
        nonfinite: bool = False,
    ) -> None:
        super().__init__(summary, remote_traceback)
        self.stage = stage
        self.batch_id = batch_id
        self.nonfinite = nonfinite


def one_line(error: Exception) -> str:
    """What went wrong in a line: our own errors as they are, others with their type."""
    kind = type(error).__name__
    if not str(error).strip():
        return kind
    if isinstance(error, PipelineError):
        return error.in_one_line[:500]
    return f"{kind}: {_first_line(str(error))}"[:500]


def _first_line(text: str) -> str:
    """Some begin with empty lines."""
    lines = text.strip().splitlines()
    return lines[0].rstrip() if lines else ""


def cut(text: str, most: int = 100) -> str:
    """What somebody wrote, as far as an error of one line has room for it."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(name: str) -> str:
    """A name for people, in one line: what a terminal or a file could not show is escaped."""
    return name if name.isprintable() else repr(name)


class NonFiniteLossError(RunError):
    """A block's loss, or its state after the batch, is infinite or not a number.

    `CURE`: what may help where the run ends by it, under `runtime.on_nonfinite: stop`.
    """

    CURE = ": a lower optimizer.lr, or runtime.on_nonfinite skip_batch or rollback, may help"

    def __init__(self, block: int, batch_id: int, what: str = "loss") -> None:
        super().__init__(f"the {what} of block {block} is not finite at batch {batch_id}")
        self.block, self.batch_id = block, batch_id


class InterruptedRunError(PipelineError):
    """The person (or the cluster) asked the run to stop after `step`.

    There is a checkpoint of that step, unless `saved` is false: then training had not begun.
    """

    def __init__(self, step: int, *, saved: bool = True) -> None:
        how = "a checkpoint was written" if saved else "there was nothing to save yet"
        super().__init__(f"interrupted after step {step}: {how}")
        self.step = step
