"""What Python calls the options of commands, in errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.errors import Option

_OTHERWISE = {
    "single": "stages=None", "resume": "resume=True", "set": "options",
    "data_root": "options data.root=DIR",
}  # fmt: skip


def as_argument(option: Option) -> str:
    """An option as `pipeline.fit`, `load` and `export` call it: `run_dir`."""
    return _OTHERWISE.get(option.name, option.name)
