"""Wrappers: what is observed, what is rewarded, what is recorded."""

from convgym.wrappers.acts import Acts
from convgym.wrappers.base import RewardTerm
from convgym.wrappers.judge import Judge
from convgym.wrappers.manners import Empathy, Format, Politeness, Repetition
from convgym.wrappers.observation import Chat, Transcript
from convgym.wrappers.record import RecordTranscripts
from convgym.wrappers.reward import (
    Clip,
    CostPenalty,
    Custom,
    Delay,
    LengthCost,
    Noise,
    Normalize,
    ProgressShaping,
    Scale,
    TerminalOnly,
    TurnCost,
)

__all__ = [
    "Acts",
    "Chat",
    "Clip",
    "CostPenalty",
    "Custom",
    "Delay",
    "Empathy",
    "Format",
    "Judge",
    "LengthCost",
    "Noise",
    "Normalize",
    "Politeness",
    "ProgressShaping",
    "RecordTranscripts",
    "Repetition",
    "RewardTerm",
    "Scale",
    "TerminalOnly",
    "Transcript",
    "TurnCost",
]
