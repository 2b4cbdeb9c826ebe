"""pipeline-predict: what a run's network says of images, or of examples in an .npz file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from launch.command import PathType, command, run_command
from launch.read_run import checkpoint_option, existing, read_run, run_argument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from launch.read_run import TrainedRun

ARRAYS = ".npz"


def image_files(paths: Sequence[Path]) -> list[str]:
    """The files that paths lead to: themselves, or all images below a folder.

    Raises:
        ConfigError: where there is no image in a folder.
    """
    from pipeline.data.image_list import images_below
    from pipeline.errors import ConfigError

    found: list[str] = []
    for path in paths:
        below = images_below(path) if path.is_dir() else [str(path)]
        if not below:
            raise ConfigError(f"IMAGE {path}: there is no image in this folder")
        found += below
    return found


def named_examples(
    paths: Sequence[Path], trained: TrainedRun
) -> tuple[int, Iterator[tuple[list[dict[str, Any]], NDArray[np.generic] | Tensor]]]:
    """How many examples there are; what to call them (a file, or a place in an .npz file), and the
    examples, so many at once.

    Raises:
        ConfigError: where they can't be read.
    """
    from pipeline.data.beside import images_at, inputs_at
    from pipeline.errors import ConfigError
    from pipeline.system.named_object import naming

    network = trained.network
    for path in paths:
        existing("IMAGE", path)
    arrays = [path for path in paths if path.suffix == ARRAYS]
    if arrays:
        if len(paths) > 1:
            raise ConfigError(f"{arrays[0]}: give one {ARRAYS} file alone, or images")
        with naming(str(arrays[0])):
            x = network.inputs(inputs_at(arrays[0]))
        return len(x), iter([([{"example": k} for k in range(len(x))], x)])
    files = image_files(paths)
    found = images_at(files, network.config.data, network.facts)
    return len(files), (([{"file": file} for file in part], images) for part, images in found)


def answers(scores: Tensor | None, trained: TrainedRun, top: int) -> Iterator[dict[str, Any]]:
    """For each example its most likely classes with their probabilities, or the numbers.

    Raises:
        ConfigError: where the network predicts nothing, or several classes for each example.
    """
    from pipeline.errors import ConfigError

    facts, names = trained.network.facts, trained.classes
    if scores is None:
        raise ConfigError(
            f"by loss.rule {trained.network.config.loss.rule} the last block has no scores"
        )
    if not facts.classes:
        yield from ({"numbers": row} for row in scores.flatten(1).tolist())
        return
    if facts.target_shape:
        raise ConfigError(
            f"this run predicts targets of shape {facts.target_shape} for each example: load it "
            "by pipeline.load"
        )
    likeliest = scores.softmax(dim=1).topk(min(top, facts.classes), dim=1)
    for probabilities, classes in zip(*(each.tolist() for each in likeliest), strict=True):
        yield {
            "classes": [
                {"class": names[k], "probability": round(p, 6)}
                for p, k in zip(probabilities, classes, strict=True)
            ]
        }


def in_words(about: dict[str, Any]) -> str:
    """An answer as a line for people."""
    from pipeline.errors import printable

    name = printable(str(about.get("file", about.get("example"))))
    if "numbers" in about:
        return f"{name}: {' '.join(f'{number:.6g}' for number in about['numbers'])}"
    found = (f"{printable(each['class'])} {each['probability']:.4f}" for each in about["classes"])
    return f"{name}: {', '.join(found)}"


@command
@run_argument
@click.argument(
    "inputs",
    metavar="IMAGE…|FOLDER|FILE.npz",
    nargs=-1,
    required=True,
    type=PathType(),
)
@click.option(
    "--top",
    metavar="K",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many of the most likely classes.",
)
@checkpoint_option
@click.option("--json", "as_json", is_flag=True, help="An object in JSON on each line.")
def main(run: Path, inputs: tuple[Path, ...], top: int, checkpoint: str, as_json: bool) -> None:
    """Predict the classes of images, of all images in a folder, or of the examples X (or x_test) of
    an .npz file, with the network of a run's folder RUN: on the CPU, a line for each.

    Images are decoded, scaled, cut and normalised as the run does in its tests.

    \b
    Exit status: 0 done; 1 a damaged checkpoint; 2 wrong usage or images; 130 interrupted.
    """

    def body() -> int:
        import json
        from contextlib import nullcontext
        from itertools import chain, count

        from launch.command import DONE
        from launch.display.view import looking_shown

        trained = read_run(run, checkpoint)
        n, found = named_examples(inputs, trained)
        done = count(1)
        # lines on a terminal show by themselves how far it is, and leave no room for a bar
        with nullcontext() if sys.stdout.isatty() else looking_shown() as show:
            for names, examples in found:
                parts = trained.network.scores_by_part(examples)
                answered = (answers(scores[-1], trained, top) for scores in parts)
                for name, answer in zip(names, chain.from_iterable(answered), strict=True):
                    about = {**name, **answer}
                    print(json.dumps(about) if as_json else in_words(about), flush=True)
                    if show:
                        show("predicting", next(done), n)
        return DONE

    run_command(body)


if __name__ == "__main__":
    main()
