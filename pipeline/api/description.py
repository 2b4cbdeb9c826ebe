"""The text beside an exported network: what it takes and gives, how to load it, its source."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

import torch

from launch.machine.provenance import program
from pipeline.api.formats import GRAPHS, INPUT, OUTPUT
from pipeline.api.plain_code import code_of
from pipeline.config.config_file import dump_config
from pipeline.errors import printable
from pipeline.learning.block_file import kind_of
from pipeline.run.metrics import tested
from pipeline.system.given import is_given

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pipeline.api.formats import Format
    from pipeline.api.load import Loaded

_READ = {
    "safetensors": "from safetensors.torch import load_file\n\nstate = load_file({file!r})\n",
    "state-dict": "import torch\n\nstate = torch.load({file!r}, weights_only=True)\n",
    "torch-export": "import torch\n\nnetwork = torch.export.load({file!r}).module()\n",
    "onnx": "import onnxruntime\n\nsession = onnxruntime.InferenceSession({file!r})\n"
    "# for an array x: (y,) = session.run(None, {{{input!r}: x}})\n",
}
"""Python that reads a file of each format."""
_LOADED = "network.load_state_dict(state)\nnetwork.eval()\n"


def description(
    run: Loaded,
    file: str,
    format: Format,
    *,
    depth: int | None,
    preprocess: bool,
    example: Tensor,
    result: Tensor,
) -> str:
    """The text of a file of that name. `example`: (n, …), what the module takes; `result`: (n, …),
    what it gives for that."""
    sections = {
        "Input": [f"{INPUT}: {_kind(example)}", *_values(run, preprocess)],
        "Output": [f"{OUTPUT}: {_kind(result)}", *_meaning(run, depth)],
        "Classes": _classes(run),
        "To load it, without this package": _python(run, file, format, depth).splitlines(),
        "Source": list(_source(run, depth)),
        "Configuration of the run": dump_config(run.config).splitlines(),
    }
    title = f"{file}: a trained network without its local classifiers, as {format}"
    parts = [title, *(_section(name, lines) for name, lines in sections.items() if lines)]
    return "\n\n".join(parts) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return f"{title}\n" + indent("\n".join(lines), "    ")


def _kind(batch: Tensor) -> str:
    kind, _, shape = kind_of(batch[:1]).partition(" (1")
    return f"{kind} (n{shape}, n examples"


def _values(run: Loaded, preprocess: bool) -> list[str]:
    """What is to be put in."""
    facts, data = run.facts, run.config.data
    image = len(facts.shape) == 3
    if facts.dtype == "int64":
        return [f"token ids from 0 to {facts.tokens - 1}"]
    values = "values v as they are in the data"
    if facts.dtype == "uint8":
        values = "bytes v from 0 to 255"
    lines = [f"{values}; (n, channels, height, width)" if image else values]
    if image and facts.shape[0] == 3 and not data.is_own:
        lines[0] += "; channels red, green, blue"
    scaled = "v / 255" if facts.dtype == "uint8" else "v"
    if facts.mean:
        each = "" if len(facts.mean) == 1 else f", by {'channel' if image else 'place'}"
        formula = f"({scaled} - mean) / std{each}"
    else:
        formula = scaled
    if formula == "v":
        return lines
    where = "normalised inside:" if preprocess else "to be normalised before: x ="
    lines.append(f"{where} {formula}")
    if facts.mean:
        lines += [f"mean: {_numbers(facts.mean)}", f"std: {_numbers(facts.std)}"]
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(map(repr, values))


def _meaning(run: Loaded, depth: int | None) -> list[str]:
    """Lines that say what the exported network gives for a batch."""
    last = run.specs[(depth or len(run.specs)) - 1]
    if not last.is_output:
        lines = [f"what block {last.index} ({last.name}) of {len(run.specs)} passes on: features"]
        if last.is_last:
            lines.append("(its rule has it learn without an output layer)")
        return lines
    if not run.facts.classes:
        return ["numbers, as the targets of the data are"]
    return ["logits: the class with the highest is the most likely one; their softmax over the",
            "second dimension gives probabilities"]  # fmt: skip


def _classes(run: Loaded) -> list[str]:
    classes, data = run.facts.classes, run.state.data
    if not classes:
        return []
    if data and len(data.classes) == classes:
        return [f"{index}: {printable(name)}" for index, name in enumerate(data.classes)]
    return [f"{classes}, 0 to {classes - 1}; the data have no names of them"]


def _python(run: Loaded, file: str, format: Format, depth: int | None) -> str:
    read = _READ[format].format(file=file, input=INPUT)
    if format in GRAPHS:
        return read
    if run.config.model.factory is None:
        return f"{code_of(run.module)}\n{read}{_LOADED}"
    return f"{read}network = …  # {_made(run, depth)}\n{_LOADED}\n# {_shown(run)}"


def _made(run: Loaded, depth: int | None) -> str:
    """Where a user's own network is from."""
    factory = run.config.model.factory
    whole = "the network that pipeline.fit was given"
    if not is_given(factory):
        whole = f"what {factory} gives for {dict(run.config.model.kwargs)}"
    if depth is None:
        return whole
    return f"the first {len(run.module)} children of {whole}"  # type: ignore[arg-type]


def _shown(run: Loaded) -> str:
    return repr(run.module).replace("\n", "\n# ")


def _source(run: Loaded, depth: int | None) -> Iterator[str]:
    yield f"run: {run.path}"
    if depth is not None:
        yield f"depth: the first {depth} of {len(run.specs)} blocks"
    epoch = f", epoch {run.test['epoch']}" if "epoch" in run.test else ""
    yield f"checkpoint: step {run.state.position.step}{epoch}"
    part, found = tested(run.test)
    if found.get("error_pct") is not None:
        yield f"{part} error of the whole network there: {found['error_pct']:.2f} %"
    if found.get("loss") is not None:
        yield f"{part} loss of the whole network there: {found['loss']:.4f}"
    if run.state.data:
        yield run.state.data.summary(run.config.data.name)
        yield f"digest of the data: {run.state.data.digest}"
    yield f"exported by: {program()}, torch {torch.__version__}"
