"""The exception tree.

`ConfigError` is for the person at the keyboard: it names the thing, the rule and the cure, and
nothing has been started when it is raised. Everything else is a `RunError`: the run had begun.
What only a bug in this project can break is an `assert`, not one of these.
"""


class PipelineError(Exception):
    """Base of everything this project raises on purpose."""


class ConfigError(PipelineError):
    """Wrong usage or configuration; raised before anything is started or overwritten."""


class RunError(PipelineError):
    """A run that had begun cannot go on."""


class ProtocolError(RunError):
    """A peer said something that its life cycle does not allow, or that is not well formed."""


class TimedOutError(RunError):
    """A wait ended: the message says who waited for whom, for what, and how long."""


class CheckpointError(RunError):
    """A checkpoint is incomplete, damaged, or does not belong to this configuration."""


class StageFailedError(RunError):
    """A stage stopped. `summary` is one line; `remote_traceback` is the worker's own, or empty."""

    def __init__(self, summary: str, remote_traceback: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.remote_traceback = remote_traceback


class InterruptedRunError(PipelineError):
    """The person (or the cluster) asked the run to stop; there is a checkpoint of `step`.

    `step` is None where the run had not begun and there is nothing to resume.
    """

    def __init__(self, step: int | None) -> None:
        super().__init__("interrupted" if step is None else f"interrupted after step {step}")
        self.step = step
