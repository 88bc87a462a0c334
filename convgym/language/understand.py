"""Text to speech acts: patterns over normalised text, with a domain's own slots, reasons and verbs.

The listener is forgiving about wording and strict about facts: it looks for the act (a question about a slot, a refusal
and its reason, a report, a promise) and takes values only in the forms that the domain lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from convgym.types import Act, Heard

__all__ = ["Domain", "understand"]

READ = 2_000  # characters that a person reads of one message; also bounds the work of the patterns

_ASKS = re.compile(
    r"\?|\b(could|can|may|would) (you|i)\b|\bplease\b|\bwhat\b|\bwhich\b|\bwhen\b|\bwhere\b|\bhow many\b|"
    r"\bi(?:'ll| will)? (?:also )?need\b|\b(?:tell|give|send) me\b|\b(?:provide|share|confirm|state|verify) (?:me )?(?:your|the)\b"
)
_OFFERS = re.compile(
    r"\b(?:shall|should) (?:i|we)\b|\bdo you want (?:me|us) to\b|\bwould you like (?:me|us) to\b|\bok(?:ay)? (?:if i|to)\b|"
    r"\bis it (?:ok|okay|alright|right)\b|\bis that (?:correct|right|ok|okay)\b|\b(?:may|can) i (?:go ahead|proceed)\b|"
    r"\bdo you confirm\b|\bplease confirm\b|\bready for me to\b"
)
_CANNOT = re.compile(
    r"\bcan(?:no|')t\b|\bcan not\b|\bunable\b|\bnot able\b|\bnot possible\b|\bimpossible\b|\bnot eligible\b|\bineligible\b|"
    r"\bnot allowed\b|\bnot permitted\b|\bwon't be able\b|\bhave to (?:decline|refuse)\b|\bmust (?:decline|refuse)\b|"
    r"\bdoes(?:n't| not) qualify\b|\bcould(?:n't| not)\b|\bnot (?:refundable|returnable|covered)\b|\bno longer\b"
)
_DONE = re.compile(
    r"\bdone\b|\ball set\b|\btaken care\b|\b(?:been|i|i've|we|we've|have|has|is|are|was|now|it's|successfully) (?:now |just |been |successfully )*"
    r"(?:refunded|cancell?ed|exchanged|replaced|updated|changed|processed|completed|booked|submitted|issued)\b|^(?:refunded|cancell?ed|updated|changed)\b"
)
_PROMISE = re.compile(
    r"\bi(?:'ll| will| am going to|'m going to)\b|\blet me\b|\bone (?:moment|second|minute)\b|\bhold on\b|\bplease wait\b|\bright away\b"
)
_SMALL_TALK = (
    ("empathy", re.compile(r"\bsorry\b|\bapologi[sz]e|\bi understand\b|\bfrustrating\b|\binconvenience\b")),
    ("offer", re.compile(r"\banything else\b|\belse (?:can|may) i\b|\bfurther (?:help|questions)\b")),
    ("bye", re.compile(r"\bgood ?bye\b|\bbye\b|\bhave a (?:nice|good|great|lovely)\b|\btake care\b")),
    ("thank", re.compile(r"\bthank(?:s| you)\b")),
    ("greet", re.compile(r"\bhello\b|\bhi\b|\bhey\b|\bwelcome\b|\bgood (?:morning|afternoon|evening)\b|\bhow (?:can|may) i help\b")),
    ("affirm", re.compile(r"^(?:ok|okay|sure|yes|of course|certainly|alright|got it|noted)\b")),
)
_AMOUNT = re.compile(r"\brefund(?:ed)?(?: of)?(?: you)?(?: the)? [$€£]?(\d[\d,]*(?:\.\d+)?)\b|[$€£](\d[\d,]*(?:\.\d+)?)")


@dataclass(frozen=True, eq=False)
class Domain:
    """What a scenario family speaks about.

    Attributes:
        slots: ``{slot: pattern of its names}``, what an agent may ask for.
        reasons: ``{reason: pattern}``, typed reasons of a refusal.
        verbs: ``{intent: pattern}``, what an agent may offer, promise or report.
        items: Pattern of one item name, for claims about one of several things.
    """

    slots: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    verbs: Mapping[str, str] = field(default_factory=dict)
    items: str = r"(?!)"


@lru_cache(maxsize=64)
def _compiled(domain: Domain) -> tuple[list[tuple[str, re.Pattern[str]]], ...]:
    return tuple(
        [(name, re.compile(rf"\b(?:{pattern})\b")) for name, pattern in table.items()]
        for table in (domain.slots, domain.reasons, domain.verbs, {"item": domain.items})
    )


@lru_cache(maxsize=16_384)
def understand(domain: Domain, text: str) -> Heard:
    """Finds the speech acts in an agent message.

    Args:
        domain: The scenario's slots, reasons and verbs.
        text: The message, any string. Only its first 2,000 characters are read.

    Returns:
        The acts: ``request(slot)``, ``confirm(intent, item)``, ``refuse(reason, item)``, ``done(amount)``,
        ``promise()`` and small talk. Silence is understood as silence.
    """
    text = " ".join(text[:READ].replace("’", "'").lower().split())
    if not text:
        return Heard((), True)
    slots, reasons, verbs, items = _compiled(domain)
    acts: list[Act] = []
    cannot = _CANNOT.search(text)
    if cannot is not None:
        found = [name for name, pattern in reasons if pattern.search(text)]
        after = sorted({match.group() for match in items[0][1].finditer(text, cannot.start())})
        item = after[0] if len(after) == 1 else ""
        acts.extend(Act("refuse", {"reason": reason, "item": item}) for reason in (found or [""]))
    if _DONE.search(text if cannot is None else text[: cannot.start()]):
        amounts = [one or other for one, other in _AMOUNT.findall(text)]
        acts.extend(Act("done", {"amount": amount.replace(",", "")}) for amount in amounts or [""])
    elif cannot is None and _OFFERS.search(text):
        named = {match.group() for match in items[0][1].finditer(text)}
        item = named.pop() if len(named) == 1 else ""
        acts.extend(Act("confirm", {"intent": name, "item": item}) for name, pattern in verbs if pattern.search(text))
    if not acts and _ASKS.search(text):
        acts.extend(Act("request", {"slot": name}) for name, pattern in slots if pattern.search(text))
    if not acts and _PROMISE.search(text):
        acts.append(Act("promise", {}))
    acts.extend(Act(name, {}) for name, pattern in _SMALL_TALK if pattern.search(text))
    return Heard(tuple(acts), bool(acts))
