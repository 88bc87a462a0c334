"""Policy-gradient algorithms for conversations, over one learner.

``algos.make("grpo", high=0.28)`` builds an algorithm as ``gymnasium.make`` builds an environment. The package
imports without torch; a name is resolved when it is made.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from convgym.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from algos.base import Algorithm

__all__ = ["ALGORITHMS", "Preset", "make", "names", "register", "to_config"]

ENTRY_POINTS = "convgym.algorithms"


class Preset(NamedTuple):
    """A named setting of another algorithm: a variant that is data, not code."""

    target: str
    fields: Mapping[str, Any]


ALGORITHMS: dict[str, str | Preset | type[Algorithm]] = {
    # clones, and those that learn from what went well
    "bc": "algos.bc:BC",
    "awr": "algos.awr:AWR",
    "raft": "algos.raft:RAFT",
    "topr": "algos.topr:TOPR",
    # returns with a baseline
    "reinforce": "algos.reinforce:Reinforce",
    "reinforce_pp": "algos.reinforce_pp:ReinforcePP",
    "reinforce_pp_baseline": Preset("algos.reinforce_pp:ReinforcePP", {"baseline": "group_mean"}),
    "rebn": "algos.rebn:ReBN",
    "remax": "algos.remax:ReMax",
    # groups
    "grpo": "algos.grpo:GRPO",
    "dr_grpo": Preset("algos.grpo:GRPO", {"scale": "none", "reduce": "const"}),
    "rloo": Preset(
        "algos.grpo:GRPO",
        {"baseline": "leave_one_out", "scale": "none", "ratio": "sequence", "reduce": "seq_sum"},
    ),
    "dapo": Preset("algos.grpo:GRPO", {"drop_dead": True, "low": 0.2, "high": 0.28, "reduce": "token"}),
    "lite_ppo": Preset("algos.grpo:GRPO", {"scale": "batch", "reduce": "token"}),
    "gspo": Preset("algos.grpo:GRPO", {"ratio": "sequence", "low": 3e-4, "high": 4e-4}),
    "maxrl": Preset("algos.grpo:GRPO", {"scale": "mean", "reduce": "token"}),
    "cispo": "algos.cispo:CISPO",
    "sapo": "algos.sapo:SAPO",
    "gmpo": "algos.gmpo:GMPO",
    "gigpo": "algos.gigpo:GiGPO",
    "grpo_advantage_clip": "algos.grpo_advantage_clip:GRPOAdvantageClip",
    # a critic
    "ppo": "algos.ppo:PPO",
    "ppo_turn": "algos.ppo_turn:PPOTurn",
    "ppo_bilevel": "algos.ppo_bilevel:PPOBilevel",
    "vapo": "algos.vapo:VAPO",
}


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def names() -> list[str]:
    """Every algorithm that ``make`` knows: built in, registered, or brought by an installed package."""
    return sorted({*ALGORITHMS, *_installed()})


def register(name: str, target: str | type[Algorithm] | Preset) -> None:
    """Adds an algorithm under a new name.

    Args:
        name: A name that is not taken.
        target: ``"module:Class"``, a class, or a ``Preset``.

    Raises:
        ConfigError: if the name is taken or the target has none of these forms.
    """
    if name in names():
        raise ConfigError(f"Algorithm {name!r} is already registered; choose another name.")
    path = target.target if isinstance(target, Preset) else target
    if not isinstance(path, type) and str(path).count(":") != 1:
        raise ConfigError(
            f"Target of algorithm {name!r} is {target!r}: expected 'module:Class', a class or a Preset."
        )
    ALGORITHMS[name] = target


def make(name: str, /, **fields: Any) -> Algorithm:
    """Builds an algorithm by name; ``fields`` override the defaults or the preset's values.

    Raises:
        UnknownNameError: for an unknown name; it suggests the nearest.
        ConfigError: for an unknown field or an illegal value.
    """
    target: Any = ALGORITHMS.get(name) or _installed().get(name)
    if target is None:
        raise UnknownNameError.of("algorithm", name, names())
    if isinstance(target, EntryPoint):
        target = target.load()
    preset: Mapping[str, Any] = {}
    if isinstance(target, Preset):
        target, preset = target.target, target.fields
    cls = _load(name, target) if isinstance(target, str) else target

    from algos.base import from_config

    return from_config(cls, {**preset, **fields})


def to_config(algorithm: Algorithm) -> dict[str, Any]:
    """The algorithm's fields as a JSON-able dict: ``make(name, **to_config(a)) == a``."""
    from algos.base import to_config as fields_of

    return fields_of(algorithm)


def _load(name: str, path: str) -> type[Algorithm]:
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"Algorithm {name!r} is {path!r}, which cannot be imported: {error}.") from error
    return found  # type: ignore[no-any-return]
