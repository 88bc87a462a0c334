"""The one table of environments. Modules are imported when an environment is first made."""

from __future__ import annotations

import gymnasium as gym

__all__ = ["ENVIRONMENTS", "register_all"]

ENVIRONMENTS: dict[str, tuple[str, str]] = {
    # id: ("module:Class", what it probes)
    "convgym/CustomerService-v0": (
        "convgym.scenarios.customer_service:CustomerService",
        "tools, policy, identity: refunds, exchanges, cancellations under a policy that varies",
    ),
    "convgym/SlotFilling-v0": (
        "convgym.scenarios.slot_filling:SlotFilling",
        "information gathering: a booking form, corrections included",
    ),
    "convgym/TextBandit-v0": (
        "convgym.scenarios.text_bandit:TextBandit",
        "micro env, exploration: which word pays?",
    ),
}


def register_all() -> None:
    """Registers every id with Gymnasium, with convgym's own batched env for ``gym.make_vec``."""
    for env_id, (entry_point, _) in ENVIRONMENTS.items():
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=entry_point,
                vector_entry_point=f"convgym.vector:{entry_point.rpartition(':')[2]}Vector",
                disable_env_checker=True,
                order_enforce=False,  # the environment itself says when it is stepped out of order
            )
