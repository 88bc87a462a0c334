"""Checks of settings: an illegal one is refused at construction, by an error that names the legal ones."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from convgym.errors import ConfigError, UnknownNameError


def check(settings: object, name: str, legal: bool, expected: str) -> None:
    """Refuses the setting ``name`` unless ``legal``.

    Raises:
        ConfigError: "GRPO.low = 2.0 is illegal: expected ...".
    """
    if not legal:
        value = getattr(settings, name)
        raise ConfigError(f"{type(settings).__name__}.{name} = {value!r} is illegal: expected {expected}.")


def check_unused(settings: object, names: tuple[str, ...], used: bool, when: str) -> None:
    """Refuses a value other than the default in fields that the other settings leave without effect.

    Raises:
        ConfigError: says what the field needs to have an effect.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for name in names:
        default = defaults[name]
        legal = used or getattr(settings, name) == default
        check(settings, name, legal, f"{default!r}, because it has no effect unless {when}")


def check_types(settings: object) -> None:
    """Compares every field with its annotation: literals, numbers (finite), booleans, optional ones.

    Raises:
        ConfigError: names the field and the legal values.
    """
    cls: Any = type(settings)
    for name, hint in _hints(cls).items():
        legal, expected = _matches(getattr(settings, name), hint)
        check(settings, name, legal, expected)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _matches(value: object, hint: Any) -> tuple[bool, str]:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return value in choices, "one of " + ", ".join(map(repr, choices))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        results = [_matches(value, choice) for choice in choices]
        return any(ok for ok, _ in results), " or ".join(text for _, text in results)
    if hint is type(None):
        return value is None, "None"
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number, "a finite number"
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), "a whole number"
    return isinstance(value, hint), f"a {getattr(hint, '__name__', hint)}"


def known_fields(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as a dict, after a look that ``cls`` has all of its fields.

    Raises:
        ConfigError: names the unknown field, the nearest one and all of them.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    for name in config:
        if name not in names:
            raise ConfigError(str(UnknownNameError.of(f"field of {cls.__name__}", name, names)))
    return dict(config)
