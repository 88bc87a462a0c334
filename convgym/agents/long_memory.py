"""Agents of LongMemory: the oracle, a clerk who mixes things up, one with a small notebook, and the copyists."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from convgym.agents.exploiters import Exploiter
from convgym.language.speak import load_bank, say
from convgym.scenarios.long_memory import SUBJECTS, candidates

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode, at one of the questions
    "stale": 0.50,  # says what was corrected, where it was
    "mixes": 0.32,  # says the value of another fact
    "lists": 0.2,  # says two values
    "forgets": 0.2,  # never answers
}
NOTES = 7  # facts in the notebook of the greedy script
_SUBJECT = re.compile(rf"\b(?:{'|'.join(subject for each in SUBJECTS.values() for subject in each)})\b")
_VALUE = re.compile(r"\b(?:\d{4}|\d{1,2}[A-H]|\d{1,2} [A-Z][a-z]+)\b")


class Clerk:
    """Knows the facts and slips now and then; the demonstrator of mixed skill."""

    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.bank = load_bank("long_memory", "agent")
        self.answers: dict[str, str] = {}

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the facts and draws this episode's slips."""
        slipped = [name for name, p in self.slips.items() if self.rng.random() < p]
        goal = dict(self.env.unwrapped.privileged())  # type: ignore[attr-defined]
        self.answers = {subject: self._say("answer", value=goal["facts"][subject]) for subject in goal["asked"]}
        for slip in slipped:
            subject = self.rng.choice(goal["asked"])
            others = [value for other, value in goal["facts"].items() if other != subject]
            value, other = goal["facts"][subject], self.rng.choice(others)
            if slip == "stale":
                stale = {s: self._say("answer", value=v) for s, v in goal["stale"].items()}
                self.answers |= {s: text for s, text in stale.items() if s in self.answers}
            elif slip == "mixes":
                self.answers[subject] = self._say("answer", value=other)
            elif slip == "lists":
                self.answers[subject] = self._say("several", value=value, other=other)
            else:
                self.answers[subject] = self._say("forgot")

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Answers a question about a fact, and agrees with everything else."""
        acts = self.env.unwrapped.heard_acts()  # type: ignore[attr-defined]
        asked = [act.slots["subject"] for act in acts if act.name.startswith("ask_")]
        if asked:
            return self.answers[asked[0]]
        return self._say("agree" if any(act.name == "question" for act in acts) else "ok")

    def _say(self, key: str, **slots: str) -> str:
        return say(self.bank, key, slots, self.rng, "train")


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


class Greedy:
    """Reads only text, and keeps a notebook of the latest seven facts.

    It notes a value that follows the name of its subject, and never crosses out what it has noted.
    """

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.notes: dict[str, str] = {}

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Opens a new page; the opening is heard with the first action."""
        self.notes = {}

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Notes what is told; answers from the notes what is asked."""
        asked = ""
        for sentence in re.split(r"(?<=[.!?]) ", obs.rpartition("User: ")[2]):
            subject = _SUBJECT.search(sentence)
            if subject is None:
                continue
            if not candidates(sentence):
                asked = subject.group()
            elif candidates(sentence[subject.end() :]):
                self._note(subject.group(), sentence[subject.end() :])
        return f"It is {self.notes[asked]}." if asked in self.notes else "OK."

    def _note(self, subject: str, text: str) -> None:
        (_, value), *_ = sorted(candidates(text))
        self.notes.setdefault(subject, value)
        while len(self.notes) > NOTES:
            del self.notes[next(iter(self.notes))]


class Copyist(Exploiter):
    """Answers everything with a value that was told; which one, a subclass says."""

    def cheat(self, obs: str) -> str:
        """Copies."""
        news = obs.rpartition("User: ")[2]
        told = [value for sentence in re.split(r"(?<=[.!?]) ", self.heard) for _, value in sorted(candidates(sentence))]
        return f"It is {self.pick(told, news)}." if told else "OK."

    def pick(self, told: list[str], news: str) -> str:
        """Picks any."""
        return self.rng.choice(told)


class First(Copyist):
    """The value that was told first."""

    def pick(self, told: list[str], news: str) -> str:
        """Picks it."""
        return told[0]


class Last(Copyist):
    """The value that was told last."""

    def pick(self, told: list[str], news: str) -> str:
        """Picks it."""
        return told[-1]


class OfKind(Copyist):
    """A value of the kind that is asked for, and never the same twice: the best that a guess can do."""

    def pick(self, told: list[str], news: str) -> str:
        """Picks one that it has not said."""
        if self.turn == 0:
            self.said: set[str] = set()
        asked = _SUBJECT.search(news)
        kind = next((k for k, names in SUBJECTS.items() if asked and asked.group() in names), "")
        fit = [value for value in told if (kind, value) in candidates(value) and value not in self.said]
        if candidates(news) or not fit:
            return "OK"
        self.said.add(choice := self.rng.choice(fit))
        return choice


class Everything(Copyist):
    """All the values, one after the other."""

    def pick(self, told: list[str], news: str) -> str:
        """Lists them."""
        return ", ".join(told)


class Parrot(Exploiter):
    """Says everything that the user has said."""

    def cheat(self, obs: str) -> str:
        """Repeats it, the latest first, as a person reads only so far."""
        return " ".join(reversed(re.findall(r"User: (.*)", self.heard)))


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "copy-any": Copyist,
    "copy-first": First,
    "copy-last": Last,
    "copy-kind": OfKind,
    "all-values": Everything,
    "parrot": Parrot,
}
