"""Where commands begin: nothing of the current folder may be imported, so that a user's `queue.py`
is never taken for Python's own. It comes to be there by `python -m`, or by a PYTHONPATH that is
relative or has an empty entry.

Nothing but what Python itself has imported by then may be imported before the path is set.
"""

from __future__ import annotations

import os
import sys


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
    try:
        leave_current_folder()
        from launch.cli import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_verify() -> None:
    try:
        leave_current_folder()
        from launch.verify import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_eval() -> None:
    try:
        leave_current_folder()
        from launch.evaluate import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_predict() -> None:
    try:
        leave_current_folder()
        from launch.predict import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_reproduce() -> None:
    try:
        leave_current_folder()
        from launch.reproduce import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_export() -> None:
    try:
        leave_current_folder()
        from launch.export import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_sweep() -> None:
    try:
        leave_current_folder()
        from launch.sweep import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_init() -> None:
    try:
        leave_current_folder()
        from launch.init import main
    except KeyboardInterrupt:
        raise _interrupted() from None
    main()


def pipeline_report() -> None:
    try:
        leave_current_folder()
        from launch.report.command import main
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
