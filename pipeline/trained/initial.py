"""Where a network begins that is started from another run (`model.init_from`).

    a run's checkpoint ──▶ blocks, tensor by tensor, by name and shape ──▶ initial files of blocks
                           the others begin anew: heads, what depends on the number of classes

Files and names alone decide: the run's own code is not needed, and nothing of it is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import CheckpointError, ConfigError, worded
from pipeline.learning.block_file import decode_block, encode_block, kind_of
from pipeline.learning.build import build_blocks
from pipeline.network.named_blocks import check_there
from pipeline.network.tensor_names import OPTIMIZER, PRED, is_learned_by
from pipeline.storage.checkpoint import Initial
from pipeline.system.paths import expanded
from pipeline.trained.other_function import other_function
from pipeline.trained.run_folder import checkpoint_at, open_run

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from pipeline.config.model import InitFrom
    from pipeline.config.sections import Config
    from pipeline.errors import Option
    from pipeline.learning.block import Block
    from pipeline.network.specs import BlockSpec
    from pipeline.storage.checkpoint import Checkpoint
    from pipeline.storage.folder import Folder

KEY = "model.init_from"
"""What people call it."""
_CPU = torch.device("cpu")


def initial_of(config: Config, specs: Sequence[BlockSpec]) -> Initial:
    """What the blocks of a network begin with by `model.init_from`; nothing where it is not set.

    Raises:
        ConfigError: where there is no such run, checkpoint or block, it is damaged, or its blocks
            are of another network.
    """
    given = config.model.init_from
    if given is None:
        return Initial()
    try:
        with worded(_name), open_run(expanded(KEY, given.run)) as run:
            return _initial_in(run, given, config, specs)
    except CheckpointError as error:
        raise ConfigError(f"{KEY}: {error}") from None
    except ConfigError as error:  # the key is its name, whoever else words options
        raise ConfigError(str(error)) from None


def _initial_in(
    run: Folder, given: InitFrom, config: Config, specs: Sequence[BlockSpec]
) -> Initial:
    """As `initial_of`, from a run's folder."""
    checkpoint = checkpoint_at(run, given.checkpoint)
    path, files = run.path, checkpoint.read()
    wanted = _wanted(given, path, files.keys(), specs)
    matched = [
        _matched(block, decode_block(files[block.spec.index]), path)
        for block in build_blocks(config, specs, range(len(specs)), _CPU)
        if block.spec.index in wanted
    ]
    others = other_function(
        run,
        checkpoint,
        config,
        specs,
        {found.block for found in matched if found.taken},
        {found.block for found in matched if any(name.startswith(PRED) for name in found.taken)},
    )
    return Initial(
        {found.block: encode_block(found.taken) for found in matched if found.taken},
        {
            "run": str(path.absolute()),
            "checkpoint": checkpoint.path.name,
            "step": checkpoint.state.position.step,
            "blocks": [found.tree(checkpoint.digests[found.block]) for found in matched],
        },
        (
            *_notes(checkpoint, path, matched, specs),
            *(f"{KEY}: {_blocks(blocks)}: {words}" for words, blocks in others),
        ),
    )


def _name(option: Option) -> str:
    """What the options of reading a run are called here."""
    return {"run_dir": KEY, "at": f"{KEY}.checkpoint"}.get(option.name, option.name)


@dataclass(frozen=True, slots=True)
class _Matched:
    """Of a block, the tensors that are taken, and the names of those that begin anew."""

    block: int
    taken: Mapping[str, Tensor]
    anew: tuple[str, ...]

    def tree(self, digest: str) -> dict[str, Any]:
        """Plain JSON values. `digest`: of the file that the tensors are from."""
        names = {"taken": list(self.taken), "anew": list(self.anew)}
        return {"block": self.block, "sha256": digest, **names}


def _wanted(
    given: InitFrom, path: Path, there: Collection[int], specs: Sequence[BlockSpec]
) -> set[int]:
    """The blocks to take."""
    if given.blocks is None:
        if len(there) != len(specs):
            raise ConfigError(
                f"{KEY} {path}: has {len(there)} blocks, and this network {len(specs)}: name those "
                f"to take, as {{run: {path}, blocks: [0]}}"
            )
        return set(there)
    check_there(f"{KEY}.blocks", given.blocks, specs)
    if missing := sorted({*given.blocks} - {*there}):
        raise ConfigError(
            f"{KEY}.blocks: there is no block {missing[0]} in {path}, which has blocks 0 to "
            f"{len(there) - 1}"
        )
    return set(given.blocks)


def _matched(block: Block, source: Mapping[str, Tensor], path: Path) -> _Matched:
    """What a block takes of the block of another run, by name, type and shape."""
    index = block.spec.index
    taken: dict[str, Tensor] = {}
    anew: list[str] = []
    own = {name: each for name, each in block.state().items() if not name.startswith(OPTIMIZER)}
    for name in source:
        if name not in own and not (name.startswith(OPTIMIZER) or is_learned_by(name)):
            raise _another_network(path, f"block {index} has {name} there, and none here")
    for name, tensor in own.items():
        found = source.get(name)
        if found is not None and kind_of(found) == kind_of(tensor):
            taken[name] = found
        elif is_learned_by(name) or _follows_outputs(block.spec, found, tensor):
            anew.append(name)
        else:
            there = "missing" if found is None else kind_of(found)
            raise _another_network(
                path, f"{name} of block {index} is {there} there, and {kind_of(tensor)} here"
            )
    return _Matched(index, taken, tuple(anew))


def _follows_outputs(spec: BlockSpec, found: Tensor | None, tensor: Tensor) -> bool:
    """Whether a tensor of the output layer has another shape only since there are other outputs."""
    if not spec.is_output or found is None or found.dim() != tensor.dim():
        return False
    return all(
        here in (there, spec.layer.out_features)
        for there, here in zip(found.shape, tensor.shape, strict=True)
    )


def _another_network(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{KEY} {path}: is of another network: {what}; take the blocks that are alike "
        f"({KEY}.blocks), or make the network as it is there"
    )


def _notes(
    checkpoint: Checkpoint, path: Path, matched: Sequence[_Matched], specs: Sequence[BlockSpec]
) -> Iterator[str]:
    taken = [found.block for found in matched if found.taken]
    step = checkpoint.state.position.step
    yield f"{KEY}: {_blocks(taken)} begin as in {path} at step {step}"
    anew: dict[str, list[int]] = {}
    for found in matched:
        if found.anew:
            anew.setdefault(", ".join(found.anew), []).append(found.block)
    parts = [f"{names} of {_blocks(blocks)}" for names, blocks in anew.items()]
    wanted = {found.block for found in matched}
    if others := [spec.index for spec in specs if spec.index not in wanted]:
        parts.append(f"all of {_blocks(others)}")
    if parts:
        yield f"{KEY}: begin anew: {'; '.join(parts)}"


def _blocks(indices: Sequence[int]) -> str:
    many = "s" * (len(indices) != 1)
    return f"block{many} {', '.join(map(str, indices)) or 'none'}"
