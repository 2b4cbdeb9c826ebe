"""What a resumed run starts from: its newest complete checkpoint; what may have changed since."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.config.config_file import load_config
from pipeline.config.sections import build_config, differing_keys
from pipeline.config.yaml_text import word_for
from pipeline.errors import RESUME, RUN_DIR, SET, CheckpointError, ConfigError, Option
from pipeline.run.metrics import epoch_lines_in
from pipeline.schedule.feed import Feed, course_of
from pipeline.schedule.items import Stop
from pipeline.storage.checkpoint import (
    Checkpoint,
    Initial,
    RunState,
    checkpoint_in,
    complete_names,
    way_back,
)
from pipeline.storage.checkpoint_writer import CONFIG, checkpoints_of
from pipeline.storage.folder import Folder
from pipeline.system.sources import changed_files

if TYPE_CHECKING:
    from pathlib import Path

    from launch.job import Job
    from pipeline.config.sections import Config
    from pipeline.rehearsal.rehearsal import Rehearsal

_FREE_TO_CHANGE = (
    "schedule.", "runtime.", "optimizer.lr", "optimizer.clip_norm", "optimizer.blocks", "data.root",
    "data.file", "data.download", "data.on_bad_image", "data.accept",
)  # fmt: skip
CODE = "code.txt"
"""A line for each file of the user's own code that the run was last started with, with a digest."""
_OF_A_NETWORK = ("encoder.", "tail.")
"""How the names of a user's tensors begin in a block's file."""
_BOUND = ("runtime.seed", "runtime.precision", "runtime.wire_dtype", "schedule.greedy")
_NO_MATTER = ("data.root", "data.download", "runtime.")
_MATTER = ("runtime.seed", "runtime.precision", "runtime.wire_dtype")


def start_state(run: Folder, job: Job) -> tuple[RunState, list[str]]:
    """What to resume from, verified, and notes on what was changed since.

    Raises:
        ConfigError: where there is no run, or one of another configuration.
        CheckpointError: naming the damaged file, with a way back.
    """
    checkpoints = _checkpoints(run)
    if checkpoints is None:
        return _from_the_beginning(run, job)
    with checkpoints:
        while names := complete_names(checkpoints):
            try:
                return _from_checkpoint(run, checkpoint_in(checkpoints, names[-1]), job)
            except CheckpointError as error:
                # without a lock the run may be at work, and have dropped this checkpoint just now
                if complete_names(checkpoints)[-1:] == names[-1:]:
                    advice = way_back(checkpoints.path, checkpoints.path / names[-1])
                    raise CheckpointError(f"{error}; {advice}") from None
        return _from_the_beginning(run, job)


def look(path: Path, job: Job) -> None:
    """Check that the run in a folder can be resumed, without locking it.

    Raises:
        ConfigError: as `start_state` and `nothing_left`.
        CheckpointError: as `start_state`.
    """
    try:
        run = Folder.open(path)
    except FileNotFoundError:
        raise no_folder(path) from None
    except OSError as error:
        raise ConfigError(RUN_DIR, f" {path}: can't be opened: {error.strerror}") from None
    with run:
        start, _ = start_state(run, job)
        nothing_left(job, start, path)


def nothing_left(job: Job, start: RunState, path: Path) -> str:
    """That a run is finished, and how to train longer; empty where there is something to do.

    Raises:
        ConfigError: where more was trained than `schedule.epochs` says.
    """
    if start.steps_per_epoch is None:
        return ""
    course = course_of(job.config, job.specs, start.steps_per_epoch, evaluation_batches=1)
    trained = course.epoch_of(start.position.step)
    if start.position.step > course.steps:
        raise ConfigError(
            RESUME,
            f": schedule.epochs is {job.config.schedule.epochs}, but the run in {path} is in epoch "
            f"{trained} already; use ",
            SET,
            f" schedule.epochs={trained} or more, or start a new run",
        )
    feed = Feed(course, start.position, best=start.best)
    if not all(isinstance(item, Stop) for item in feed):
        return ""
    if feed.ended_early:
        best = start.best
        longer = best.epochs_since + (course.patience or 0)
        return (
            f"nothing to do: the run in {path} ended early, after epoch {best.tested} of "
            f"{course.all_epochs}: {best.in_words()}; to go on, raise schedule.patience, as --set "
            f"schedule.patience={longer}, or leave it out (null)"
        )
    said = f"nothing to do: the run in {path} has trained all its {course.all_epochs} epochs"
    if job.config.schedule.greedy:
        return said
    return f"{said}; to go on, raise schedule.epochs, as --set schedule.epochs={2 * trained}"


def what_differs(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Keys at which two configurations differ in what can change a result, with both values.

    Threads may change how a sum is rounded, but not the method: they are recorded, no more.
    """
    return {
        key: values
        for key, values in differing_keys(one, other).items()
        if key in _MATTER or not key.startswith(_NO_MATTER)
    }


def is_finished(path: Path, job: Job) -> bool:
    """Whether the run in a folder has nothing left to train; without reading its weights.

    Raises:
        ConfigError: as `nothing_left`.
    """
    # what is damaged is not finished, and is told when the run is resumed
    with suppress(OSError, CheckpointError), Folder.open(path) as run, checkpoints_of(run) as kept:
        if names := complete_names(kept):
            return bool(nothing_left(job, checkpoint_in(kept, names[-1]).state, path))
    return False


def no_folder(path: Path) -> ConfigError:
    """The error of resuming in a folder that isn't there."""
    return ConfigError(
        *(RESUME, f": there is no folder {path}; name the run's folder with ", RUN_DIR),
        *(", or start without ", RESUME),
    )


def no_run(path: Path) -> ConfigError:
    """The error of resuming where nothing can be resumed."""
    return ConfigError(
        *(RESUME, f": {path} holds no complete checkpoint; start without ", RESUME),
        *(", or name the run's folder with ", RUN_DIR),
    )


def _checkpoints(run: Folder) -> Folder | None:
    try:
        return checkpoints_of(run)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(RESUME, f": {run.path}: can't be read: {error}") from None
    except CheckpointError as error:
        raise ConfigError(RESUME, f": {error}") from None


def _from_checkpoint(run: Folder, checkpoint: Checkpoint, job: Job) -> tuple[RunState, list[str]]:
    before = build_config(checkpoint.config, str(checkpoint.path))
    notes = _compare(before, job.config, run.path)
    if len(checkpoint.digests) != len(job.specs):
        raise _another_network(
            checkpoint, f"{len(checkpoint.digests)} blocks, the network has {len(job.specs)}"
        )
    if checkpoint.form == "weights":
        raise ConfigError(
            RESUME,
            f": {checkpoint.path}: holds weights only (runtime.best_form), from which no "
            "run goes on: start a new one with model.init_from",
        )
    start = checkpoint.start()
    if job.rehearsal:
        _check_user_network(checkpoint, start, job.rehearsal)
    notes += [*_risen_rate(before, job, start), *_changed_code(run, job)]
    return start, [f"resuming from {checkpoint.path.name}", *notes]


def _risen_rate(before: Config, job: Job, start: RunState) -> list[str]:
    """Milestones as shares of the run, a cosine and a warm-up follow the epochs: with more of them
    a run goes on at a higher rate than it had come down to."""
    if before.schedule == job.config.schedule or start.steps_per_epoch is None:
        return []
    step = start.position.step
    courses = (
        course_of(config, job.specs, start.steps_per_epoch, evaluation_batches=1)
        for config in (before, job.config)
    )
    last, following = (course.learning_rate(step + k) for k, course in enumerate(courses))
    if not step or following <= last:
        return []
    return [f"by the changed schedule the learning rate goes up from {last:.3g} to {following:.3g}"]


def _from_the_beginning(run: Folder, job: Job) -> tuple[RunState, list[str]]:
    """A run that ended before its first checkpoint is resumed by starting it again."""
    checkpoints = _checkpoints(run)
    names = checkpoints.names() if checkpoints else []
    if not run.has_file(CONFIG) or any(name.startswith("step-") for name in names):
        raise no_run(run.path)
    if checkpoints is None and epoch_lines_in(run):
        raise ConfigError(
            *(
                RESUME,
                f": the checkpoints of {run.path} are gone, and to begin anew would replace ",
            ),
            *("what is left of that run; bring them back, or start another without ", RESUME),
        )
    notes = _compare(load_config(run.path / CONFIG), job.config, run.path)
    initial = Initial()
    if job.config.model.init_from is not None:
        from pipeline.trained.initial import initial_of  # torch

        initial = initial_of(job.config, job.specs)
    said = ["no checkpoint yet: starting at the beginning", *notes, *initial.notes]
    return RunState(initial=initial), said


def _check_user_network(checkpoint: Checkpoint, start: RunState, rehearsal: Rehearsal) -> None:
    """Check that a user's function gives the network of the checkpoint, and that all that training
    changes is in it: earlier versions did not keep buffers that are not persistent."""
    from pipeline.learning.block_file import decode_block, kind_of  # torch, as in the rehearsal

    users = {held.block for held in rehearsal.tensors}
    for block, data in start.files.items():
        if block not in users:  # a block of ours, as the output layer beside a user's rule
            continue
        kinds = {name: kind_of(tensor) for name, tensor in decode_block(bytes(data)).items()}
        own = [held for held in rehearsal.tensors if held.block == block]
        # rather what the user wrote than a head that follows from it
        for held in sorted(own, key=lambda held: not held.name.startswith(_OF_A_NETWORK)):
            found = kinds.pop(held.name, None)
            if found is None and held.moves and not held.persistent:
                raise ConfigError(
                    RESUME,
                    f": {checkpoint.path}: is of an earlier version, which did not keep {held.name}"
                    f" of block {block} (a buffer that is not persistent), though training changes "
                    "it: it would start anew and give other weights; start a new run",
                )
            if found != held.kind and (found or held.persistent):
                raise _another_network(
                    checkpoint,
                    f"{held.name} of block {block} is {found or 'missing'}, in the network it is "
                    f"{held.kind}",
                )
        for name in kinds:
            if name.startswith(_OF_A_NETWORK) and not name.endswith("._extra_state"):
                raise _another_network(checkpoint, f"the network has no {name} in block {block}")


def _changed_code(run: Folder, job: Job) -> list[str]:
    """A note where the user's own code is not as it was; that may be on purpose."""
    if not run.has_file(CODE):
        return []  # the network is a built-in one, or the run of an earlier version
    before = run.read(CODE).decode(errors="replace").splitlines()
    files = changed_files(before, job.own_code)
    if not files:
        return []
    more = f" and {len(files) - 1} more of your files" if files[1:] else ""
    return [f"{files[0]}{more} changed since the run was started: from here on it trains by that"]


def _another_network(checkpoint: Checkpoint, what: str) -> ConfigError:
    return ConfigError(
        RESUME,
        f": {checkpoint.path}: {what}: your own code gives another network than the run began "
        "with; bring that one back, or start a new run",
    )


def _compare(before: Config, now: Config, path: Path) -> list[str]:
    """Refuse what would make another network or another sequence of batches; name the rest."""
    notes = []
    for key, values in differing_keys(before, now).items():
        old, new = map(word_for, values)
        moves_phases = now.schedule.greedy and key == "schedule.epochs"
        if key in _BOUND or moves_phases or not key.startswith(_FREE_TO_CHANGE):
            raise ConfigError(
                *(RESUME, f": {key} is {new}, but the run in {path} began with {old}; use "),
                *(*_as_before(key, old), ", or start a new run"),
            )
        left = _left_behind(before, now) if key == "schedule.epochs" else ""
        notes.append(f"{key} changed from {old} to {new}{left}")
    return notes


def _as_before(key: str, value: str) -> tuple[str | Option, ...]:
    """How to ask for the value that a key had; options go before what is said of keys."""
    if key == "parallel.members":
        return Option("data_parallel"), f" {value}"
    said = SET, f" {shlex.quote(f'{key}={value}')}"
    return (*said, " without ", Option("replicas")) if key == "parallel.replicas" else said


def _left_behind(before: Config, now: Config) -> str:
    """What to add of milestones that stay where they were, while the epochs change."""
    milestones = now.schedule.milestones
    moves = now.schedule.milestones_are_shares or milestones != before.schedule.milestones
    return "" if moves or not milestones else f"; schedule.milestones stays {word_for(milestones)}"
