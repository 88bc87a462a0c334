"""Text to speech acts: patterns over normalised text, with a domain's own slots, reasons and verbs.

The listener is forgiving about wording and strict about facts: it looks for the act (a question about a slot,
a refusal and its reason, a report, a promise) and takes values only in the forms that the domain lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from convgym.types import Act, Heard

__all__ = ["Domain", "understand"]

READ = 2_000  # characters that a person reads of one message; also bounds the work of the patterns


def _words(*patterns: str) -> re.Pattern[str]:
    """Compiles alternatives that begin and end where words do."""
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b")


_ASKS = _words(
    r"(?:could|can|may|would) (?:you|i)|please|what|which|when|where|how many",
    r"i(?:'ll| will)? (?:also )?need|(?:tell|give|send) me",
    r"(?:provide|share|confirm|state|verify) (?:me )?(?:your|the)",
)
_OFFERS = _words(
    r"(?:shall|should) (?:i|we)|do you want (?:me|us) to|would you like (?:me|us) to|ok(?:ay)? (?:if i|to)",
    r"is it (?:ok|okay|alright|right)|is that (?:correct|right|ok|okay)|(?:may|can) i (?:go ahead|proceed)",
    r"do you confirm|please confirm|ready for me to",
)
_CANNOT = _words(
    r"can(?:no|')t|can not|unable|not able|not possible|impossible|not eligible|ineligible|not allowed",
    r"not permitted|won't be able|(?:have to|must) (?:decline|refuse)|does(?:n't| not) qualify",
    r"could(?:n't| not)|not (?:refundable|returnable|covered)|no longer",
)
_DONE = _words(
    r"done|all set|taken care",
    r"(?:been|i|i've|we|we've|have|has|is|are|was|now|it's|successfully) (?:now |just |been |successfully )*"
    r"(?:refunded|cancell?ed|exchanged|replaced|updated|changed|processed|completed|booked|submitted|issued)",
    r"^(?:refunded|cancell?ed|updated|changed)",
)
_PROMISE = _words(
    r"i(?:'ll| will| am going to|'m going to)|let me|one (?:moment|second|minute)|hold on|please wait",
    r"right away",
)
_SMALL_TALK = (
    ("empathy", _words(r"sorry|apologi[sz]e|i understand|frustrating|inconvenience")),
    ("offer", _words(r"anything else|else (?:can|may) i|further (?:help|questions)")),
    ("bye", _words(r"good ?bye|bye|have a (?:nice|good|great|lovely)|take care")),
    ("thank", _words(r"thank(?:s| you)")),
    ("greet", _words(r"hello|hi|hey|welcome|good (?:morning|afternoon|evening)|how (?:can|may) i help")),
    ("affirm", _words(r"^(?:ok|okay|sure|yes|of course|certainly|alright|got it|noted)")),
)
_AMOUNT = re.compile(
    r"\brefund(?:ed)?(?: of)?(?: you)?(?: the)? [$€£]?(\d[\d,]*(?:\.\d+)?)\b|[$€£](\d[\d,]*(?:\.\d+)?)"
)


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
        [(name, _words(pattern)) for name, pattern in table.items()]
        for table in (domain.slots, domain.reasons, domain.verbs, {"item": domain.items})
    )


def understand(domain: Domain, text: str) -> Heard:
    """Finds the speech acts in an agent message.

    Args:
        domain: The scenario's slots, reasons and verbs.
        text: The message, any string. Only its first 2,000 characters are read.

    Returns:
        The acts: ``request(slot)``, ``confirm(intent, item)``, ``refuse(reason, item)``, ``done(amount)``,
        ``promise()`` and small talk. Silence is understood as silence.
    """
    return _understand(domain, text[:READ])


@lru_cache(maxsize=8_192)
def _understand(domain: Domain, text: str) -> Heard:
    text = " ".join(text.replace("’", "'").lower().split())
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
        acts.extend(
            Act("confirm", {"intent": name, "item": item}) for name, pattern in verbs if pattern.search(text)
        )
    if not acts and ("?" in text or _ASKS.search(text)):
        acts.extend(Act("request", {"slot": name}) for name, pattern in slots if pattern.search(text))
    if not acts and _PROMISE.search(text):
        acts.append(Act("promise", {}))
    acts.extend(Act(name, {}) for name, pattern in _SMALL_TALK if pattern.search(text))
    return Heard(tuple(acts), bool(acts))
