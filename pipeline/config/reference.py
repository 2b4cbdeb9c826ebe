"""Every key of a configuration as a page of Markdown, from where the keys are declared.

    python -m pipeline.config.reference > docs/config.md        # from the root of a clone

What it says comes from the JSON schema of the sections: values and bounds from types, words from
the sentence below each key.
"""

from __future__ import annotations

import json
from textwrap import fill
from typing import TYPE_CHECKING, Any

from pipeline.config.sections import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """\
# Every key of a config

Written by `python -m pipeline.config.reference` from the sections in `pipeline/config/`.
[Configuration](configuration.md) has them by subject. A key without a default (–) may be left out;
what holds then is in its sentence.
"""
_COLUMNS = 120
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "string": "text",
    None: "any value",
}
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "up to",
    "exclusiveMaximum": "below",
}


def reference() -> str:
    """The page: a table for each section, a row for each of its keys."""
    schema = Config.model_json_schema()
    sections = (
        _section(name, _resolved(section, schema), name in schema["required"], schema)
        for name, section in schema["properties"].items()
    )
    return "\n".join((_HEAD, *sections))


def _section(name: str, section: dict[str, Any], needed: bool, schema: dict[str, Any]) -> str:
    about = " ".join(section["description"].split())
    rows = (
        _row(f"{name}.{key}", field, key in section.get("required", ()), schema)
        for key, field in section["properties"].items()
    )
    return "\n".join(
        (
            f"## {name}\n",
            fill(about if needed else f"{about} This section may be left out.", _COLUMNS),
            "\n| key | value | default | |\n|---|---|---|---|",
            *rows,
            "",
        )
    )


def _row(key: str, field: dict[str, Any], needed: bool, schema: dict[str, Any]) -> str:
    cells = (
        f"`{key}`",
        _allowed(field, schema),
        "**needed**" if needed else _default(field["default"]),
        " ".join(field["description"].split()),
    )
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _default(value: Any) -> str:
    if value is None:
        return "–"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _allowed(field: dict[str, Any], schema: dict[str, Any]) -> str:
    words = list(_alternatives(field, schema))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _alternatives(field: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """What a JSON schema allows instead of each other, in words."""
    field = _resolved(field, schema)
    if "anyOf" in field:
        for one in field["anyOf"]:
            yield from _alternatives(one, schema)
    elif "enum" in field or "const" in field:
        yield from (f"`{value}`" for value in field.get("enum", [field.get("const")]))
    elif "pattern" in field:
        yield f"text as `{field['pattern']}`"
    elif field.get("type") == "array":
        yield f"[{_allowed(field['items'], schema)}, …]"
    elif "properties" in field:
        yield f"{{{', '.join(f'`{key}`' for key in field['properties'])}}}"
    elif "additionalProperties" in field:
        yield f"{{key: {_allowed(field['additionalProperties'], schema)}, …}}"
    elif field.get("type") != "null":
        yield f"{_TYPES[field.get('type')]} {', '.join(_bounds(field))}".rstrip()


def _bounds(field: dict[str, Any]) -> Iterator[str]:
    for bound, words in _BOUNDS.items():
        if bound in field:
            value = field[bound]
            yield f"{words} {int(value) if value == int(value) else value:,}"


def _resolved(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """`field`, or what it refers to, with what it says itself."""
    *_, name = field.get("$ref", "").split("/")
    return {**schema["$defs"][name], **field} if name else field


if __name__ == "__main__":
    print(reference(), end="")
