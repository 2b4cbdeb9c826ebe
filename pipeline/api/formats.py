"""A plain module as a file that other programs read.

safetensors, state-dict     tensors by name: what `module.state_dict()` has
torch-export, onnx          what it computes, too, for batches of any size
"""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, Option, one_line
from pipeline.learning.augment import Preprocess
from pipeline.learning.block_file import encode_block

if TYPE_CHECKING:
    from pipeline.data.facts import DataFacts

Format: TypeAlias = Literal["safetensors", "state-dict", "torch-export", "onnx"]
SUFFIXES: dict[Format, str] = {
    "safetensors": ".safetensors",
    "state-dict": ".pt",
    "torch-export": ".pt2",
    "onnx": ".onnx",
}
GRAPHS = ("torch-export", "onnx")
"""Formats that say what is computed."""
INPUT, OUTPUT = "x", "y"
"""Names in a file of ONNX."""
_FORMAT = Option("format")
_ONNX = ("onnx", "onnxscript")
"""What torch's exporter imports."""


class FromData(nn.Module):
    """A network that takes examples as they are in the data, and normalises them as its run did."""

    def __init__(self, network: nn.Module, facts: DataFacts) -> None:
        super().__init__()
        self.network = network
        self._preprocess = Preprocess(facts.mean, facts.std, seed=0, device=torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape) of the type that the data have to what the network gives."""
        given: Tensor = self.network(self._preprocess.evaluate(x))
        return given


def check_format(format: str) -> None:
    """Raises ConfigError where there is none of that name, or a library that it needs is missing.
    Which comes before a network is read."""
    if format not in SUFFIXES:
        raise ConfigError(_FORMAT, f" {format!r}: there are {', '.join(SUFFIXES)}: use one of them")
    missing = [name for name in _ONNX if format == "onnx" and find_spec(name) is None]
    if missing:
        raise ConfigError(
            _FORMAT,
            f" onnx: needs {' and '.join(missing)}: pip install 'local-loss-pipeline[onnx]' (or "
            f"{' '.join(_ONNX)})",
        )


def encoded(module: nn.Module, format: Format, example: Tensor) -> bytes:
    """The file of a module in evaluation mode, on the CPU.

    Args:
        example: (n, …), what it takes; n is two or more, and any in the file.

    Raises:
        ConfigError: where torch can't say what it computes.
    """
    if format == "safetensors":
        return encode_block(module.state_dict())
    if format == "state-dict":
        return _saved(module.state_dict())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of what it is about to change in itself
            return _graph(module, format, example)
    except Exception as error:  # whatever torch, its converters and the user's modules raise
        cause = error.__cause__ or error
        assert isinstance(cause, Exception), cause
        raise ConfigError(
            _FORMAT,
            f" {format}: torch can't export this network: {one_line(cause)}; safetensors and "
            "state-dict hold its tensors",
        ) from error


def _graph(module: nn.Module, format: Format, example: Tensor) -> bytes:
    n = torch.export.Dim("n", min=1)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: n},))
    if format == "torch-export":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()
    made: Any = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: "n"},),  # the program has forgotten the name of that dimension
        verbose=False,
    )
    return bytes(made.model_proto.SerializeToString())


def _saved(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
