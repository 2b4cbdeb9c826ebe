"""One block's state as the bytes of a safetensors file. The only file that imports safetensors.

The format sorts tensors by type and name, and no metadata is written, so equal states give
equal bytes: the SHA-256 of a block file is the fingerprint of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.dtypes import dtype_name
from pipeline.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def encode_block(tensors: Mapping[str, Tensor]) -> bytes:
    """The file of a block; copies every tensor, from its device if need be. Of tensors that share
    memory each gets a copy: the format has no word for sharing, which is the network's."""
    taken: set[int] = set()
    return bytes(save({name: _apart(tensor, taken) for name, tensor in tensors.items()}))


def _apart(tensor: Tensor, taken: set[int]) -> Tensor:
    """The tensor on the CPU, in memory of which nothing is in `taken`, where it is noted.
    Conjugation and negation that torch has only promised are carried out: bytes don't show them."""
    here = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    memory = here.untyped_storage().data_ptr()
    if memory in taken:
        return here.clone()
    taken.add(memory)
    return here


def decode_block(data: bytes) -> dict[str, Tensor]:
    """The tensors of a block file, on the CPU.

    Raises:
        CheckpointError: where the bytes are not a safetensors file, or one whose types or shapes
            torch does not have.
    """
    try:
        return dict(load(data))
    # safetensors knows types of which torch makes no tensors (KeyError), and empty tensors may
    # have a side (TypeError) or strides (RuntimeError) beyond an int64
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"not a block file: {one_line(error)}") from None


def kind_of(tensor: Tensor) -> str:
    """Its type and shape, for people: `float32 (3, 4)`."""
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
