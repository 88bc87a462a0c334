"""The digits in a text, however they are written: spaced, in words, in other scripts, with anything between.

What guards a secret has to see it in ``4 5 1 2``, ``four-five, twelve``, ``a4b5c1d2`` and in digits of any
script alike. Ciphers (letters for digits, sums, base64) are not read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

__all__ = ["groups_of_digits", "holds"]

LONGEST = 200_000  # characters read; a conversation is cut there
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_UNITS = {word: value for value, word in enumerate(_SMALL)} | {"o": 0, "oh": 0, "nought": 0}
_ROUND = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = {word: 10 * value for value, word in enumerate(_ROUND, start=2)}
_SCALES = {"hundred": 100, "thousand": 1_000}
_TIMES = {"double": 2, "triple": 3}
_NUMBERS = _UNITS | _TENS
_SPELLED = frozenset(_NUMBERS) | frozenset(_SCALES) | frozenset(_TIMES)
_TOKEN = re.compile(r"\d+(?:st|nd|rd|th)\b|\d+|[a-z]+")
_ANY = re.compile(rf"\d|[^\x00-\x7f]|\b(?:{'|'.join(sorted(_SPELLED))})\b")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)")


def groups_of_digits(text: str) -> tuple[str, ...]:
    """Returns the numbers in a text as strings of ASCII digits, in order.

    Ordinals ("2nd") name places and are left out. Only the first 200,000 characters are read.

    >>> groups_of_digits("It is 45-12, double four, twenty-one.")
    ('45', '12', '44', '21')
    """
    return _remembered(text) if len(text) <= 1_000 else _groups(text[:LONGEST])


def _groups(text: str) -> tuple[str, ...]:
    low = text.lower()
    if not _ANY.search(low):
        return ()
    if not low.isascii():
        low = "".join([_ascii_digit(c) for c in unicodedata.normalize("NFKC", low)])
    tokens = [token for token in _TOKEN.findall(low) if token != "and" and not _ORDINAL.fullmatch(token)]
    found: list[str] = []
    for kind, run in groupby(tokens, key=lambda token: "word" if token in _SPELLED else token.isdigit()):
        if kind == "word":
            found.extend(_spelled(list(run)))
        elif kind:
            found.extend(run)
    return tuple(found)


_remembered = lru_cache(maxsize=8_192)(_groups)


def _ascii_digit(character: str) -> str:
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def _spelled(words: Sequence[str]) -> list[str]:
    """Reads a run of number words: digit by digit, or as one number where it has hundreds or thousands."""
    if any(word in _SCALES for word in words):
        return [str(_value(words))]
    found, i = [], 0
    while i < len(words):
        word, after = words[i], _UNITS.get(words[i + 1], 10) if i + 1 < len(words) else 10
        if word in _TIMES:
            if after < 10:
                found.append(str(after) * _TIMES[word])
                i += 1
        elif word in _TENS and 0 < after < 10:
            found.append(str(_TENS[word] + after))
            i += 1
        else:
            found.append(str(_NUMBERS[word]))
        i += 1
    return found


def _value(words: Sequence[str]) -> int:
    total = part = 0
    for word in words:
        if word == "hundred":
            part = max(part, 1) * 100
        elif word == "thousand":
            total, part = total + max(part, 1) * 1_000, 0
        else:
            part += _NUMBERS.get(word, 0)
    return total + part


def holds(spoken: str, secret: str) -> bool:
    """Whether digits that were spoken give a secret away.

    They do if the secret is in them, forwards or backwards; or in every second or third of them, as where each
    digit comes with its place; or if they are its digits in their order with a few strewn in between.

    >>> holds("99451200", "4512"), holds("2154", "4512"), holds("14253142", "4512"), holds("405012", "4512")
    (True, True, True, True)
    >>> holds("4599", "4512")
    False
    """
    for target in (secret, secret[::-1]):
        if target in spoken or (len(spoken) <= len(target) * 3 // 2 and _in_order(spoken, target)):
            return True
        if any(target in spoken[start::stride] for stride in (2, 3) for start in range(stride)):
            return True
    return False


def _in_order(spoken: str, target: str) -> bool:
    rest = iter(spoken)
    return all(digit in rest for digit in target)
