"""The exact values: right by hand and by brute force, and those of the conversations that are really held."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym.core import ConversationEnv
from convgym.language.speak import load_bank
from convgym.scenarios import ask_or_act, delayed_consent, haggle, text_bandit
from convgym.scenarios.exact import PASS, Branch, Model, Solution, solve
from convgym.scenarios.micro import Game
from tests.convgym.play import bare, replay

MICRO = {
    "convgym/AskOrAct-v0": ask_or_act,
    "convgym/DelayedConsent-v0": delayed_consent,
    "convgym/Haggle-v0": haggle,
    "convgym/TextBandit-v0": text_bandit,
}
NONSENSE = "Mumble."
LEVELS = (1, 2, 3, 4, 5)


def game_of(env: ConversationEnv) -> Game:
    game = env.task.judge
    assert isinstance(game, Game)
    return game


def standing(env: ConversationEnv):
    return game_of(env).standing(env.task.world)


def vocabulary(env: ConversationEnv) -> set[str]:
    """The names of the acts behind the latest words, with and without their values."""
    acts = env.heard_acts()
    return {act.name for act in acts} | {f"{act.name}:{value}" for act in acts for value in act.slots.values()}


def near_zero(residuals: list[float]) -> bool:
    """Whether 0 lies in the 4.5-sigma interval of a mean: wrong about once in 100,000 true cases."""
    n, mean = len(residuals), math.fsum(residuals) / len(residuals)
    variance = math.fsum((x - mean) ** 2 for x in residuals) / max(1, n - 1)
    return abs(mean) <= 4.5 * math.sqrt(variance / n) + 1e-9


# -- the solver --------------------------------------------------------------------------------------


@st.composite
def models(draw) -> Model:
    """Two facts, two actions, two turns, two things to be seen after each: states are what was seen."""
    weight = st.integers(0, 4)
    rows = {}
    for depth in range(2):
        for past in itertools.product(((a, o) for a in "ab" for o in "xy"), repeat=depth):
            for action in "ab":
                rewards = [draw(st.integers(-3, 3)) for _ in "xy"]
                for fact in "fg":
                    x, y = draw(weight), draw(weight)
                    x += x + y == 0
                    seen = [(*past, (action, o)) for o in "xy"]
                    rows[fact, past, action] = tuple(
                        Branch(w / (x + y), (depth + 1, *("".join(p) for p in s)), r)
                        for w, s, r in zip((x, y), seen, rewards)
                    )
    by_state = {
        (fact, (len(past), *("".join(p) for p in past)), action): branches
        for (fact, past, action), branches in rows.items()
    }
    p = draw(st.integers(1, 9)) / 10
    return Model(
        ("a", "b"), {(0,): 1.0}, lambda start: {"f": p, "g": 1 - p}, lambda *key: by_state[key], lambda s: s[0] == 2
    )


def value_of(policy: dict, model: Model) -> float:
    """The expected return of a policy, by following every fact and every branch; no Bayes, no Bellman."""

    def follow(fact: str, state: tuple) -> float:
        if model.over(state):
            return 0.0
        return sum(b.chance * (b.reward + follow(fact, b.state)) for b in model.law(fact, state, policy[state]))

    return sum(p * follow(fact, (0,)) for fact, p in model.prior((0,)).items())


@given(models())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_optimum_is_that_of_the_best_of_all_policies(model):
    solution = solve(model)
    states = [(0,), *((1, a + o) for a in "ab" for o in "xy")]
    policies = [dict(zip(states, choice)) for choice in itertools.product("ab", repeat=len(states))]
    assert solution.optimum == pytest.approx(max(value_of(policy, model) for policy in policies))


@given(models())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tables_are_consistent(model):
    consistent(solve(model))


def consistent(solution: Solution) -> None:
    """What an enumeration of the tables relies on."""
    assert sum(solution.starts.values()) == pytest.approx(1.0)
    assert set(solution.q) <= set(solution.values) == set(solution.beliefs)
    for state, q in solution.q.items():
        assert tuple(q) == solution.actions and solution.values[state] == max(q.values())
        assert sum(solution.beliefs[state].values()) == pytest.approx(1.0)
        for action in solution.actions:
            branches = solution.moves[state, action]
            assert sum(b.chance for b in branches) == pytest.approx(1.0) and all(b.chance > 0 for b in branches)
            assert all(b.state in solution.values and b.state[0] > state[0] for b in branches)
            assert q[action] == pytest.approx(sum(b.chance * (b.reward + solution.values[b.state]) for b in branches))


@pytest.mark.parametrize("module", MICRO.values())
def test_the_games_tables_are_consistent_and_small(module):
    for level in LEVELS:
        solution = module.solved(level, 3)
        consistent(solution)
        assert len(solution.values) < 1_000 and solution.actions[-1] == PASS
        assert 0.0 < solution.optimum <= 1.0


def test_chances_that_do_not_sum_to_one_are_refused():
    model = Model(("a",), {(0,): 1.0}, lambda s: {"": 1.0}, lambda *_: (Branch(0.5, (1,)),), lambda s: s[0] == 1)
    with pytest.raises(ValueError, match=r"sum to 1, got 0\.5"):
        solve(model)


def test_a_state_that_forgets_what_was_seen_is_refused():
    """Both answers lead to state (1,), and they say different things about the fact."""

    def law(fact: str, state: tuple, action: str) -> tuple[Branch, ...]:
        return (Branch(1.0, (state[0] + 1,), float(fact == action)),)

    model = Model(("f", "g"), {(0,): 1.0}, lambda s: {"f": 0.5, "g": 0.5}, law, lambda s: s[0] == 2)
    with pytest.raises(ValueError, match="expected one belief"):
        solve(model)


# -- the conversations -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("env_id", MICRO)
def test_the_best_policy_earns_the_optimum(env_id, level):
    """Return less V(start), played by the greatest q, is 0 on average."""
    env, residuals = bare(env_id, difficulty=level), []
    for seed in range(600):
        _, info = env.reset(seed=seed)
        private, total = env.privileged(), 0.0
        best = private["v"]
        assert private["optimal_return"] == best
        while "end_reason" not in info:
            q = env.privileged()["q"]
            _, reward, _, _, info = env.step(env.task.canned[list(q).index(max(q, key=q.__getitem__))])
            total += reward
        assert info["success"]
        residuals.append(total - best)
    assert near_zero(residuals)


@pytest.mark.parametrize("level", [1, 2, 5])
@pytest.mark.parametrize("env_id", MICRO)
def test_every_q_is_what_a_turn_of_the_conversation_is_worth(env_id, level):
    """The Bellman residual r + V(s') - Q(s, a), under random actions, has mean 0 for every action and turn."""
    env, rng = bare(env_id, difficulty=level, reward="dense"), Random(5)
    residuals = defaultdict(list)
    for seed in range(900):
        _, info = env.reset(seed=seed)
        turn = 0
        while "end_reason" not in info:
            q = env.privileged()["q"]
            choice = rng.randrange(len(q))
            _, reward, _, _, info = env.step(env.task.canned[choice])
            residuals[turn, choice].append(reward + env.privileged()["v"] - list(q.values())[choice])
            turn += 1
    assert len(residuals) >= 4 and all(map(near_zero, residuals.values()))


@pytest.mark.parametrize("env_id", MICRO)
def test_dense_and_sparse_returns_are_equal_for_every_sequence_of_actions(env_id):
    env = bare(env_id)
    env.reset(seed=0)
    turns = min(env.max_turns, {"convgym/DelayedConsent-v0": 3}.get(env_id, 5))
    texts = [*env.task.canned[: 3 if env_id == "convgym/TextBandit-v0" else None], NONSENSE, "<tool_call>"]
    for seed in range(2):
        for said in itertools.product(texts, repeat=turns):
            sparse, dense = (replay(bare(env_id, reward=reward), said, seed) for reward in ("sparse", "dense"))
            assert all(step[1] == 0.0 for step in sparse[1:-1])
            assert sum(s[1] for s in sparse[1:]) == pytest.approx(sum(s[1] for s in dense[1:]), abs=1e-12)
            assert [s[0] for s in sparse] == [s[0] for s in dense]
            assert sparse[-1][-1]["score"] == dense[-1][-1]["score"]


@pytest.mark.parametrize("env_id", MICRO)
def test_values_of_the_two_variants_differ_by_what_is_earned_and_not_paid(env_id):
    rng = Random(1)
    for seed in range(30):
        sparse, dense = bare(env_id), bare(env_id, reward="dense")
        sparse.reset(seed=seed)
        dense.reset(seed=seed)
        info, earned = {}, 0.0
        while "end_reason" not in info:
            one, other = sparse.privileged(), dense.privileged()
            assert one["v"] == pytest.approx(other["v"] + earned)
            assert one["q"] == pytest.approx({act: value + earned for act, value in other["q"].items()})
            text = rng.choice(sparse.task.canned)
            earned += dense.step(text)[1]
            info = sparse.step(text)[-1]
        assert sparse.privileged()["v"] == dense.privileged()["v"] == 0.0
        assert set(sparse.privileged()["q"].values()) == {0.0}


@pytest.mark.parametrize("env_id", MICRO)
def test_the_score_is_the_optimum_less_the_regret(env_id):
    rng = Random(2)
    for seed in range(60):
        env = bare(env_id, reward="dense")
        _, info = env.reset(seed=seed)
        best, regret = env.privileged()["v"], 0.0
        assert env.progress() == 0.0
        while "end_reason" not in info:
            private = env.privileged()
            choice = rng.randrange(len(private["q"]))
            regret += private["v"] - list(private["q"].values())[choice]
            info = env.step(env.task.canned[choice])[-1]
        assert info["success"] is (regret < 1e-9)
        assert info["score"] == pytest.approx(max(0.0, 1.0 - regret / best), abs=1e-8)


@pytest.mark.parametrize("env_id", MICRO)
@pytest.mark.parametrize("text", [NONSENSE, "", "<tool_call>", '<tool_call>{"name": "x", "arguments": {}}</tool_call>'])
def test_anything_else_costs_the_turn(env_id, text):
    """Words without sense and calls of tools that there are not pass the turn, with the values that follow."""
    for seed in range(10):
        env = bare(env_id)
        env.reset(seed=seed)
        before = standing(env).state
        q = game_of(env).solution.q[before][PASS]
        chances = {b.state: b.chance for b in game_of(env).solution.moves[before, PASS]}
        _, reward, terminated, truncated, info = env.step(text)
        after = standing(env)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert after.state in chances and after.state[0] == 1
        assert env.privileged()["v"] == game_of(env).solution.values[after.state]
        assert after.regret == pytest.approx(game_of(env).solution.values[before] - q)
        assert info["messages"][-1]["role"] == "user"


@pytest.mark.parametrize("env_id", MICRO)
def test_the_values_are_shown_to_audits_and_to_nobody_else(env_id):
    steps = replay(bare(env_id), [NONSENSE] * 9, 0)
    assert not any("privileged" in step[-1] for step in steps)
    env = bare(env_id, reveal=True)
    for step in replay(env, [NONSENSE] * 9, 0):
        private = step[-1]["privileged"]
        json.dumps(private, allow_nan=False)
        assert {"v", "q", "optimal_return"} <= private.keys()
        assert tuple(private["q"]) == env.canned_acts and 0.0 <= private["v"] <= 1.0


@pytest.mark.parametrize("env_id", MICRO)
def test_canned_texts_are_heard_as_their_acts(env_id):
    env = bare(env_id)
    env.reset(seed=0)
    assert len(env.task.canned) == len(env.canned_acts)
    for act, text in zip(env.canned_acts, env.task.canned):
        assert [heard.name for heard in env.task.understand(text).acts] == [act]


@pytest.mark.parametrize("env_id", MICRO)
def test_what_the_user_says_is_in_its_vocabulary(env_id):
    rng, seen = Random(3), set()
    for seed in range(150):
        env = bare(env_id, difficulty=5)
        _, info = env.reset(seed=seed)
        seen |= vocabulary(env)
        while "end_reason" not in info:
            info = env.step(rng.choice([*env.task.canned, NONSENSE]))[-1]
            seen |= vocabulary(env)
    assert set(env.user_acts) <= seen
    assert {name.partition(":")[0] for name in seen} == {name.partition(":")[0] for name in env.user_acts}


@pytest.mark.parametrize("env_id", MICRO)
def test_fewer_turns_are_another_game_and_more_are_not(env_id):
    lengths = {}
    for turns in (1, 2, 40):
        env = bare(env_id, max_turns=turns)
        steps = replay(env, [NONSENSE] * 50, 0)
        lengths[turns] = len(steps) - 1
        assert steps[-1][-1]["end_reason"] == "concluded"
    own = {"convgym/DelayedConsent-v0": 3, "convgym/TextBandit-v0": 40}.get(env_id, bare(env_id).max_turns)
    assert lengths == {1: 1, 2: 2, 40: own}


@pytest.mark.parametrize("env_id", MICRO)
def test_where_the_turns_run_out_on_a_call_the_conversation_is_cut(env_id):
    steps = replay(bare(env_id, max_turns=2), [NONSENSE, "<tool_call>"], 0)
    assert steps[-1][2:4] == (False, True) and steps[-1][-1]["end_reason"] == "turn_limit"


@pytest.mark.parametrize("env_id", MICRO)
@pytest.mark.parametrize("reward", ["thick", None, True])
def test_an_unknown_reward_is_named(env_id, reward):
    with pytest.raises(Exception, match="reward: expected one of 'sparse', 'dense', got") as caught:
        bare(env_id, reward=reward)
    assert type(caught.value).__name__ == "ConfigError"


@pytest.mark.parametrize("family", ["ask_or_act", "delayed_consent", "haggle"])
def test_wordings_are_many_and_different(family):
    bank, common = load_bank(family, "user"), load_bank("common", "user")
    own = {key: lines for key, lines in bank.items() if lines != common.get(key)}
    assert own and all(len(set(lines)) == len(lines) >= 10 for lines in own.values())
    assert len({line for lines in own.values() for line in lines}) == sum(map(len, own.values()))
