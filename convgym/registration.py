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
