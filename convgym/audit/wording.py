"""Paraphrase invariance: an expert who says the same in other words gets the same outcome.

What is said aloud is said in other wordings of the same act, in other case, with other white space, after a
courtesy that is no act of its own. Calls are written with other white space, and with words around them,
which nobody is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from convgym.audit.episodes import Subject, replay
from convgym.audit.report import Finding
from convgym.language.speak import Bank
from convgym.tools import parse_call
from convgym.types import ToolCall

__all__ = ["paraphrased", "reworded"]

PREFIXES = ("Well, ", "With pleasure. ")  # no acts of their own: to thank the furious may be an act too many
ROUNDS = 3  # wordings of each act that are tried


def paraphrased(subject: Subject) -> Iterator[Finding]:
    """The oracle's episodes, message by message in other words, have the same outcome."""
    count = dict.fromkeys(("wording", *VARIANTS), 0)
    different: dict[str, list[str]] = {name: [] for name in count}
    for level in subject.budget.levels:
        env = subject.env(difficulty=level)
        bank: Bank = getattr(subject.agent("oracle", env), "bank", {})
        others: dict[str, Callable[[str], str]] = dict(VARIANTS)
        for episode in subject.play("oracle", level, subject.budget.copies):
            variants = [(name, [vary(text) for text in episode.actions]) for name, vary in others.items()]
            for turn in range(ROUNDS):
                variants.append(("wording", [_other(bank, text, turn) for text in episode.actions]))
            for name, actions in variants:
                if actions == episode.actions:
                    continue
                count[name] += 1
                if replay(env, actions, episode.seed).outcome != episode.outcome:
                    different[name].append(f"{episode.seed} (difficulty {level})")
    for name, seeds in different.items():
        same = 1 - len(seeds) / max(1, count[name])
        detail = f"{count[name]} episodes, {len(seeds)} with another outcome"
        if seeds:
            detail += f", first: {', '.join(seeds[:3])}"
        yield Finding(f"paraphrase:{name}", not seeds, detail, same, limit=1.0)


def reworded(bank: Bank, text: str) -> list[str]:
    """Returns what else the bank says for the act of a text, with the same values.

    >>> reworded({"ask": ("Which {x}?", "What {x} is it?"), "bye": ("Bye.",)}, "Which day?")
    ['What day is it?']
    """
    for templates in bank.values():
        for template in templates:
            found = _pattern(template).fullmatch(text)
            if found is not None:
                values = found.groupdict()
                filled = [_filled(other, values) for other in templates if other != template]
                return [other for other in filled if other is not None]
    return []


def _other(bank: Bank, text: str, turn: int) -> str:
    choices = [] if "<tool_call>" in text else reworded(bank, text)
    return choices[turn % len(choices)] if choices else text


def _filled(template: str, values: Mapping[str, str]) -> str | None:
    """Fills a template's braces; None if a value is missing."""
    slots = re.findall(r"\{(\w+)\}", template)
    if not values.keys() >= set(slots):
        return None
    return re.sub(r"\{(\w+)\}", lambda match: values[match.group(1)], template)


@lru_cache(maxsize=2_048)
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern; a slot that stands twice must have one value."""
    parts, seen = re.split(r"\{(\w+)\}", template), set[str]()
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"(?P={part})" if part in seen else f"(?P<{part}>.+?)"
            seen.add(part)
        else:
            parts[i] = re.escape(part)
    return re.compile("".join(parts), re.DOTALL)


def _speech(vary: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: text if "<tool_call>" in text else vary(text)


def _loose_call(text: str) -> str:
    """Writes a call with other white space, and with words around it."""
    call = parse_call(text)
    if not isinstance(call, ToolCall):
        return text
    arguments = dict(list(call.arguments.items())[::-1])
    body = json.dumps({"arguments": arguments, "name": call.name}, indent=1)
    return f"Let me look that up.\n<tool_call>\n{body}\n</tool_call>\n"


VARIANTS: dict[str, Callable[[str], str]] = {
    "upper case": _speech(str.upper),
    "lower case": _speech(str.lower),
    "white space": _speech(lambda text: "  " + text.replace(" ", " \t ") + " \n"),
    "polite": _speech(lambda text: f"{PREFIXES[len(text) % len(PREFIXES)]}{text}"),
    "loose calls": _loose_call,
}
