"""Typing noise: what hurry does to words, never to the ids and numbers that the episode turns on."""

from __future__ import annotations

from collections.abc import Collection

from convgym.seeding import Draws

__all__ = ["add_typos"]


def add_typos(text: str, rate: float, rng: Draws, keep: Collection[str] = ()) -> str:
    """Swaps two neighbouring letters in some words.

    Args:
        text: What was meant.
        rate: Probability of a typo in each word of at least four lower-case letters.
        rng: The noise stream.
        keep: Words that are typed with care: the values that the episode turns on.

    Returns:
        The text as typed. Words with digits, capitals or punctuation inside are kept.
    """
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) >= 4 and word.isalpha() and word.islower() and word not in keep and rng.random() < rate:
            at = 1 + int(rng.random() * (len(word) - 2))
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
