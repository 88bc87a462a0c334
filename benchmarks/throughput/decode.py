"""Decoding: tokens a second by number of lanes, with and without the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.throughput.contest import Conditions, Contestant, compete, least
from benchmarks.throughput.models import Model
from benchmarks.throughput.work import prompts

ENGINE, GENERAL, GENERATE, VLLM = "engine", "engine, general path", "HF generate", "vLLM"
GROUPS = "reference, prompts of groups"


def measure(
    model: Model,
    vocabulary: int,
    how: Conditions,
    *,
    lanes: Sequence[int] = (1, 8, 32, 64),
    prompt: int = 100,
    new: int = 48,
    group: int = 1,
    contestants: Sequence[str] = (ENGINE, GENERATE),
) -> dict[str, Any]:
    """Lets contestants sample ``new`` tokens after prompts of ``prompt`` tokens, which ``group`` lanes share."""
    rows = [row for row in prompts(vocabulary, -(-max(lanes) // group), prompt) for _ in range(group)]
    job = {"task": "decode", "folder": str(model.folder), "prompts": rows, "new": new, "shared": group > 1}
    everybody = {
        ENGINE: Contestant(ENGINE, "benchmarks.throughput.ours", job),
        GENERAL: Contestant(GENERAL, "benchmarks.throughput.ours", {**job, "lean": False}),
        GENERATE: Contestant(GENERATE, "benchmarks.peers.hf", job),
        VLLM: Contestant(VLLM, "benchmarks.peers.vllm_sample", job, "vllm"),
    }
    asks = {str(n): {"lanes": n} for n in lanes}
    found = compete([everybody[name] for name in contestants], asks, how)
    return {"parameters": model.parameters, "note": model.note, "prompt": prompt, "new": new, "group": group,
            "lanes": list(lanes), "threads": how.threads, "rounds": how.rounds, "contestants": found}  # fmt: skip


def rate(part: dict[str, Any], name: str, lanes: int, clock: str = "cpu") -> float | None:
    """Sampled tokens per second of a ``clock`` (``"cpu"`` or ``"wall"``), the feeding of the prompts included."""
    seconds = least(part["contestants"], name, str(lanes), clock)
    return None if seconds is None else lanes * part["new"] / seconds


def decoding_rate(part: dict[str, Any], name: str, lanes: int, clock: str = "cpu") -> float | None:
    """Sampled tokens per second after the first one: decoding alone. ``None`` without a measurement."""
    whole = least(part["contestants"], name, str(lanes), clock)
    first = least(part["contestants"], name, str(lanes), f"first_{clock}")
    if whole is None or first is None:
        return None
    return float(lanes * (part["new"] - 1) / max(whole - first, 1e-9))
