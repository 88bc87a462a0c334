"""From parsed data to models; what pydantic finds wrong is said by place, in the words of a pack's author."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from convgym.errors import UnknownNameError
from convgym.packs.schema import TAGS, Scenario
from convgym.packs.source import Place, Problem, Source, raise_for

__all__ = ["validate"]


def validate(source: Source) -> Scenario:
    """Makes the models of a parsed file.

    Raises:
        PackError: Line by line, what was expected and what came.
    """
    try:
        return Scenario.model_validate(source.data)
    except (ValidationError, RecursionError) as error:
        raise_for(_problems(error), source)
        raise  # unreachable: a validation error has problems


def _problems(error: Exception) -> Iterator[Problem]:
    if not isinstance(error, ValidationError):
        yield Problem((), "expected fewer levels")
        return
    for each in error.errors(include_url=False):
        place = _place(each["loc"])
        yield Problem(place, _message(each["type"], each["msg"], each["loc"], each.get("input"), each.get("ctx", {})))


def _place(loc: tuple[str | int, ...]) -> Place:
    """The place of a pydantic error without the tags of unions in it."""
    return tuple(part for part in loc if not (isinstance(part, str) and part[:1] + part[-1:] in ("<>", "[]")))


def _message(kind: str, said: str, loc: tuple[str | int, ...], value: object, context: Mapping[str, Any]) -> str:
    if kind == "extra_forbidden":
        return str(UnknownNameError.of("key", str(loc[-1])[:60], _keys(loc[:-1])))
    if kind == "missing":
        return "expected this key, but it is missing."
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return f"expected one of the keys {_tags(loc)}."
    if kind == "string_pattern_mismatch" and "w(" in str(context.get("pattern")):
        return f"expected a plain phrase that begins and ends with a letter or digit, got {_shown(value)}."
    if kind == "string_pattern_mismatch":
        dots = ", perhaps TABLE.FIELD" if "." in str(context.get("pattern")) else ""
        return f"expected a name of lower-case letters, digits and _{dots}, got {_shown(value)}."
    low = said[:1].lower() + said[1:]
    expected = low.removeprefix("input should be ").removeprefix("input should ").replace("a valid ", "")
    expected = expected.replace("dictionary", "mapping").replace("tuple", "list").replace("string", "text")
    return f"expected {expected}, got {_shown(value)}."


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _at(loc: tuple[str | int, ...]) -> tuple[type[BaseModel], ...]:
    """The models that may stand at the place of an error; a tag chooses among them."""
    models: tuple[type[BaseModel], ...] = (Scenario,)
    for part in loc:
        if isinstance(part, str) and part[:1] == "<":
            models = tuple(model for model in models if part[1:-1] in _names(model))
            continue
        fields = [f for model in models for name, f in model.model_fields.items() if part in (name, f.alias)]
        models = tuple(model for f in fields for model in _models(f.annotation)) if fields else models
    return models


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _keys(loc: tuple[str | int, ...]) -> list[str]:
    return sorted({name for model in _at(loc) for name in _names(model)})


def _tags(loc: tuple[str | int, ...]) -> str:
    return ", ".join(sorted(set(_keys(loc)) & TAGS))
