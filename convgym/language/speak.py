"""Speech acts to text, by banks of templates, split into training, validation and held-out wordings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import yaml

from convgym.errors import UnknownNameError
from convgym.seeding import Draws

__all__ = ["Bank", "load_bank", "wordings"]

Bank = Mapping[str, tuple[str, ...]]
"""``{act key: templates}`` of one speaker in one scenario family."""


@cache
def load_bank(family: str, speaker: str) -> Bank:
    """Loads the templates of a scenario family; ``common`` has what every speaker says.

    Args:
        family: Name of a file in ``convgym/language/templates``.
        speaker: ``"user"`` or ``"agent"``.
    """
    text = files("convgym").joinpath(f"language/templates/{family}.yaml").read_text("utf-8")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same safe loader, ten times faster
    data = yaml.load(text, Loader=loader)
    if speaker not in data:
        raise UnknownNameError.of("speaker", speaker, data)
    shared = {} if family == "common" else load_bank("common", speaker)
    return {**shared, **{key: tuple(lines) for key, lines in data[speaker].items()}}


_SLOT = re.compile(r"\{(\w+)\}")


def wordings(templates: Sequence[str], split: str) -> tuple[str, ...]:
    """Returns the templates that a split may use.

    Training sees the first 70 %. Validation sees 15 % new ones beside them, and ``test_language`` only the
    last 15 %, which nobody else sees. The other test splits keep to the training wordings, so that they
    change one thing.
    """
    return _wordings(tuple(templates), split)


@lru_cache(maxsize=2_048)
def _wordings(templates: tuple[str, ...], split: str) -> tuple[str, ...]:
    if len(templates) < 3:
        return templates
    held = max(1, round(0.15 * len(templates)))  # val and held-out get 15 % each, and at least one
    if split == "test_language":
        return templates[-held:]
    return templates[:-held] if split == "val" else templates[: -2 * held]


@lru_cache(maxsize=2_048)
def _pieces(templates: tuple[str, ...], split: str) -> tuple[tuple[str, ...], ...]:
    """Cuts the wordings of a split at their slots: words at even places, names of slots at odd ones."""
    return tuple(tuple(_SLOT.split(template)) for template in _wordings(templates, split))


def say(bank: Bank, key: str, slots: Mapping[str, str], rng: Draws, split: str) -> str:
    """Puts one act into words.

    Args:
        bank: The speaker's templates.
        key: Act key in the bank.
        slots: Values for the template's braces.
        rng: The surface stream.
        split: Which wordings are allowed.
    """
    choices = _pieces(bank[key], split)
    pieces = choices[int(rng.random() * len(choices))]
    if len(pieces) == 1:
        return pieces[0]
    words = list(pieces)  # values are put between the words, never parsed: a value may hold braces
    for i in range(1, len(words), 2):
        words[i] = slots.get(words[i], f"{{{words[i]}}}")
    return "".join(words)
