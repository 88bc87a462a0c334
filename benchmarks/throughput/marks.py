"""What is aimed at, and whether the measured figures reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.throughput import decode, learner, training, turns

Parts = Mapping[str, Any]


@dataclass(frozen=True)
class Mark:
    """An aim and what was measured.

    Attributes:
        about: What is compared, in words.
        aim: The figure aimed at.
        value: The measured one; ``None`` if it was not measured.
        unit: ``"x"`` for a ratio, ``"tok/s"``, or ``"%"``.
        at_most: Whether smaller is better.
    """

    about: str
    aim: float
    value: float | None
    unit: str = "x"
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """``None`` if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.aim if self.at_most else self.value >= self.aim


def marks(parts: Parts) -> list[Mark]:
    """All aims, beside what these parts say. Ratios are of CPU seconds."""
    return [
        Mark("decode, reference, 64 lanes, over HF generate", 3, _decode(parts, "reference", 64)),
        Mark("decode, reference, 64 lanes in groups of 8, over HF generate", 3, _decode(parts, decode.GROUPS, 64)),
        Mark("decode, reference, 64 lanes, over vLLM", 3, _decode(parts, "reference", 64, decode.VLLM)),
        Mark("decode, reference, 1 lane, over HF generate", 3, _decode(parts, "reference", 1)),
        Mark("decode, nano, 64 lanes", 15_000, _rate(parts, "nano", 64), "tok/s"),
        Mark("4 turns, reference, 32 lanes, over HF generate", 5, _turns(parts, "reference")),
        Mark("update, reference, 64 episodes, over TRL's training half", 2.5, _update(parts, "reference")),
        Mark("update, reference, large products, share of their limit", 50, _of_limit(parts), "%"),
        Mark("4-turn training step, reference, over TRL's rollout_func", 4, _step(parts, "trl", training.TRL)),
        Mark("training step, stateset-agents' own work, over it", 3, _step(parts, "stateset", training.STATESET)),
        Mark("SmolLM2-135M, decode, 32 lanes, over HF generate", 1.5, _decode(parts, "smollm2", 32)),
        Mark("SmolLM2-135M, 4 turns, 8 lanes, over HF generate", 3, _turns(parts, "smollm2")),
        Mark("SmolLM2-135M, update, over TRL's training half", 2, _update(parts, "smollm2")),
        Mark("SmolLM2-135M, peak memory of an update, of TRL's", 60, _memory(parts), "%", at_most=True),
    ]


def ratio(found: Mapping[str, Any] | None, of: Callable[[Any, str], float | None], a: str, b: str) -> float | None:
    """``of(found, a) / of(found, b)``, where both are measured."""
    above, below = (None, None) if found is None else (of(found, a), of(found, b))
    return None if above is None or not below else above / below


def _part(parts: Parts, name: str, entry: str) -> Any:
    return parts.get(name, {}).get(entry)


def _decode(parts: Parts, model: str, lanes: int, peer: str = decode.GENERATE) -> float | None:
    found = _part(parts, "decode", model)
    return ratio(found, lambda part, name: decode.rate(part, name, lanes), decode.ENGINE, peer)


def _rate(parts: Parts, model: str, lanes: int) -> float | None:
    found = _part(parts, "decode", model)
    return None if found is None else decode.rate(found, decode.ENGINE, lanes)


def _turns(parts: Parts, model: str) -> float | None:
    return ratio(_part(parts, "turns", model), turns.rate, turns.ENGINE, turns.GENERATE)


def _update(parts: Parts, model: str) -> float | None:
    found = _part(parts, "learner", model)
    return ratio(found, learner.seconds, learner.TRL, _learner(found))


def _of_limit(parts: Parts) -> float | None:
    found = _part(parts, "learner", "reference")
    return 100 * found["profile"]["of_limit"] if found and found["profile"] else None


def _memory(parts: Parts) -> float | None:
    found = _part(parts, "learner", "smollm2")
    share = ratio(found, learner.peak, _learner(found), learner.TRL)
    return None if share is None else 100 * share


def _step(parts: Parts, entry: str, peer: str) -> float | None:
    return ratio(_part(parts, "training", entry), training.seconds, peer, training.OURS)


def _learner(found: Mapping[str, Any] | None) -> str:
    """Whose time and memory are looked at: the sparing one's both, if it took part."""
    return learner.SPARING if found and learner.SPARING in found["contestants"] else learner.OURS
