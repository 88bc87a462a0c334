"""Conversations of several turns at the level of tokens: what keeping keys and values over turns is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.throughput.contest import Conditions, Contestant, compete, least
from benchmarks.throughput.models import Model
from benchmarks.throughput.work import FIRST, conversations

ENGINE, GENERATE, VLLM = "engine", "HF generate, all again", "vLLM, prefix cache"
FIXED, SAMPLED = "turns of equal length", "turns that end at random"


def measure(
    model: Model,
    vocabulary: int,
    how: Conditions,
    *,
    lanes: int = 32,
    episodes: int | None = None,
    new: int = 24,
    cap: int = 64,
    sampled_ends: bool = True,
    contestants: Sequence[str] = (ENGINE, GENERATE),
) -> dict[str, Any]:
    """Lets contestants have the same conversations of four turns, openings and replies of ragged lengths.

    Args:
        model: Who speaks.
        vocabulary: Of the model.
        how: Of the contest.
        lanes: Conversations at once.
        episodes: Conversations in all, by default one a lane.
        new: Tokens of each agent turn, exactly; all contestants sample as many.
        cap: Most tokens of a turn that ends at random.
        sampled_ends: Also lets turns end at random, about every ``new`` tokens: some tokens of the vocabulary end a
            turn. Contestants then sample different numbers of tokens, which are reported.
        contestants: Names of those that take part.
    """
    talks = conversations(vocabulary, episodes or lanes)
    job = {"task": "turns", "folder": str(model.folder), "conversations": talks, "lanes": lanes}
    everybody = {
        ENGINE: Contestant(ENGINE, "benchmarks.throughput.ours", job),
        GENERATE: Contestant(GENERATE, "benchmarks.peers.hf", job),
        VLLM: Contestant(VLLM, "benchmarks.peers.vllm_sample", job, "vllm"),
    }
    asks: dict[str, dict[str, Any]] = {FIXED: {"new": new, "ends": []}}
    if sampled_ends:
        asks[SAMPLED] = {"new": cap, "ends": list(range(FIRST, vocabulary, new))}
    return {
        "parameters": model.parameters,
        "note": model.note,
        "lanes": lanes,
        "episodes": len(talks),
        "turns": 1 + len(talks[0]["replies"]),
        "new": new,
        "cap": cap,
        "heard_tokens": sum(len(t["opening"]) + sum(map(len, t["replies"])) for t in talks) / len(talks),
        "threads": how.threads,
        "rounds": how.rounds,
        "contestants": compete([everybody[name] for name in contestants], asks, how),
    }


def rate(part: dict[str, Any], name: str, ask: str = FIXED) -> float | None:
    """Episodes per CPU second; ``None`` without a measurement."""
    seconds = least(part["contestants"], name, ask)
    return None if seconds is None else part["episodes"] / seconds
