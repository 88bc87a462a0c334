"""Configurations: illegal ones cannot be built, and the command line builds the same ones."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import algos
from algos.base import KL
from algos.training import config as config_module
from algos.training.config import PROFILES, RunConfig, from_args, parse_fields
from convgym.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size: expected at least 2 for 'grpo'"),
        ({"group_size": 7}, "multiple of group_size = 7, got 64"),
        ({"algo": "grppo"}, "Did you mean 'grpo'"),
        ({"algo_fields": {"hihg": 0.3}}, "Did you mean 'high'"),
        ({"algo_fields": {"high": -1}}, "GRPO.high = -1"),
        ({"algo_fields": {"kl": {"beta": -1}}}, "KL.beta = -1"),
        ({"updates": 0}, "updates: expected a whole number of at least 1, got 0"),
        ({"updates": 2.5}, "updates"),
        ({"lanes": True}, "lanes"),
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"schedule": "cosin"}, "schedule: expected one of constant, linear, cosine"),
        ({"precision": "fp8"}, "precision"),
        ({"control": "shuffled"}, "control"),
        ({"critic": "none"}, "critic"),
        ({"critic_warmup": -1}, "critic_warmup"),
        ({"mismatch_limit": -0.1}, "mismatch_limit"),
        ({"importance_cap": 0.0}, "importance_cap"),
        ({"eval_modes": ()}, "eval_modes"),
        ({"eval_modes": ("sampled",)}, "eval_modes"),
        ({"patience": 0}, "patience"),
        ({"seed": -1}, "seed"),
        ({"env_kwargs": ["difficulty"]}, "env_kwargs"),
        ({"max_failures": 1.5}, "max_failures"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_an_illegal_configuration_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        RunConfig(**changes)


def test_an_algorithm_without_groups_takes_single_conversations() -> None:
    assert RunConfig(algo="ppo", group_size=1).group_size == 1


def test_it_is_frozen_and_survives_json(tmp_path: Path) -> None:
    config = RunConfig(algo_fields={"kl": {"beta": 0.1}}, env_kwargs={"difficulty": 3}, eval_modes=("greedy",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert RunConfig.load(tmp_path) == config
    with pytest.raises(UnknownNameError, match="Did you mean 'seed'"):
        RunConfig.from_json({"sed": 1})
    with pytest.raises(ConfigError, match="folder of a run"):
        RunConfig.load(tmp_path / "nothing")


def test_defaults_that_depend_are_written_out() -> None:
    nano, other = RunConfig(device="cpu").resolved(), RunConfig(model="/some/folder", device="cpu").resolved()
    assert nano.learning_rate is not None and other.learning_rate is not None
    assert nano.learning_rate == pytest.approx(50 * other.learning_rate)
    assert nano.precision == "fp32"
    assert nano.out == "runs/CustomerService-v0/grpo-0"
    assert nano.resolved() == nano
    assert RunConfig(learning_rate=0.1, out="x").resolved().learning_rate == 0.1


PROMISED = {  # the profiles: learning rate, group, accumulation, norm, warm-up, evaluation, adjusts, patience
    "conservative": (1e-6, 32, 8, 0.5, 0.2, 25, True, 30),
    "balanced": (5e-6, 16, 4, 1.0, 0.1, 50, True, None),
    "aggressive": (1e-5, 8, 2, 2.0, 0.05, 100, False, None),
}


@pytest.mark.parametrize("name", PROMISED)
def test_profiles_are_what_the_guide_promises(name: str) -> None:
    c = RunConfig.profile(name)
    accumulation = c.episodes_per_update // c.group_size
    found = (c.learning_rate, c.group_size, accumulation, c.max_grad_norm, c.warmup, c.eval_every)
    assert (*found, c.kl_limit is not None, c.patience) == PROMISED[name]


def test_profiles_set_the_algorithm_where_it_has_the_field() -> None:
    algorithms = {name: algos.make("grpo", **RunConfig.profile(name).algo_fields) for name in PROFILES}
    clips = [algorithms[name].high for name in ("conservative", "balanced", "aggressive")]  # type: ignore[attr-defined]
    assert clips == sorted(clips) and len(set(clips)) == 3
    betas = [algorithms[name].kl.beta for name in ("conservative", "balanced", "aggressive")]
    assert betas == sorted(betas, reverse=True) and len(set(betas)) == 3
    assert RunConfig.profile("balanced", algo="reinforce").algo_fields == {"kl": {"beta": 0.05}}
    changed = RunConfig.profile("balanced", group_size=8, algo_fields={"high": 0.28})
    assert changed.group_size == 8
    assert changed.algo_fields == {"kl": {"beta": 0.05}, "low": 0.2, "high": 0.28}
    with pytest.raises(UnknownNameError, match="balanced"):
        RunConfig.profile("balancd")


def test_fields_are_read_as_json_where_they_can_be() -> None:
    items = ["high=0.28", "kl.beta=0.1", "kl.placement=loss_k3", "low=null", "whiten=true", "name=a=b", 'x={"y": [1]}']
    assert parse_fields(items) == {
        "high": 0.28,
        "kl": {"beta": 0.1, "placement": "loss_k3"},
        "low": None,
        "whiten": True,
        "name": "a=b",
        "x": {"y": [1]},
    }
    assert algos.make("grpo", **parse_fields(items[:2])).kl == KL(0.1)
    for wrong in ("high", "=1", "kl.=1", ".beta=1"):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            parse_fields([wrong])


def test_the_command_line_builds_the_same_configuration() -> None:
    args = "--algo ppo --updates 3 --learning-rate 1e-3 --algo-field lam=0.9 kl.beta=0.1 --eval-modes sample greedy"
    config, resume = from_args([*args.split(), "--env-field", "difficulty=3", "--quiet", "--no-tensorboard"])
    assert not resume
    assert config == RunConfig(
        algo="ppo",
        updates=3,
        learning_rate=1e-3,
        algo_fields={"lam": 0.9, "kl": {"beta": 0.1}},
        eval_modes=("sample", "greedy"),
        env_kwargs={"difficulty": 3},
        quiet=True,
        tensorboard=False,
    )
    assert from_args([]) == (RunConfig(), False)


def test_a_repeated_option_adds_to_the_first() -> None:
    args = ["--algo-field", "low=0.1", "--seed", "3", "--algo-field", "high=0.3", "--env-field", "difficulty=1"]
    config, _ = from_args([*args, "--env-field", "max_turns=5"])
    assert config == RunConfig(
        algo_fields={"low": 0.1, "high": 0.3}, env_kwargs={"difficulty": 1, "max_turns": 5}, seed=3
    )


def test_a_profile_on_the_command_line_gives_defaults() -> None:
    config, _ = from_args(["--profile", "aggressive", "--algo-field", "high=0.5", "--learning-rate", "2e-5"])
    assert config == RunConfig.profile("aggressive", algo_fields={"high": 0.5}, learning_rate=2e-5)
    assert config.episodes_per_update == 16


def test_resuming_needs_no_option_twice(tmp_path: Path) -> None:
    first = RunConfig(algo="ppo", seed=7, updates=5, out=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(first.to_json()))
    config, resume = from_args(["--resume", "--out", str(tmp_path), "--updates", "9"])
    assert resume
    assert config == dataclasses.replace(first, updates=9)


@pytest.mark.parametrize("args", [["--unknown", "3"], ["--updates", "many"], ["--algo-field", "high"], ["stray"]])
def test_a_wrong_option_leaves_with_two(args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        from_args(args)
    assert caught.value.code == 2


def test_every_field_has_a_doc_that_the_help_shows(capsys: pytest.CaptureFixture[str]) -> None:
    tree = ast.parse(inspect.getsource(config_module))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "RunConfig").body
    documented = {
        field.target.id: doc.value.value
        for field, doc in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    }
    assert set(documented) == {field.name for field in dataclasses.fields(RunConfig)}
    with pytest.raises(SystemExit):
        from_args(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, doc in documented.items():
        assert " ".join(str(doc).split()[:3]) in shown, name
