"""One GRPO update on given episodes: our learner and TRL's training half, on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from algos.learner.flops import training_flops
from benchmarks.throughput.contest import Conditions, Contestant, compete
from benchmarks.throughput.models import Model, skeleton
from benchmarks.throughput.work import conversations, episodes

OURS, TRL = "learner", "TRL, training half"
MICRO = 512  # tokens of a micro-batch where memory is to be spared: the same step, a little slower
SPARING = f"learner, micro-batches of {MICRO}"
UPDATE, PROFILE = "update", "profile"


def measure(
    model: Model,
    vocabulary: int,
    how: Conditions,
    *,
    rows: int = 64,
    group: int = 8,
    profiled: bool = True,
    sparing: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Lets both take one optimiser step on episodes of about 150 tokens, a third of them sampled.

    ``sparing`` has the learner take part a second time, in small micro-batches. ``settings`` are further entries of
    the job, such as ``device`` and ``dtype``.
    """
    talks = conversations(vocabulary, rows, opening=(40, 70), reply=(6, 24), group=group, instructions=24)
    made = episodes(talks, vocabulary, new=12)
    job = {"task": "learn", "folder": str(model.folder), "episodes": made, "group": group, **(settings or {})}
    ours = Contestant(OURS, "benchmarks.throughput.ours", job)
    small = Contestant(SPARING, "benchmarks.throughput.ours", {**job, "micro_tokens": MICRO})
    trl = Contestant(TRL, "benchmarks.peers.trl_grpo", job, "trl")
    found = compete([ours, *([small] if sparing else []), trl], {UPDATE: {}}, how)
    taken_apart: dict[str, Any] = {}
    if profiled:  # on its own: operations are timed one by one
        alone = compete([ours], {PROFILE: {"profile": True}}, Conditions(rounds=2))
        answers = alone[OURS]["asks"][PROFILE]
        best = max(range(len(answers["of_limit"])), key=answers["of_limit"].__getitem__)
        taken_apart = {name: values[best] for name, values in answers.items()}
    lengths, sampled = [len(episode["ids"]) for episode in made], sum(sum(episode["action"]) for episode in made)
    return {
        "parameters": model.parameters,
        "note": model.note,
        "episodes": rows,
        "tokens": sum(lengths),
        "sampled": sampled,
        "flops": training_flops(skeleton(model.folder)[0], lengths, sampled),
        "threads": how.threads,
        "rounds": how.rounds,
        "contestants": found,
        "profile": taken_apart,
    }


def seconds(part: dict[str, Any], name: str, figure: str = "cpu") -> float | None:
    """Least CPU seconds of an update; what TRL spends in its generating part is taken off."""
    answers = part["contestants"].get(name, {}).get("asks", {}).get(UPDATE)
    if not answers:
        return None
    off = answers.get(f"generation_{figure}", [0.0] * len(answers[figure]))
    return float(min(whole - generation for whole, generation in zip(answers[figure], off)))


def peak(part: dict[str, Any], name: str) -> float | None:
    """Peak memory of a contestant's process, MiB."""
    value: float | None = part["contestants"].get(name, {}).get("peak_mb")
    return value
