"""Characters of a text, for a network that predicts the next one.

    data: {factory: "text_data:characters", kwargs: {path: some.txt, length: 64}}

Legend of shapes: n pieces of T characters.
"""

from pathlib import Path
from typing import Any

import numpy as np

_OWN_TEXT = Path(__file__).parents[1]


def characters(
    path: str | None = None, length: int = 64, test_share: float = 0.1
) -> dict[str, Any]:
    """Pieces (n, T) of a text as int64 ids, and the ids (n, T) of the characters that follow.

    Args:
        path: a file in UTF-8; None: the documents of this repository.
        length: T.
        test_share: how much of the end of the text is for testing.
    """
    files = [Path(path)] if path else sorted(_OWN_TEXT.glob("docs/**/*.md"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    vocabulary = sorted(set(text))
    of_character = {character: number for number, character in enumerate(vocabulary)}
    ids = np.array([of_character[character] for character in text], dtype=np.int64)
    n = (len(ids) - 1) // length
    x, y = (ids[start : start + n * length].reshape(n, length) for start in (0, 1))
    training = n - max(1, round(n * test_share))
    return {
        "train": (x[:training], y[:training]),
        "test": (x[training:], y[training:]),
        "classes": vocabulary,
    }
