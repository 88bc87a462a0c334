"""The one table of environments. Modules are imported when an environment is first made."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

__all__ = ["ENVIRONMENTS", "LIVE", "PACK", "no_live_user", "register_all"]

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
    "convgym/ToolDatabase-v0": (
        "convgym.scenarios.tool_database:ToolDatabase",
        "multi-hop tool use: an answer that takes several linked tables",
    ),
    "convgym/PolicyRefusal-v0": (
        "convgym.scenarios.policy_refusal:PolicyRefusal",
        "holding a rule under pressure, and only where there is one",
    ),
    "convgym/Negotiation-v0": (
        "convgym.scenarios.negotiation:Negotiation",
        "strategy against a hidden price on a shrinking pie",
    ),
    "convgym/TwentyQuestions-v0": (
        "convgym.scenarios.twenty_questions:TwentyQuestions",
        "adaptive search with answers that may be wrong",
    ),
    "convgym/Clarification-v0": (
        "convgym.scenarios.clarification:Clarification",
        "asking only when it is needed",
    ),
    "convgym/DeEscalation-v0": (
        "convgym.scenarios.de_escalation:DeEscalation",
        "the order of empathy and repair with an angry customer",
    ),
    "convgym/LongMemory-v0": (
        "convgym.scenarios.long_memory:LongMemory",
        "recall of what was said many turns ago",
    ),
    "convgym/MultiIntent-v0": (
        "convgym.scenarios.multi_intent:MultiIntent",
        "finishing several tasks, one of them conditional",
    ),
    "convgym/Triage-v0": (
        "convgym.scenarios.triage:Triage",
        "sequential diagnosis with asymmetric costs",
    ),
    "convgym/SocialEngineering-v0": (
        "convgym.scenarios.social_engineering:SocialEngineering",
        "security: attackers and honest callers, pretexts and forged tool output",
    ),
    "convgym/AskOrAct-v0": (
        "convgym.scenarios.ask_or_act:AskOrAct",
        "micro env, value of information: ask first, or act?",
    ),
    "convgym/DelayedConsent-v0": (
        "convgym.scenarios.delayed_consent:DelayedConsent",
        "micro env, credit over turns: an early word decides a late reward",
    ),
    "convgym/Haggle-v0": (
        "convgym.scenarios.haggle:Haggle",
        "micro env, discounting: wait for a better offer, or take this one?",
    ),
    "convgym/TextBandit-v0": (
        "convgym.scenarios.text_bandit:TextBandit",
        "micro env, exploration: which word pays?",
    ),
}

# The same families with a language model as the user: `convgym/CustomerServiceLLM-v0` and so on. Micro envs
# have no user whose words could vary.
LIVE: dict[str, tuple[str, str]] = {
    env_id.replace("-v0", "LLM-v0"): entry
    for env_id, entry in ENVIRONMENTS.items()
    if not entry[1].startswith("micro env")
}

# Conversations of one's own: `gym.make("convgym/Pack-v0", path=...)`. It stands beside the table, because there is
# nothing to play without a folder.
PACK = ("convgym/Pack-v0", "convgym.packs:Pack")


def no_live_user(env_id: str) -> str:
    """Says which id to make for ``user="llm"``."""
    live = env_id.replace("-v0", "LLM-v0")
    instead = f"make {live!r}" if live in LIVE else "this family has no such id"
    return (
        f"user: expected a deterministic user for {env_id!r}, got 'llm', whose answers may differ each time; "
        f"{instead}, or replay a recorded user with user='cassette'."
    )


def register_all() -> None:
    """Registers every id with Gymnasium, with convgym's own batched env for ``gym.make_vec``."""
    for env_id, (entry_point, _) in ENVIRONMENTS.items():
        _register(env_id, entry_point, "")
    _register(*PACK, "")
    for env_id, (entry_point, _) in LIVE.items():
        _register(env_id, entry_point, "LLM", kwargs={"user": "llm"}, nondeterministic=True)


def _register(env_id: str, entry_point: str, suffix: str, **settings: Any) -> None:
    if env_id in gym.registry:
        return
    gym.register(
        id=env_id,
        entry_point=entry_point,
        vector_entry_point=f"convgym.vector:{entry_point.rpartition(':')[2]}{suffix}Vector",
        disable_env_checker=True,
        order_enforce=False,  # the environment itself says when it is stepped out of order
        **settings,
    )
