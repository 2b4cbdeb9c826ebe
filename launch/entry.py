"""Where commands begin: nothing of the current folder may be imported, so that a user's `queue.py`
is never taken for Python's own. It comes to be there by `python -m`, or by a PYTHONPATH that is
relative or has an empty entry.

Nothing but what Python itself has imported by then may be imported before the path is set.
"""

from __future__ import annotations

import os
import sys

COMMANDS = {
    "pipeline-launch": "launch.cli",
    "pipeline-verify": "launch.verify",
    "pipeline-eval": "launch.evaluate",
    "pipeline-predict": "launch.predict",
    "pipeline-report": "launch.report.command",
    "pipeline-export": "launch.export",
    "pipeline-init": "launch.init",
    "pipeline-sweep": "launch.sweep",
    "pipeline-reproduce": "launch.reproduce",
    "pipeline-referee": "launch.referee.command",
}
"""Every command, and the module whose `main` it is; pyproject.toml has a script for each."""


def leave_current_folder() -> None:
    """Take the current folder from the module path, of this process and of those that it starts;
    `pipeline` is the one beside this package, wherever that lies."""
    path = os.environ.get("PYTHONPATH")
    if path:
        os.environ["PYTHONPATH"] = os.pathsep.join(_without_current_folder(path.split(os.pathsep)))
    before = sys.path[:]
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    try:
        import pipeline  # noqa: F401
    finally:
        sys.path[:] = _without_current_folder(before)


def pipeline_launch() -> None:
    _begin("pipeline-launch")


def pipeline_verify() -> None:
    _begin("pipeline-verify")


def pipeline_eval() -> None:
    _begin("pipeline-eval")


def pipeline_predict() -> None:
    _begin("pipeline-predict")


def pipeline_report() -> None:
    _begin("pipeline-report")


def pipeline_export() -> None:
    _begin("pipeline-export")


def pipeline_init() -> None:
    _begin("pipeline-init")


def pipeline_sweep() -> None:
    _begin("pipeline-sweep")


def pipeline_reproduce() -> None:
    _begin("pipeline-reproduce")


def pipeline_referee() -> None:
    _begin("pipeline-referee")


def _begin(command: str) -> None:
    try:
        leave_current_folder()
        from importlib import import_module

        main = import_module(COMMANDS[command]).main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def _interrupted() -> SystemExit:
    """Ctrl-C while modules are imported, before anything of the command's own could hear it."""
    print("interrupted", file=sys.stderr)
    return SystemExit(130)


def _without_current_folder(entries: list[str]) -> list[str]:
    """As `pipeline.system.interpreter`, which could not be imported safely before this."""
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was deleted
        return [entry for entry in entries if os.path.isabs(entry)]
    absolute = [os.path.abspath(entry) for entry in entries if entry]
    return [entry for entry in absolute if os.path.realpath(entry) != here]
