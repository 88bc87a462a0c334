"""The work of the contests: prompts, conversations and episodes, drawn from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from convgym.spaces import Utterance

Conversation = dict[str, Any]
"""``{"opening": ids, "replies": [ids after turn 0, 1, ...], "reward": what it brings}``."""
FIRST = 32  # special tokens come before it in every vocabulary here
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnst" for vowel in "ao"]
LEXICON = tuple(f"{a}{b}{c}" for a in _SYLLABLES for b in _SYLLABLES for c in ("", "n", "s", "ri"))


def sentence(rng: np.random.Generator, words: int) -> str:
    """Made-up words."""
    return " ".join(LEXICON[i] for i in rng.integers(0, len(LEXICON), words))


def prompts(vocabulary: int, rows: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random ids; no two rows share a prefix."""
    return _ids(np.random.default_rng(seed), vocabulary, rows * length).reshape(rows, length).tolist()


def conversations(
    vocabulary: int,
    episodes: int,
    *,
    turns: int = 4,
    opening: tuple[int, int] = (60, 140),
    reply: tuple[int, int] = (10, 50),
    group: int = 8,
    instructions: int = 40,
    seed: int = 0,
) -> list[Conversation]:
    """Conversations of ragged lengths.

    Args:
        vocabulary: Ids are drawn below it, control tokens left out.
        episodes: Number of conversations.
        turns: Agent turns.
        opening: Shortest and longest opening, the instructions included.
        reply: Shortest and longest reply of the user.
        group: Episodes in a row that share their opening, as the groups of GRPO do; users' words are each one's own.
        instructions: Tokens that all openings begin with.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    shared = _ids(rng, vocabulary, instructions).tolist()
    made: list[Conversation] = []
    for episode in range(episodes):
        if episode % group == 0:
            start = shared + _ids(rng, vocabulary, int(rng.integers(*opening, endpoint=True)) - instructions).tolist()
        replies = [_ids(rng, vocabulary, int(n)).tolist() for n in rng.integers(*reply, turns - 1, endpoint=True)]
        # Never the mean of its group, so that every episode has a gradient, and nobody is spared any.
        made.append({"opening": start, "replies": replies, "reward": float(episode % group % 3 == 0)})
    return made


def episodes(talks: Sequence[Conversation], vocabulary: int, new: int, seed: int = 1) -> list[dict[str, Any]]:
    """The same conversations with the agent's words in them.

    Args:
        talks: What the user says.
        vocabulary: The agent's ids are drawn below it.
        new: Tokens of each agent turn.
        seed: Of the agent's words.

    Returns:
        ``{"ids": [...], "action": [0 or 1, ...], "reward": float}`` each.
    """
    rng, made = np.random.default_rng(seed), []
    for talk in talks:
        ids, action = [], []
        for heard in (talk["opening"], *talk["replies"]):
            ids += [*heard, *_ids(rng, vocabulary, new).tolist()]
            action += [0] * len(heard) + [1] * new
        made.append({"ids": ids, "action": action, "reward": talk["reward"]})
    return made


def _ids(rng: np.random.Generator, vocabulary: int, count: int) -> np.ndarray:
    return rng.integers(FIRST, vocabulary, count)


class ScriptedUser(gym.Env[str, str]):
    """Says fixed sentences, whatever it hears; pays for the letter a, so that returns differ.

    Args:
        scripts: What users say, one sentence before each agent turn; ``options={"script": i}`` picks one at the reset.
        instructions: Said by the system first.
    """

    def __init__(self, scripts: Sequence[Sequence[str]], instructions: str = "") -> None:
        self.observation_space = self.action_space = Utterance()
        self.scripts, self.instructions = scripts, instructions
        self.script, self.turn = scripts[0], 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts with the first sentence."""
        super().reset(seed=seed)
        self.script, self.turn = self.scripts[(options or {}).get("script", 0)], 0
        return self.script[0], {"messages": opening_messages(self.script, self.instructions)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Goes on to the next sentence."""
        self.turn += 1
        said = self.script[self.turn] if self.turn < len(self.script) else ""
        news = {"messages": [{"role": "user", "content": said}] if said else []}
        return said, action.count("a") / 10, not said, False, news


def opening_messages(script: Sequence[str], instructions: str) -> list[dict[str, str]]:
    """What stands before the first agent turn."""
    system = [{"role": "system", "content": instructions}] if instructions else []
    return [*system, {"role": "user", "content": script[0]}]
