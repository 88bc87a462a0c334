"""Every scenario can be solved, on every difficulty and split, and cannot be solved by the lazy."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from convgym import agents
from convgym.core import SPLITS
from convgym.errors import UnknownNameError
from convgym.scenarios.text_bandit import ARMS, MEANS
from tests.convgym.play import Steps, bare, play

SERVICE, FORM, BANDIT = "convgym/CustomerService-v0", "convgym/SlotFilling-v0", "convgym/TextBandit-v0"
LEVELS = (1, 2, 3, 4, 5)
SEEDS = 300
LAZY = ("silent", "random", "always-refuse")


def episodes(env_id: str, name: str, count: int, **settings) -> list[Steps]:
    """Plays an agent on the first seeds."""
    env = bare(env_id, **settings)
    agent = agents.make(name, env, seed=1)
    return [play(env, agent, seed) for seed in range(count)]


def success(played: list[Steps]) -> float:
    return sum(steps[-1][-1]["success"] for steps in played) / len(played)


def pay(played: list[Steps]) -> float:
    return sum(step[1] for steps in played for step in steps[1:]) / len(played)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("env_id", [SERVICE, FORM])
def test_the_oracle_always_succeeds(env_id, difficulty, split):
    played = episodes(env_id, "oracle", SEEDS, difficulty=difficulty, split=split)
    failures = [seed for seed, steps in enumerate(played) if not steps[-1][-1]["success"]]
    assert failures == []
    assert all(step[-1]["cost"] == 0.0 for steps in played for step in steps)
    assert pay(played) == 1.0


def best(difficulty: int) -> float:
    return max(MEANS[: (2, 3, 4, 6, 8)[difficulty - 1]])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_bandits_oracle_earns_the_optimum(difficulty, split):
    """900 pulls at the best mean: the count of pays is binomial, so the bound is a test and no tolerance."""
    played = episodes(BANDIT, "oracle", SEEDS, difficulty=difficulty, split=split)
    paid = round(3 * SEEDS * pay(played))
    assert binomtest(paid, 3 * SEEDS, best(difficulty)).pvalue > 1e-4
    assert success(played) == 1.0


@pytest.mark.parametrize("difficulty", [2, 5])
def test_every_arm_pays_its_own_mean(difficulty):
    env = bare(BANDIT, difficulty=difficulty)
    for arm, mean in zip(ARMS[: (3, 8)[difficulty // 5]], MEANS):
        paid = 0
        for seed in range(SEEDS):
            env.reset(seed=seed)
            paid += sum("pays 1" in env.step(arm)[0] for _ in range(3))
        assert binomtest(paid, 3 * SEEDS, mean).pvalue > 1e-4


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("env_id", [SERVICE, FORM])
def test_the_lazy_get_nothing(env_id, difficulty):
    for name in LAZY:
        played = episodes(env_id, name, 60, difficulty=difficulty)
        assert success(played) == pay(played) == 0.0, name


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_lazy_get_nothing_from_the_bandit(difficulty):
    for name in ("silent", "always-refuse"):
        assert pay(episodes(BANDIT, name, 60, difficulty=difficulty)) == 0.0
    assert pay(episodes(BANDIT, "random", 60, difficulty=difficulty)) < best(difficulty) / 2


def between(env_id: str, name: str, difficulty: int) -> None:
    share = success(episodes(env_id, name, 200, difficulty=difficulty))
    assert 0.05 < share < 0.95, share


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("env_id", [SERVICE, FORM])
def test_the_clerk_is_in_between(env_id, difficulty):
    between(env_id, "clerk", difficulty)


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_greedy_script_is_in_between(difficulty):
    between(FORM, "greedy", difficulty)
    if difficulty <= 2:
        between(SERVICE, "greedy", difficulty)
    greedy, clerk, oracle = (
        pay(episodes(BANDIT, name, 400, difficulty=difficulty)) for name in ("greedy", "clerk", "oracle")
    )
    assert max(clerk, greedy) < oracle
    if difficulty > 1:  # of two words, the other one is as good a guess as staying
        assert clerk < greedy


@pytest.mark.parametrize("difficulty", [3, 4, 5])
def test_the_greedy_script_serves_somebody_at_every_difficulty(difficulty):
    between(SERVICE, "greedy", difficulty)


def test_longer_forms_are_harder_for_a_reader():
    easy, hard = (success(episodes(FORM, "greedy", 150, difficulty=level)) for level in (1, 5))
    assert hard < easy - 0.1


def test_agents_are_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'oracle'"):
        agents.make("oracl", bare(BANDIT))
