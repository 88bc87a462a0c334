"""Rates of one message or one conversation as pure functions of text; the reward wrappers weigh and pay them.

Lexicons are cheap, deterministic and easily fooled. What each of them pays to an agent that only looks good is
measured in ``docs/concepts/rewards.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from convgym.tools import CLOSE, OPEN, Malformed, parse_call

__all__ = ["empathy", "politeness", "repetition", "speech", "well_formed"]

READ = 2_000  # characters that are rated of one message

_COURTEOUS = re.compile(
    r"\bplease\b|\bthank(?:s| you)\b|\bsorry\b|\bapologi[sz]e|\b(?:could|would|may) (?:you|i)\b|"
    r"\bhappy to\b|\bglad to\b|\byou're welcome\b|\bof course\b|\bi appreciate\b|\bi understand\b|"
    r"\bgood (?:morning|afternoon|evening|day)\b|\bhello\b"
)
_RUDE = re.compile(
    r"\bshut up\b|\bstupid\b|\bidiot|\bdumb\b|\bnonsense\b|\bwhatever\b|\bnot my problem\b|"
    r"\byour (?:own )?fault\b|\bcalm down\b|\bstop (?:whining|complaining)\b|\bobviously\b|"
    r"\bi don't care\b|\bwaste of (?:my )?time\b"
)


def politeness(text: str) -> float:
    """Rates the manners of one message: 1 courteous, 0 plain, -1 rude (also beside courteous words).

    The lexicon follows the strategies (gratitude, apology, greeting, deference, indirect request) of
    Danescu-Niculescu-Mizil et al. (2013), "A computational approach to politeness with application to social
    factors". It is a lexicon, and so it is easily fooled: see ``docs/concepts/rewards.md``.

    >>> [politeness(text) for text in ("Could you tell me your zip code?", "Zip code.", "Please calm down.")]
    [1.0, 0.0, -1.0]
    """
    text = text[:READ].replace("’", "'").lower()
    return -1.0 if _RUDE.search(text) else 1.0 if _COURTEOUS.search(text) else 0.0


_FEELING = re.compile(
    r"\b(?:(?:that|this|it) (?:must|sounds|is|was|has been) (?:be |been |very |so |really |quite )*"
    r"(?:frustrating|annoying|upsetting|stressful|disappointing|worrying|hard|difficult)|"
    r"i (?:can |do |fully |really |completely )*(?:understand|see|hear|imagine) (?:how|why|that|your)|"
    r"(?:so |very |really |truly )?sorry (?:to hear|that|for|about)|"
    r"i(?:'d| would) (?:feel|be) (?:the same|upset|angry)|your (?:frustration|disappointment|concern|worry)\b)"
)


def empathy(text: str) -> float:
    """Rates whether one message names or acknowledges what the other feels: 1 if it does, 0 plain, -1 rude.

    A lexicon of the "emotional reactions" and "interpretations" of Sharma et al. (2020), "A computational approach
    to understanding empathy expressed in text-based mental health support".

    >>> [empathy(text) for text in ("I understand how frustrating that is.", "Refunded.", "Please calm down.")]
    [1.0, 0.0, -1.0]
    """
    text = text[:READ].replace("’", "'").lower()
    return -1.0 if _RUDE.search(text) else 1.0 if _FEELING.search(text) else 0.0


def repetition(text: str, earlier: Iterable[str], n: int = 3) -> float:
    """Returns the share of a message's word ``n``-grams that the same speaker has said before, in [0, 1].

    A message shorter than ``n`` words counts as one gram; an empty one repeats nothing.

    >>> repetition("what is your zip code", ["hello", "what is your zip please"])
    0.6666666666666666
    """
    grams = _grams(text, n)
    said = {gram for message in earlier for gram in _grams(message, n)}
    return sum(gram in said for gram in grams) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text[:READ].lower())
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))] if words else []


def speech(messages: Sequence[tuple[str, str]]) -> list[str]:
    """Returns what the agent said aloud: its messages that hold no tool call, as ``(role, content)`` pairs come."""
    return [content for role, content in messages if role == "assistant" and parse_call(content) is None]


def well_formed(text: str) -> bool:
    """Whether a message is plain speech with something in it, or one tool call with nothing around it.

    >>> well_formed("Hello."), well_formed("  "), well_formed("<tool_call>{}</tool_call>")
    (True, False, False)
    """
    call = parse_call(text)
    if call is None:
        return bool(text.strip())
    bare = text.strip()
    return not isinstance(call, Malformed) and bare.startswith(OPEN) and bare.endswith(CLOSE)
