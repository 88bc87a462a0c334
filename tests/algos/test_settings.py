"""Illegal settings are refused at construction, by an error that names the field and what is legal."""

from __future__ import annotations

import math
from typing import Any

import pytest

import algos
from algos.base import KL
from convgym.errors import ConfigError

ILLEGAL: list[tuple[str, dict[str, Any], str]] = [
    ("grpo", {"reduce": "mean"}, r"reduce.*'token', 'seq'"),
    ("grpo", {"epochs": 0}, "epochs.*at least 1"),
    ("grpo", {"epochs": 1.5}, "epochs.*whole number"),
    ("grpo", {"epochs": True}, "epochs.*whole number"),
    ("grpo", {"minibatches": 0}, "minibatches.*at least 1"),
    ("grpo", {"entropy": -0.1}, "entropy.*at least 0"),
    ("grpo", {"entropy": math.nan}, "entropy.*finite"),
    ("grpo", {"baseline": "mean"}, "baseline.*'group_mean'"),
    ("grpo", {"scale": "std"}, "scale.*'group'"),
    ("grpo", {"ratio": "word"}, "ratio.*'sequence'"),
    ("grpo", {"assignment": "turn"}, "assignment.*'process'"),
    ("grpo", {"low": 0.0}, r"low.*\(0, 1\]"),
    ("grpo", {"low": 1.5}, r"low.*\(0, 1\]"),
    ("grpo", {"high": 0.0}, "high.*above 0"),
    ("grpo", {"high": math.inf}, "high.*finite"),
    ("grpo", {"high": "0.2"}, "high.*number"),
    ("grpo", {"eps": -1e-6}, "eps.*at least 0"),
    ("grpo", {"reward_clip": 0.0}, "reward_clip.*above 0"),
    ("grpo", {"mask_truncated": 1}, "mask_truncated.*bool"),
    ("grpo", {"gamma_turn": 1.1}, r"gamma_turn.*\[0, 1\]"),
    ("grpo", {"gamma_turn": -0.1}, r"gamma_turn.*\[0, 1\]"),
    ("grpo", {"assignment": "gae", "value_clip": 0.0}, "value_clip.*above 0"),
    ("grpo", {"assignment": "gae", "value_coef": 0.0}, "value_coef.*above 0"),
    ("grpo", {"assignment": "gae", "lam": 1.1}, r"lam.*\[0, 1\]"),
    # a field is used or refused
    ("grpo", {"scale": "none", "eps": 0.1}, "eps.*no effect unless scale"),
    ("dr_grpo", {"eps": 0.1}, "eps.*no effect unless scale"),
    ("grpo", {"lam": 0.9}, "lam.*no effect unless assignment"),
    ("grpo", {"gamma_token": 0.9}, "gamma_token.*no effect unless assignment"),
    ("grpo", {"assignment": "process", "value_coef": 1.0}, "value_coef.*no effect unless assignment"),
    ("grpo", {"value_clip": None}, "value_clip.*no effect unless assignment"),
    # tokens that share a ratio share its gradient
    ("grpo", {"ratio": "sequence", "assignment": "process"}, "ratio.*no coarser"),
    ("gspo", {"assignment": "gae"}, "ratio.*no coarser"),
    ("grpo", {"ratio": "turn", "assignment": "gae"}, "ratio.*no coarser"),
    ("cispo", {"low": 0.2}, "low.*no effect unless"),
    ("cispo", {"high": None}, "high.*finite number"),
    ("cispo", {"ratio": "sequence"}, "ratio.*'token'"),
    ("sapo", {"low": 0.2}, "low.*no effect unless"),
    ("sapo", {"high": 0.2}, "high.*no effect unless"),
    ("sapo", {"ratio": "sequence"}, "ratio.*'token'"),
    ("sapo", {"tau_positive": 0.0}, "tau_positive.*above 0"),
    ("sapo", {"tau_negative": -1.0}, "tau_negative.*above 0"),
    ("gmpo", {"ratio": "turn"}, "ratio.*'token'"),
    ("gmpo", {"assignment": "process"}, "assignment.*'outcome'"),
    ("gmpo", {"assignment": "gae"}, "assignment.*'outcome'"),
    ("gigpo", {"omega": -0.1}, "omega.*at least 0"),
    ("gigpo", {"gamma_step": 1.1}, r"gamma_step.*\[0, 1\]"),
    ("gigpo", {"baseline": "leave_one_out"}, "baseline.*'group_mean'"),
    ("gigpo", {"scale": "batch"}, "scale.*'group', 'none'"),
    ("gigpo", {"assignment": "process"}, "assignment.*'outcome'"),
    ("gigpo", {"ratio": "sequence"}, "ratio.*no coarser"),
    ("gigpo", {"drop_dead": True}, "drop_dead.*False"),
    ("grpo_advantage_clip", {"bound": 0.0}, "bound.*above 0"),
    ("grpo_advantage_clip", {"ratio": "sequence"}, "ratio.*no effect unless"),
    ("grpo_advantage_clip", {"low": 0.2}, "low.*no effect unless"),
    ("grpo_advantage_clip", {"high": 0.2}, "high.*no effect unless"),
    ("grpo_advantage_clip", {"epochs": 2}, "epochs.*no ratio"),
    ("grpo_advantage_clip", {"minibatches": 2}, "minibatches.*no ratio"),
    ("reinforce", {"decay": 0.5}, "decay.*no effect unless baseline"),
    ("reinforce", {"baseline": "ema", "decay": 1.0}, r"decay.*\[0, 1\)"),
    ("reinforce", {"epochs": 2}, "epochs.*ratio"),
    ("reinforce", {"minibatches": 2}, "minibatches.*ratio"),
    ("reinforce", {"baseline": "group_mean"}, "baseline.*'batch_mean'"),
    ("ppo", {"lam": 1.1}, r"lam.*\[0, 1\]"),
    ("ppo", {"gamma_token": -0.1}, r"gamma_token.*\[0, 1\]"),
    ("ppo", {"gamma_turn": 2}, r"gamma_turn.*\[0, 1\]"),
    ("ppo", {"low": 0.0}, "low"),
    ("ppo", {"high": 0.0}, "high"),
    ("ppo", {"value_clip": 0.0}, "value_clip"),
    ("ppo", {"value_coef": 0.0}, "value_coef"),
    ("ppo", {"whiten": "yes"}, "whiten.*bool"),
    ("ppo_turn", {"gamma_token": 0.9}, "gamma_token.*no effect unless tokens are steps"),
    ("ppo_turn", {"lam": 1.1}, r"lam.*\[0, 1\]"),
    ("ppo_turn", {"top_entropy": 0.2}, "top_entropy.*1 with a critic"),
    ("ppo_bilevel", {"lam_turn": -0.1}, r"lam_turn.*\[0, 1\]"),
    ("ppo_bilevel", {"lam_token": 0.9}, "lam_token"),
    ("vapo", {"lam": 0.9}, "lam.*no effect unless one lambda"),
    ("vapo", {"lam_critic": 1.1}, r"lam_critic.*\[0, 1\]"),
    ("vapo", {"alpha": 0.0}, "alpha.*above 0"),
    ("vapo", {"mu": -0.1}, "mu.*at least 0"),
    ("vapo", {"mu": 0.0, "positive_above": 0.5}, "positive_above.*no effect unless mu"),
    ("vapo", {"top_entropy": 0.2}, "top_entropy.*1 with a critic"),
    ("reinforce_pp", {"baseline": "batch_mean"}, "baseline.*'group_mean'"),
    ("reinforce_pp", {"gamma_token": 1.1}, r"gamma_token.*\[0, 1\]"),
    ("reinforce_pp", {"gamma_turn": -0.1}, r"gamma_turn.*\[0, 1\]"),
    ("reinforce_pp", {"low": 0.0}, "low"),
    ("reinforce_pp_baseline", {"high": 0.0}, "high"),
    ("rebn", {"gamma_turn": 1.1}, r"gamma_turn.*\[0, 1\]"),
    ("rebn", {"low": 1.5}, "low"),
    ("rebn", {"high": -1.0}, "high"),
    ("remax", {"low": 1.5}, "low"),
    ("remax", {"high": 0.0}, "high"),
    ("raft", {"threshold": math.inf}, "threshold.*finite"),
    ("raft", {"kl": KL(0.1, "reward_k1")}, "kl.*in the loss"),
    ("topr", {"centre": math.nan}, "centre.*finite"),
    ("awr", {"beta": 0.0}, "beta.*above 0"),
    ("awr", {"max_weight": 0.0}, "max_weight.*above 0"),
    ("awr", {"scale": "group"}, "scale.*'batch'"),
    ("bc", {"kl": KL(0.1, "reward_k1")}, "kl"),
    ("bc", {"kl": KL(0.1, "loss_k3_is")}, "kl"),
    ("grpo", {"kl": {"beta": -1.0}}, "beta.*at least 0"),
    ("grpo", {"kl": {"beta": math.inf}}, "beta.*finite"),
    ("grpo", {"kl": {"placement": "loss_k4"}}, "placement.*'loss_k2'"),
    ("grpo", {"kl": {"placement": "loss_k1"}}, "loss_k1.*reward_k1"),
    ("grpo", {"kl": 0.1}, "kl.*KL"),
]


@pytest.mark.parametrize(("name", "fields", "message"), ILLEGAL)
def test_illegal_settings_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algos.make(name, **fields)


LEGAL: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"low": 1, "high": None, "gamma_turn": 0, "eps": 0}),
    ("grpo", {"assignment": "gae", "lam": 0.0, "gamma_token": 0.0, "value_clip": None, "value_coef": 1}),
    ("grpo", {"ratio": "turn", "assignment": "process"}),
    ("reinforce", {"baseline": "ema", "decay": 0.0}),
    ("ppo", {"low": None, "high": None, "lam": 0, "gamma_turn": 0, "gamma_token": 1}),
    ("bc", {"epochs": 3, "minibatches": 2, "kl": {"beta": 0.1, "placement": "loss_k3"}}),
    ("grpo", {"kl": {"beta": 0.04, "placement": "reward_k1"}, "entropy": 0}),
    ("reinforce_pp", {"kl": {"beta": 0.01, "placement": "reward_k1"}, "low": None, "whiten": False}),
    ("raft", {"epochs": 3, "minibatches": 2, "kl": {"beta": 0.1, "placement": "loss_k3_is"}}),
    ("topr", {"epochs": 2, "centre": -1}),
    ("awr", {"epochs": 2, "minibatches": 4, "scale": "none", "beta": 0.05, "max_weight": 1}),
]


@pytest.mark.parametrize(("name", "fields"), LEGAL)
def test_legal_settings_are_kept_as_they_are(name: str, fields: dict[str, Any]) -> None:
    config = algos.to_config(algos.make(name, **fields))
    assert {key: config[key] for key in fields} == fields


@pytest.mark.parametrize(
    ("name", "fields", "needs"),
    [
        ("reinforce", {}, set()),
        ("reinforce", {"kl": KL(0.1, "loss_k2")}, {"reference"}),
        ("bc", {}, set()),
        ("ppo", {}, {"critic"}),
        ("ppo", {"kl": KL(0.1, "reward_k1")}, {"critic", "reference"}),
        ("grpo", {}, {"group"}),
        ("grpo", {"baseline": "none"}, {"group"}),
        ("grpo", {"baseline": "group_median", "scale": "batch"}, {"group"}),
        ("rloo", {}, {"group"}),
        ("grpo", {"baseline": "none", "scale": "none"}, set()),
        ("grpo", {"baseline": "none", "scale": "none", "drop_dead": True}, {"group"}),
        ("maxrl", {"baseline": "none"}, {"group"}),
        ("gigpo", {"scale": "none"}, {"group"}),
        ("grpo", {"baseline": "global_mean", "scale": "batch"}, set()),
        ("grpo", {"assignment": "gae", "kl": KL(0.1)}, {"group", "critic", "reference"}),
    ],
)
def test_needs_follow_from_the_settings(name: str, fields: dict[str, Any], needs: set[str]) -> None:
    assert algos.make(name, **fields).needs == needs
