"""The public names of the library."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pipeline

PUBLIC = [
    "Batch", "Callback", "ConfigError", "FittedRun", "LocalClassifier", "LocalRule",
    "OwnOptimizer", "PipelineError", "Place", "export", "fit", "load", "localise",
]  # fmt: skip


def test_the_library_has_these_names_and_no_others() -> None:
    assert pipeline.__all__ == PUBLIC
    assert dir(pipeline) == sorted([*PUBLIC, "__version__"])
    assert all(getattr(pipeline, name).__name__ == name for name in PUBLIC)
    with pytest.raises(AttributeError, match="has no attribute 'Fit'"):
        pipeline.Fit  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    program = "import json, sys, pipeline; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "pipeline" in loaded
    assert not loaded & {"torch", "numpy", "sklearn", "zmq", "launch", "pydantic"}
