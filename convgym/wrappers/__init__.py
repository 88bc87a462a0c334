"""Wrappers: what is observed, what is rewarded, what is recorded."""

from convgym.wrappers.observation import Chat, Transcript
from convgym.wrappers.record import RecordTranscripts
from convgym.wrappers.reward import (
    Clip,
    CostPenalty,
    Custom,
    Format,
    LengthCost,
    Politeness,
    ProgressShaping,
    RewardTerm,
    Scale,
    TerminalOnly,
    TurnCost,
)

__all__ = [
    "Chat",
    "Clip",
    "CostPenalty",
    "Custom",
    "Format",
    "LengthCost",
    "Politeness",
    "ProgressShaping",
    "RecordTranscripts",
    "RewardTerm",
    "Scale",
    "TerminalOnly",
    "Transcript",
    "TurnCost",
]
