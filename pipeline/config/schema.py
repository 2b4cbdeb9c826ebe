"""What files that people write may hold, and errors that name where, key, value, rule and cure.

The only file that imports pydantic; `sections.py` and `plan_files.py` declare sections with it.
"""

from __future__ import annotations

import json
from collections.abc import (  # noqa: TC003  pydantic reads some of them at run time
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import date
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar, get_args, get_origin

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

from pipeline.errors import Problem, WrongKeysError, closest, cut, did_you_mean

__all__ = [
    "AfterValidator",
    "BeforeValidator",
    "Field",
    "JsonValue",
    "Misfit",
    "MisfitsError",
    "Origins",
    "Section",
    "YesOrNo",
    "brief",
    "checked",
    "choices",
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


class Misfit(NamedTuple):
    """What does not fit together, said of one of the keys.

    `key`: dotted; `rule`: goes on after it, as `needs model.layers`, or `: leave it out`.
    """

    key: str
    rule: str


class MisfitsError(ValueError):
    """What does not fit together in a section: raised while a tree is checked, by which it becomes
    a part of the error that names all that is wrong."""

    def __init__(self, *misfits: Misfit) -> None:
        super().__init__("; ".join(map(_joined, misfits)))
        self.misfits = misfits


def _joined(misfit: Misfit) -> str:
    key, rule = misfit
    return f"{key}{rule}" if rule.startswith(":") else f"{key} {rule}"


class Section(BaseModel):
    """A part of a file: frozen, strict types, unknown keys refused."""

    named_by: ClassVar[Mapping[str, str]] = {}
    """Keys that say what the section is in place of `name`, each with the `name` that it stands
    for."""

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

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, tree: Any) -> Any:
        for key, name in cls.named_by.items():
            if isinstance(tree, dict) and tree.get(key) is not None:
                return {"name": name, **tree}
        return tree

    def misfits(self) -> Iterable[Misfit]:
        """All that does not fit together, where each value alone is right; what would only follow
        from something before is left out."""
        return ()

    @model_validator(mode="after")
    def _fits_together(self) -> Section:
        if found := tuple(self.misfits()):
            raise MisfitsError(*found)
        return self


Kind = TypeVar("Kind", bound=Section)
Path: TypeAlias = "Sequence[int | str]"
"""Of a value in a tree: `("data", "mean", 0)`."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Where the values of a tree were given, for errors.

    `source`: the file, or what else the tree is from. `line_of`: the line of a value in it, if it
    stands there. `given`: values that came from elsewhere, by dotted key, each as it was given,
    `--set loss.beta=2`; later ones go before earlier ones.
    """

    source: str
    line_of: Callable[[Path], int | None] = lambda path: None
    given: Mapping[str, str] = field(default_factory=dict)

    def of(self, path: Path) -> tuple[str, bool]:
        """Where the value at a path was given, as closely as is known, and whether that says of
        which key."""
        dotted = _dotted(path)
        given = list(self.given.items())[::-1]
        for key, said in given:
            if f"{dotted}.".startswith(f"{key}."):
                return said, dotted == key
        if (line := self.line_of(path)) is not None:
            return f"{self.source}:{line}", False
        for key, said in given:
            if key.startswith(f"{dotted}."):
                return said, False
        lines = (self.line_of(path[:length]) for length in range(len(path) - 1, 0, -1))
        line = next((line for line in lines if line is not None), None)
        return (self.source if line is None else f"{self.source}:{line}"), False

    def problem(self, path: Path, rule: str) -> Problem:
        """What is wrong with the value at a path; a `rule` as of a `Misfit`."""
        at, says_key = self.of(path)
        key = _dotted(path)
        said = rule.removeprefix(": ") if says_key or not key else _joined(Misfit(key, rule))
        return Problem(at, key, rule.removeprefix(": "), f"{at}: {said}")


def checked(kind: type[Kind], tree: Any, origins: str | Origins) -> Kind:
    """Check a tree of plain values.

    Args:
        origins: where it is from, for the error.

    Raises:
        WrongKeysError: for all that is wrong.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        known = Origins(origins) if isinstance(origins, str) else origins
        found = [known.problem(path, rule) for path, rule in _problems(kind, error)]
        raise WrongKeysError(known.source, found) from None


def brief(value: Any) -> str:
    """A value as an error shows it: what has a word in YAML by that, cut where it is long."""
    if isinstance(value, bool | None):
        return json.dumps(value)
    text = str(value) if isinstance(value, date) else repr(value)
    return cut(text, 58)


def choices(annotation: Any) -> tuple[str, ...]:
    """The texts that a key may have, of those that a type lists."""
    if get_origin(annotation) is Literal:
        return tuple(value for value in get_args(annotation) if isinstance(value, str))
    return tuple(choice for inner in get_args(annotation) for choice in choices(inner))


def _problems(kind: type[Section], error: ValidationError) -> Iterator[tuple[Path, str]]:
    """The path and rule of each thing that is wrong, in order."""
    found: list[dict[str, Any]] = [
        {**problem, "loc": _path(problem["loc"])} for problem in error.errors()
    ]
    unknown = [problem["loc"] for problem in found if problem["type"] == "extra_forbidden"]
    meant = {_meant(kind, path) for path in unknown}
    for problem in found:
        path = problem["loc"]
        cause = problem.get("ctx", {}).get("error")
        if problem["type"] == "missing" and _dotted(path) in meant:
            continue  # a key that is written wrong is missing, too: what is written is named
        if isinstance(cause, MisfitsError):
            yield from ((misfit.key.split("."), misfit.rule) for misfit in cause.misfits)
        else:
            yield path, f": {_rule(kind, path, problem)}"


def _path(location: Path) -> Path:
    """Without what pydantic says of a key itself."""
    return location[:-1] if location and location[-1] == "[key]" else location


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _rule(kind: type[Section], path: Path, problem: Mapping[str, Any]) -> str:
    what, message, given = problem["type"], problem["msg"], problem["input"]
    if what == "model_type":
        keys = ", ".join(_owner(kind, (*path, "any")).model_fields)
        return f"expected keys and values ({keys}), found {brief(given)}"
    if what == "extra_forbidden":
        meant = _meant(kind, path)
        known = ", ".join(_owner(kind, path).model_fields)
        return f"unknown key; allowed here: {known}{f'; did you mean {meant}?' if meant else ''}"
    if what == "missing":
        return "is missing"
    if what == "too_short":
        return f"is empty; at least {problem['ctx']['min_length']} is needed"
    if what == "value_error":
        return str(problem["ctx"]["error"])
    rule = _RULES.get(what, f"{message[0].lower()}{message[1:]}")
    if what == "tuple_type":
        is_one = isinstance(given, int | float | str)
        rule = f"input should be a list, as [{brief(given) if is_one else 'one, two'}]"
    if what == "literal_error":
        rule += did_you_mean(str(given), choices(_annotation(kind, path)))
    return f"{brief(given)} is not allowed: {rule}"


def _meant(kind: type[Section], path: Path) -> str:
    """The dotted key of another section that is called so, or else one here that is like it."""
    *above, last = path
    if len(path) <= 2:
        others = [
            f"{name}.{last}"
            for name, field in kind.model_fields.items()
            if any(last in section.model_fields for section in _sections_in(field.annotation))
        ]
        if len(others) == 1:
            return others[0]
    close = closest(str(last), _owner(kind, path).model_fields)
    return _dotted((*above, close)) if close else ""


def _owner(kind: type[Section], path: Path) -> type[Section]:
    """The section that the last key of a path belongs to."""
    owner = kind
    for key in path[:-1]:
        if key in owner.model_fields:  # else an item of what the last one holds
            owner = next(iter(_sections_in(owner.model_fields[str(key)].annotation)), owner)
    return owner


def _annotation(kind: type[Section], path: Path) -> Any:
    """The type of the innermost key of a path; what follows it is an item, or a choice of types."""
    keys = [at for at, key in enumerate(path, 1) if key in _owner(kind, path[:at]).model_fields]
    at = keys[-1]
    return _owner(kind, path[:at]).model_fields[str(path[at - 1])].annotation


def _sections_in(annotation: Any) -> tuple[type[Section], ...]:
    """The class of a field that is a section, or of a tuple or mapping of them."""
    kinds = (annotation, *get_args(annotation))
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))
