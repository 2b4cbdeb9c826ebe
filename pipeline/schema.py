"""What files that people write may hold, and errors that name file, key, value and rule.

The only file that imports pydantic; `config.py` and `handwritten.py` declare sections with it.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.errors import ConfigError

__all__ = [
    "AfterValidator",
    "BeforeValidator",
    "Field",
    "JsonValue",
    "Section",
    "brief",
    "checked",
    "field_validator",
    "model_validator",
]


class Section(BaseModel):
    """A part of a file: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Section)


def checked(kind: type[Kind], tree: Any, source: str) -> Kind:
    """Check a tree of plain values; `source` is named in the error.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(kind, error)}") from None


def brief(value: Any) -> str:
    """A value as an error shows it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _first_problem(kind: type[Section], error: ValidationError) -> str:
    # a key that is written wrong is missing, too: what is written is named
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    what, message = problem["type"], problem["msg"]
    if not key and what != "value_error":
        keys = ", ".join(kind.model_fields)
        return f"expected keys and values ({keys}), found {brief(problem['input'])}"
    if what == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {_allowed_keys(kind, problem['loc'])}"
    if what == "missing":
        return f"{key}: is missing"
    if what == "too_short":
        return f"{key}: is empty; at least {problem['ctx']['min_length']} is needed"
    if what == "value_error":
        return str(problem["ctx"]["error"])
    return f"{key}: {brief(problem['input'])} is not allowed: {message[0].lower()}{message[1:]}"


def _allowed_keys(kind: type[Section], location: tuple[int | str, ...]) -> str:
    owner = kind
    for key in location[:-1]:
        if isinstance(key, str):
            owner = _section_in(owner.model_fields[key].annotation)
    return ", ".join(owner.model_fields)


def _section_in(annotation: Any) -> type[Section]:
    """The class of a field that is a section, or a tuple of them."""
    kinds = (annotation, *get_args(annotation))
    return next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))
