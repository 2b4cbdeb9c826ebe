"""The JSON schema of a configuration, by which editors complete and check it.

    python -m pipeline.config.json_schema > docs/config.schema.json     # from the root of a clone

It says less than `sections.py` checks: what fits across keys is not in it.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.config.sections import Config

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of a whole configuration."""
    schema = Config.model_json_schema()
    kinds = {
        field.annotation.__name__: field.annotation.named_by
        for field in Config.model_fields.values()
        if field.annotation is not None
    }
    for name, section in schema["$defs"].items():
        if others := kinds.get(name):
            section["required"].remove("name")
            section["anyOf"] = [{"required": [key]} for key in ("name", *others)]
        for field in section.get("properties", {}).values():
            field["description"] = " ".join(field["description"].split())
    return {"$schema": _DIALECT, **schema}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
