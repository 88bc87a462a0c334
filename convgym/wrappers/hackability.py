"""How easily is a reward term collected without serving anybody?

:func:`measure` lets honest and cheating agents play a wrapped environment, and sets what each of them is paid
beside its verified success. The *margin* is the oracle's mean return minus the best cheat's. At a weight
where the margin is not well above 0, the term pays for nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from convgym import agents
from convgym.seeding import derive_seed
from convgym.tools import format_call, parse_call

__all__ = ["CHEATS", "Row", "margin", "measure"]

_COURTESIES = (
    "Please, thank you, of course!", "Hello, I am so sorry.", "Thank you, I understand, I appreciate it.",
    "Of course, happy to help, thank you.",
)  # fmt: skip


_FEELINGS = (
    "I understand how frustrating this is.", "That must be very annoying, I am so sorry about it.",
    "I can imagine how upsetting that is.", "I hear your disappointment.",
)  # fmt: skip


class Stuffed:
    """Says phrases that mean nothing, for as long as anybody listens."""

    def __init__(self, rng: random.Random, phrases: tuple[str, ...] = _COURTESIES) -> None:
        self.rng, self.phrases = rng, phrases

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Draws a phrase."""
        return self.rng.choice(self.phrases)


class GiveUp:
    """Hands the first order it hears of to a supervisor, which ends the conversation at once."""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Finds a number in the opening."""
        order = next(iter(re.findall(r"\b\d{4}\b", obs)), "0")
        self.call = format_call("escalate", {"order": order, "reason": "limit"})

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Gives up."""
        return self.call


class Courteous:
    """The oracle with manners: it thanks before everything it says aloud."""

    def __init__(self, env: gym.Env[str, str], seed: int) -> None:
        self.oracle = agents.make("oracle", env, seed=seed)

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Lets the oracle read the goal."""
        self.oracle.reset(obs, info)

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Acts as the oracle does."""
        text = self.oracle.act(obs, info)
        return text if parse_call(text) else f"Thank you. {text}"


CHEATS: dict[str, Callable[[random.Random], agents.Agent]] = {
    # agents that serve nobody, each after another kind of term
    "stuffed": Stuffed,  # keywords of politeness
    "feeling": lambda rng: Stuffed(rng, _FEELINGS),  # keywords of empathy
    "silent": lambda rng: agents.Fixed(""),  # nothing that costs words
    "give-up": lambda rng: GiveUp(),  # nothing that costs turns
    "one-call": lambda rng: agents.Fixed(format_call("get_order", {"order": "0"})),  # form without content
    "refuser": lambda rng: agents.Fixed("Sorry, I can't do that, it is final sale."),
}
HONEST = ("oracle", "clerk", "greedy")


@dataclass(frozen=True)
class Row:
    """What one agent got, as means over episodes.

    Attributes:
        agent: Its name.
        success: Share of verified successes.
        total: Return with all terms.
        terms: Mean of each reward term over episodes, summed over the turns.
        turns: Agent messages.
    """

    agent: str
    success: float
    total: float
    terms: Mapping[str, float]
    turns: float


def measure(
    env_id: str,
    wrap: Callable[[gym.Env[str, str]], gym.Env[str, str]],
    *,
    episodes: int = 200,
    seed: int = 0,
    **settings: Any,
) -> list[Row]:
    """Plays a wrapped environment with honest agents and cheats, all on the same episodes.

    Args:
        env_id: A registered id.
        wrap: Puts the reward wrappers around the environment.
        episodes: Episodes an agent plays.
        seed: Root of the episodes' seeds and of the agents' own choices.
        **settings: Passed to ``gym.make``.
    """
    env = wrap(gym.make(env_id, **settings))
    rows = [_play(name, agents.make(name, env, seed=seed), env, episodes, seed) for name in HONEST]
    rows.insert(1, _play("courteous", Courteous(env, seed), env, episodes, seed))
    for name, make in CHEATS.items():
        agent = make(random.Random(derive_seed(seed, "cheat", name)))
        rows.append(_play(name, agent, env, episodes, seed))
    return rows


def margin(rows: list[Row]) -> tuple[float, str]:
    """Returns the oracle's return minus the best cheat's, and that cheat's name."""
    returns = {row.agent: row.total for row in rows}
    best = max(CHEATS, key=returns.__getitem__)
    return returns["oracle"] - returns[best], best


def _play(name: str, agent: agents.Agent, env: gym.Env[str, str], episodes: int, seed: int) -> Row:
    successes, total, turns, terms = 0, 0.0, 0, dict[str, float]()
    for episode in range(episodes):
        obs, info = env.reset(seed=derive_seed(seed, "hackability", episode))
        agent.reset(obs, info)
        while "end_reason" not in info:
            obs, reward, _, _, info = env.step(agent.act(obs, info))
            total, turns = total + float(reward), turns + 1
            for term, value in info["reward_terms"].items():
                terms[term] = terms.get(term, 0.0) + value / episodes
        successes += bool(info["success"])
    return Row(name, successes / episodes, total / episodes, terms, turns / episodes)
