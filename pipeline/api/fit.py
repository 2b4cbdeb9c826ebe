"""`pipeline.fit`: the same run as the commands', from Python objects."""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Literal

from pipeline.api.arguments import as_argument
from pipeline.api.asked import asked
from pipeline.api.callbacks import Callbacks
from pipeline.api.caller import settings_kept
from pipeline.api.fitted import FittedRun
from pipeline.errors import ConfigError, InterruptedRunError, worded
from pipeline.run.metrics import METRICS_FILE
from pipeline.storage.checkpoint import complete_checkpoints
from pipeline.storage.checkpoint_writer import CHECKPOINTS
from pipeline.system.given import objects_given

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from launch.job import Job, Options
    from pipeline.api.asked import Asked
    from pipeline.api.callbacks import AnyCallback
    from pipeline.config.sections import Config
    from pipeline.data.facts import DataFacts
    from pipeline.rules.rule import LocalRule


def fit(
    network: nn.Module | Sequence[nn.Module] | str | None = None,
    data: Any = None,
    *,
    loss: str | type[LocalRule] | Mapping[str, Any] | None = None,
    stages: int | None = None,
    gpus: str | Sequence[int] | None = None,
    engine: Literal["local", "ray"] = "local",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    test: Any = None,
    validation: float | None = None,
    init_from: str | Path | Mapping[str, Any] | None = None,
    freeze: Sequence[int] | None = None,
    data_parallel: int | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[AnyCallback] = (),
    quiet: bool = False,
    trace: int | None = None,
) -> FittedRun:
    """Train a network without global backprop, and give what came of it.

    Objects need no names: a worker process gets a copy of the network and the rule from this
    process, and imports nothing of the script that calls. The objects themselves stay as they are.
    Torch's settings, and all generators of this process, are as before afterwards.

    Args:
        network: an `nn.Sequential` or a list of modules, of which every one with parameters is a
            block; another `nn.Module`, which is cut into blocks by `pipeline.localise`; or a name
            that `model.name` may have, as "vgg8b".
        data: what to train on: (X, y) of arrays or tensors, X of (n, …); a map-style Dataset; two
            of these, to train and to test on; all that `data.factory` may give (docs/data.md). Or
            the name of a data set, as "digits", an .npz file, or a folder of images.
        loss: a loss by name (default "predsim"), a `LocalRule` class, or the keys of a section
            `loss`, as `{"name": "predsim", "beta": 0.9}` or `{"rule": Rule, "options": {…}}`.
        stages: how many worker processes; None: none, all is done in this one. The weights are
            the same, bit for bit.
        gpus: devices, as "0-3", [0, 1] or "cpu"; None: all visible GPUs, else the CPU.
        engine: where worker processes run: this machine, or the Ray cluster that RAY_ADDRESS names;
            without it, Ray is started here (docs/cluster.md).
        epochs, batch_size, lr, seed: `schedule.epochs`, `data.batch_size`, `optimizer.lr`,
            `runtime.seed`; None: as configured.
        test: what to test on after each epoch, (X, y) or a Dataset; None: what `data` has for it.
        validation: the share of `data` that is kept from training, and tested on.
        init_from: the folder of a run whose weights to begin with, or as `model.init_from` has it,
            `{"run": folder, "checkpoint": "best", "blocks": [0, 1]}`; of a network of your own,
            tensors are taken by the index of their block and their names in it.
        freeze: blocks that learn nothing, by index: `model.freeze`.
        data_parallel: so many worker processes, each of which holds the whole network and learns
            from a share of every batch: `parallel.members`, which changes results (docs/speed.md).
        config: a configuration to begin with, as a `Config`, its keys, or a file. What the other
            arguments say goes before it.
        options: any keys of a configuration, as `{"optimizer.momentum": 0.9}`.
        run_dir: the folder of the run, which keeps its checkpoints; None: a temporary one, which
            is removed with the result, and stays where the run has ended by an error.
        resume: go on with the run in `run_dir`, given the same objects.
        callbacks: functions that are called with each new row of the history and end the run by
            giving True, or `Callback`s.
        quiet: show nothing; else progress is shown as by the commands.
        trace: of how many batches, the first ones, `trace.json` in the run's folder shows what each
            stage did and when (docs/running.md).

    Raises:
        ConfigError: for what is wrong, before anything is started; for what a network or a rule
            does only later, such as a loss that is suddenly no scalar, in the middle of the run.
        PipelineError: what ended the run.
        KeyboardInterrupt: after a checkpoint, where the run was interrupted (Ctrl-C, SIGTERM).
    """
    short = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "validation": validation,
        "init_from": init_from,
        "freeze": freeze,
        "data_parallel": data_parallel,
    }
    if data_parallel is not None and stages is None:
        stages = 1  # each process has the whole network
    if resume and run_dir is None:
        raise ConfigError("resume: which run? name its folder with run_dir")
    with settings_kept(), worded(as_argument):
        wanted = asked(network, data, test, loss, config, short, options or {})
        if stages is not None:
            wanted = replace(wanted, given=wanted.given.for_workers())
        view: Literal["quiet", "auto"] = "quiet" if quiet else "auto"
        temporary = None if run_dir is not None else Path(mkdtemp(prefix="pipeline-fit-"))
        try:
            run = _trained(
                wanted,
                replace(
                    _options(stages, gpus, temporary or run_dir, resume, view),
                    trace=trace,
                    engine=engine,
                ),
                Callbacks(callbacks),
            )
        except BaseException:
            if temporary and not _is_worth_keeping(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if temporary:
            weakref.finalize(run, _remove, temporary, os.getpid())
    return run


def _is_worth_keeping(folder: Path) -> bool:
    """Whether a run that failed has left a checkpoint, or a batch to look at, which its error
    names."""
    return bool(complete_checkpoints(folder / CHECKPOINTS)) or any(folder.glob("batch-*"))


def _options(
    stages: int | None,
    gpus: str | Sequence[int] | None,
    run_dir: str | Path | None,
    resume: bool,
    view: Literal["quiet", "auto"],
) -> Options:
    from launch.job import Options
    from launch.run_directory import folder_named

    if gpus is not None and not isinstance(gpus, Iterable):
        raise ConfigError(f"gpus {gpus}: a number or a device? give [{gpus}] or '{gpus}' for that")
    return Options(
        None,
        stages=stages,
        gpus=gpus if gpus is None or isinstance(gpus, str) else ",".join(map(str, gpus)),
        single=stages is None,
        run_dir=None if run_dir is None else folder_named("run_dir", run_dir),
        resume=resume,
        view=view,
        # without arguments, which are the script's own, and may hold a secret
        command=f"pipeline.fit in {Path(sys.argv[0]).name}" if sys.argv[0] else "pipeline.fit",
    )


def _trained(wanted: Asked, options: Options, callbacks: Callbacks) -> FittedRun:
    from launch.plan.checks import check_engine, check_job
    from launch.run_job import cluster_for, run_folder, run_job

    given = wanted.given
    check_engine(options)
    with objects_given(given), cluster_for(options) as cluster:
        job = check_job(wanted.name, wanted.config, options, cluster)
        job = replace(job, milestones_for=wanted.milestones_for)
        with run_folder(job, options) as folder:
            try:
                finished = run_job(
                    job,
                    folder,
                    options,
                    cluster=cluster,
                    watcher=callbacks if callbacks.given else None,
                    packed=given.packed,
                )
            except InterruptedRunError as error:
                callbacks.raise_failure()
                where = str(folder.path.absolute())
                raise KeyboardInterrupt(
                    f"{error}; to go on: pipeline.fit(…, run_dir={where!r}, resume=True)"
                ) from error
            callbacks.raise_failure()
            facts = finished.facts or _facts(job)
            lines = folder.folder.read(METRICS_FILE)
            run = FittedRun(job, finished.state, facts, folder.path.absolute(), lines, given)
    callbacks.on_end(run)
    return run


def _facts(job: Job) -> DataFacts:
    """Of the data of a run that needed no more training."""
    from pipeline.data.batches import load_batches

    return load_batches(job.config.data, job.config.runtime.seed, own=job.own_data).facts


def _remove(path: Path, process: int) -> None:
    """In the process that made it: one that it forked has the result, too."""
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)
