"""Which tests stay together where several processes test."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

from support import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

_OWN_GROUP = re.compile(r"xdist_group\(\"(\w+)\"\)")


class RealOnesInTurn(LoadScopeScheduling):
    """Hands out tests one by one, but for those of files that start real processes: one worker has
    all of these. Told by the text of a file: only workers know marks, and pytest-xdist's own way to
    ask them, by names that they give to tests, fails in silence with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(REPOSITORY / nodeid.partition("::")[0]) or nodeid


@cache
def group_of(file: Path) -> str:
    """What a file's tests belong to; empty where each may be done anywhere."""
    text = file.read_text(encoding="utf-8")
    if named := _OWN_GROUP.search(text):
        return named[1]
    return "processes" if "mark.processes" in text else ""
