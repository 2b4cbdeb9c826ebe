"""Model-parallel pipelined training with local losses (see README.md beside this file).

The names below are the library; everything else in this package may change. They are imported when
they are first used: neither this package nor a command that plans a run needs torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not there yet where commands begin (`launch/entry.py`)
if TYPE_CHECKING:
    from typing import Any

    from pipeline.api.callbacks import Callback
    from pipeline.api.classifier import LocalClassifier
    from pipeline.api.export import export
    from pipeline.api.fit import fit
    from pipeline.api.fitted import FittedRun
    from pipeline.api.load import load
    from pipeline.errors import ConfigError, PipelineError
    from pipeline.network.localise import localise
    from pipeline.rules.rule import Batch, LocalRule, OwnOptimizer, Place

__version__ = "0.1.0"

_MODULES = {
    "Batch": "pipeline.rules.rule",
    "Callback": "pipeline.api.callbacks",
    "ConfigError": "pipeline.errors",
    "FittedRun": "pipeline.api.fitted",
    "LocalClassifier": "pipeline.api.classifier",
    "LocalRule": "pipeline.rules.rule",
    "OwnOptimizer": "pipeline.rules.rule",
    "PipelineError": "pipeline.errors",
    "Place": "pipeline.rules.rule",
    "export": "pipeline.api.export",
    "fit": "pipeline.api.fit",
    "load": "pipeline.api.load",
    "localise": "pipeline.network.localise",
}
"""Where each public name is."""

__all__ = [
    "Batch",
    "Callback",
    "ConfigError",
    "FittedRun",
    "LocalClassifier",
    "LocalRule",
    "OwnOptimizer",
    "PipelineError",
    "Place",
    "export",
    "fit",
    "load",
    "localise",
]


if not TYPE_CHECKING:  # to which all names would be there

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
