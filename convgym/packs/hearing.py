"""What a pack's users understand: the common patterns with the pack's phrases in them, and the values it tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from convgym.language.understand import Domain, understand
from convgym.packs import schema
from convgym.packs.checks import listed
from convgym.types import Act, Heard

if TYPE_CHECKING:
    from convgym.packs.script import Script

__all__ = ["domain_of", "hear", "one_of"]

READ = 2_000  # characters of a message that are read
MOST = 8  # values of one message that count as told; one wrong one is too many anyway
_DIGITS = re.compile(r"(?<![\w.,])-?\d{1,9}(?![\w]|[.,]\d)")


def one_of(phrases: Iterable[str]) -> str:
    """A pattern of plain phrases in normalised text, the longest first; no phrase is a pattern itself.

    >>> one_of(["due date", "a+b"])
    'due\\\\ date|a\\\\+b'
    """
    plain = {" ".join(phrase.lower().split()) for phrase in phrases}
    return "|".join(re.escape(phrase) for phrase in sorted(plain, key=lambda p: (-len(p), p)))


def domain_of(language: schema.Language) -> Domain:
    """The slots, reasons and verbs of a pack as a domain of the common listener."""
    return Domain(
        slots={name: one_of(slot.phrases) for name, slot in language.slots.items()},
        reasons={name: one_of(phrases) for name, phrases in language.reasons.items()},
        verbs={name: one_of(verb.phrases) for name, verb in language.verbs.items()},
    )


def hear(script: Script, tell: str, text: str) -> Heard:
    """What a user understands.

    Args:
        script: The pack.
        tell: The field whose value the user asked for, as ``TABLE.FIELD``; "" if it asked for none.
        text: The agent's message; its first 2,000 characters are read.
    """
    return _hear(script, tell, text[:READ])


@lru_cache(maxsize=8_192)
def _hear(script: Script, tell: str, text: str) -> Heard:
    heard = understand(script.domain, text)
    names = {act.name for act in heard.acts}
    if "?" in text or names & {"request", "confirm", "refuse"}:
        return heard
    more = [] if "done" in names or not script.done.search(_plain(text)) else [Act("done", {"amount": ""})]
    if tell:
        more += [Act("tell", {"field": tell, "value": value}) for value in _values(script, tell, _plain(text))][:MOST]
    return Heard((*more, *heard.acts), True) if more else heard


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").lower().split())


def _values(script: Script, tell: str, text: str) -> Iterator[str]:
    """The different values in a text that a field may hold; other numbers (of a card, of a page) are none."""
    table, _, field = tell.partition(".")
    column = script.scenario.records[table].fields[field]
    if isinstance(column, schema.Number):
        numbers = dict.fromkeys(int(number) for number in _DIGITS.findall(text))
        yield from (str(number) for number in numbers if column.low <= number <= column.high)
    else:
        words = {word.lower(): word for word in listed(column, script.scenario.pools) or ()}
        yield from (words[found] for found in dict.fromkeys(script.told[tell].findall(text)))
