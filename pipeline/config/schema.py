"""What files that people write may hold, and errors that name file, key, value and rule.

The only file that imports pydantic; `sections.py` and `plan_files.py` declare sections with it.
"""

from __future__ import annotations

import json
from datetime import date
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

from pipeline.errors import ConfigError, cut

__all__ = [
    "AfterValidator",
    "BeforeValidator",
    "Field",
    "JsonValue",
    "Section",
    "YesOrNo",
    "brief",
    "checked",
    "field_validator",
    "model_validator",
]

_RULES = {
    "dict_type": "input should be keys and values, as {key: value}",
    "string_type": "input should be a text, in quotes where it would be read as something else",
    "bool_type": "input should be true or false",
    "invalid_key": "a key should be a text, in quotes where it would be read as something else",
    "invalid-json-value": "input should be a text, a number, true, false, null, or a list or keys "
    "and values of these",
}
"""What pydantic says in the words of Python, by type of error."""


class YesOrNo(str):
    """yes, no, on or off: true or false where a key wants that, a text where it wants one.

    `meant`: which of true and false.
    """

    __slots__ = ("meant",)

    meant: bool

    def __new__(cls, text: str, meant: bool) -> YesOrNo:
        word = super().__new__(cls, text)
        word.meant = meant
        return word


class Section(BaseModel):
    """A part of a file: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # the sentence below a key is its description
    )

    @model_validator(mode="before")
    @classmethod
    def _yes_is_true(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        flags = {
            key
            for key, field in cls.model_fields.items()
            if bool in (field.annotation, *get_args(field.annotation))
        }
        return {
            key: value.meant if key in flags and isinstance(value, YesOrNo) else value
            for key, value in tree.items()
        }


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
    """A value as an error shows it: what has a word in YAML by that, cut where it is long."""
    if isinstance(value, bool | None):
        return json.dumps(value)
    text = str(value) if isinstance(value, date) else repr(value)
    return cut(text, 58)


def _first_problem(kind: type[Section], error: ValidationError) -> str:
    # a key that is written wrong is missing, too: what is written is named
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"]).removesuffix(".[key]")
    what, message = problem["type"], problem["msg"]
    if what == "model_type":
        keys = _allowed_keys(kind, (*problem["loc"], "any"))
        found = f"expected keys and values ({keys}), found {brief(problem['input'])}"
        return f"{key}: {found}" if key else found
    if what == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {_allowed_keys(kind, problem['loc'])}"
    if what == "missing":
        return f"{key}: is missing"
    if what == "too_short":
        return f"{key}: is empty; at least {problem['ctx']['min_length']} is needed"
    if what == "value_error":
        return str(problem["ctx"]["error"])
    rule = _RULES.get(what, f"{message[0].lower()}{message[1:]}")
    if what == "tuple_type":
        is_one = isinstance(problem["input"], int | float | str)
        rule = f"input should be a list, as [{brief(problem['input']) if is_one else 'one, two'}]"
    return f"{key}: {brief(problem['input'])} is not allowed: {rule}"


def _allowed_keys(kind: type[Section], location: tuple[int | str, ...]) -> str:
    owner = kind
    for key in location[:-1]:
        if key in owner.model_fields:  # else an item of what the last one holds
            owner = _section_in(owner.model_fields[key].annotation)
    return ", ".join(owner.model_fields)


def _section_in(annotation: Any) -> type[Section]:
    """The class of a field that is a section, or a tuple of them."""
    kinds = (annotation, *get_args(annotation))
    return next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))
