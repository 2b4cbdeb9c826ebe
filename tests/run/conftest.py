from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.recording import Recording

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path)
