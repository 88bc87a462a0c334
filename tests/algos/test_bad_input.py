"""What comes of bad input, for every algorithm: ``docs/concepts/bad-input.md`` is the table of it.

Three batteries: the mathematics on batches in which everything goes wrong at once; real updates of a small policy, one
misfortune at a time; and settings drawn at random, which are refused with a reason or work.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import KL, Algorithm, Batch, Minibatch, Placement, Scores
from algos.learner.faults import NanGuard
from algos.learner.learner import Learner
from algos.learner.scores import score as model_score
from algos.maths.advantages import explained_variance
from algos.maths.reductions import token_weights
from algos.policies.load import Policy
from algos.rollout.episodes import TokenEpisode
from convgym.errors import ConfigError, DivergedError, EnvError
from tests.algos.batches import ZOO, Row, batch_of, gradient_of, judged, observed, score, table
from tests.algos.learner.made import learner_of
from tests.algos.test_zoo import a_batch, plain_of

few = settings(max_examples=3, deadline=None)
every = pytest.mark.parametrize("algorithm", [pytest.param(a, id=name) for name, a in ZOO.items()])

CLONES = {"bc", "awr", "raft"}
CRITICS = {"ppo", "ppo_turn", "ppo_bilevel", "vapo"}
GROUPED = {name for name in algos.names() if "group" in algos.make(name).needs}


# The mathematics: everything at once -------------------------------------------------------------------


@st.composite
def unlucky(draw: st.DrawFn) -> Batch:
    """Rewards that are no numbers, or far from 1; groups of one; cut rows; silent rows; rows of 1 to 60 tokens."""
    rewards = st.sampled_from((0.0, 0.0, 1.0, 1.0, -0.0, 0.1, -3.0, 1e12, -1e12, 1e-200, math.nan, math.inf, -math.inf))
    rows = []
    for seed in range(draw(st.integers(1, 6))):
        n = draw(st.integers(1, 3))
        said = st.integers(1, 3) if draw(st.booleans()) else st.sampled_from((1, 20))
        turns = draw(st.lists(st.tuples(st.integers(1, 2), said), min_size=n, max_size=n))
        if draw(st.integers(0, 5)) == 0:
            turns = [(2, 0)] * n
        pays = draw(st.lists(rewards, min_size=n, max_size=n))
        group = draw(st.sampled_from((-(2**40), -1, 0, 7)))
        rows.append(Row(tuple(turns), tuple(pays), group, draw(st.booleans()), seed))
    batch = complete(batch_of(rows))
    assert batch.greedy_return is not None
    lost = torch.tensor(draw(st.lists(st.booleans(), min_size=batch.size, max_size=batch.size)))
    return dataclasses.replace(batch, greedy_return=batch.greedy_return.masked_fill(lost, math.nan))


def complete(batch: Batch) -> Batch:
    """The batch as the learner fills it, entropies included."""
    batch = observed(batch)
    return dataclasses.replace(batch, old_entropy=score(batch, table(1)).entropy.detach())


def assert_sound(algorithm: Algorithm, batch: Batch) -> None:
    """Nothing that reaches the weights of a model, a critic, a log or a checkpoint is anything but a number."""
    credit, data, weights = judged(algorithm, batch)
    assert weights.isfinite().all() and (weights >= 0).all() and (weights[~batch.action] == 0).all()
    if credit.keep is not None:
        assert credit.keep.dtype == torch.bool and (weights[~credit.keep] == 0).all()
    assert credit.advantage.isfinite().all() and (credit.advantage[~batch.action] == 0).all()
    if credit.target is not None and credit.critic_at is not None:
        assert credit.target[credit.critic_at].isfinite().all()
    assert all(math.isfinite(x) for x in credit.metrics.values()), credit.metrics
    assert all(math.isfinite(x) for x in json.loads(json.dumps(dict(credit.state))).values())
    loss, gradient = gradient_of(algorithm, batch)
    assert loss.isfinite() and gradient.isfinite().all()
    for name, metric in algorithm.loss(score(data, table()), data)[1].items():
        assert metric[batch.action].isfinite().all(), name


@every
@few
@given(unlucky())
def test_whatever_happens_everything_is_a_number(algorithm: Algorithm, batch: Batch) -> None:
    assert_sound(algorithm, batch)


@every
def test_a_silent_row_is_an_episode_of_its_group_and_has_no_weight(algorithm: Algorithm) -> None:
    """Rows: two that speak, and one of the same group that does not."""
    rows = [Row(((1, 2),), (r,), seed=i) for i, r in enumerate((0.0, 1.0))]
    batch = complete(batch_of([*rows, Row(((3, 0),), (0.5,), seed=2)]))
    assert_sound(algorithm, batch)
    _, _, weights = judged(algorithm, batch)
    assert (weights[2] == 0).all()
    if algorithm.reduce != "const" or algorithm.budget is not None:
        alone = token_weights(batch.rows(torch.tensor([0, 1])), None, algorithm.reduce)
        assert weights[:2].sum() in (0, pytest.approx(float(alone.sum())))  # it does not count in the normaliser


@every
def test_what_stands_where_nothing_counts_is_not_read(algorithm: Algorithm) -> None:
    """Off action, past the last turn, and behind an end that nothing follows: whatever stands there."""
    batch = complete(dataclasses.replace(a_batch(), judged=torch.tensor([False, False, False, True, False])))
    credit, _, weights = judged(algorithm, batch)
    loss, gradient = gradient_of(algorithm, batch)
    past = torch.arange(batch.reward.shape[1]) >= batch.n_turns[:, None]
    columns: dict[str, Any] = {
        name: getattr(batch, name).masked_fill(~batch.action, math.nan)
        for name in ("behaviour_logp", "old_logp", "ref_logp", "value", "old_entropy")
    }
    assert batch.bootstrap is not None
    columns["reward"] = batch.reward.masked_fill(past, math.nan)
    columns["state_key"] = batch.state_key.masked_fill(past, 1)
    columns["bootstrap"] = batch.bootstrap.masked_fill(batch.settled, math.nan)
    noisy = dataclasses.replace(batch, **columns)
    found, _, heard = judged(algorithm, noisy)
    assert torch.equal(found.advantage, credit.advantage) and torch.equal(heard, weights)
    assert dict(found.metrics) == dict(credit.metrics)
    again = gradient_of(algorithm, noisy)
    assert torch.equal(again[0], loss) and torch.equal(again[1], gradient)


def test_targets_that_differ_by_less_than_can_be_squared_are_nothing_to_explain() -> None:
    """1e-25 squared is 0 in float32: dividing by it, an explained variance would be minus infinity."""
    target, value = torch.tensor([0.0, 1e-25]), torch.tensor([0.3, -0.2])
    assert explained_variance(value, target, torch.tensor([True, True])) == 0


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_one_alone_teaches_nothing_wherever_groups_are_compared(name: str) -> None:
    rows = [Row(((1, 2), (1, 1)), (0.0, r), g, seed=i) for i, (r, g) in enumerate([(0.0, 5), (1.0, 5), (9.0, -6)])]
    batch = complete(batch_of(rows))
    batch = dataclasses.replace(batch, state_key=torch.tensor([[1, 2], [1, 2], [1, 2]]))
    credit = dataclasses.replace(algos.make(name), **plain_whitening(name)).credit(batch)
    assert (credit.advantage[2] == 0).all() and (credit.advantage[:2][batch.action[:2]] != 0).all()


def plain_whitening(name: str) -> dict[str, Any]:
    """Whitening centres once more over all tokens, so that 0 is no longer 0."""
    return {"whiten": False} if name == "reinforce_pp_baseline" else {}


# Real updates, one misfortune at a time ----------------------------------------------------------------


class Case(NamedTuple):
    """Conversations, the names that still learn from them, and what the log must say."""

    turns: Sequence[Sequence[tuple[int, int]]]  # of each conversation: tokens heard and said in each turn
    returns: Sequence[float]
    groups: Sequence[int]
    learn: set[str]
    metrics: Mapping[str, float]
    truncated: bool = False


SHORT = ((2, 3), (1, 2))
NAN, INF = math.nan, math.inf
EVERYBODY = set(algos.names())
ALONE = EVERYBODY - GROUPED
CASES: dict[str, Case] = {
    "one alone among others": Case(
        [SHORT] * 4, (0, 1, 0.25, 1), (0, 0, 0, -1), EVERYBODY, {"singleton_groups": 1, "groups": 2}
    ),
    "everybody alone": Case(
        [SHORT] * 3, (0, 1, 0.25), (3, 2**40, -5), ALONE, {"singleton_groups": 3, "informative_groups": 0}
    ),
    "all earn alike": Case(
        [SHORT] * 4,
        (0.5,) * 4,
        (0, 0, 1, 1),
        CLONES | CRITICS,  # topr's centre and remax's greedy episode are .5 as well
        {"informative_groups": 0, "singleton_groups": 0},
    ),
    "nobody earns anything": Case(
        [SHORT] * 4, (0.0,) * 4, (0, 0, 1, 1), {"bc", "awr", "topr", "remax"} | CRITICS, {"informative_groups": 0}
    ),
    "all but one spoilt": Case(
        [SHORT] * 4,
        (NAN, INF, 1, -INF),
        (0, 0, 0, 1),
        CLONES | CRITICS | {"topr", "remax"},
        {"set_aside": 3, "singleton_groups": 1, "empty_groups": 1, "wordless": 0},
    ),
    "a whole group spoilt": Case(
        [SHORT] * 4, (0, 1, NAN, NAN), (0, 0, 8, 8), EVERYBODY, {"set_aside": 2, "empty_groups": 1, "groups": 1}
    ),
    "one without a word": Case(
        [SHORT, SHORT, ((5, 0),)],
        (0, 1, 0.5),
        (0, 0, 0),
        EVERYBODY,
        {"set_aside": 1, "wordless": 1, "empty_groups": 0},
    ),
    "all truncated": Case([SHORT] * 4, (0, 1, 0.25, 1), (0, 0, 1, 1), EVERYBODY, {"set_aside": 0}, truncated=True),
    "one token each": Case([((1, 1),)] * 4, (0, 1, 0.25, 1), (0, 0, 1, 1), EVERYBODY, {"groups": 2}),
    "groups of 1, 2 and 4, rows of 1 to 150 tokens": Case(
        [((1, 1),), SHORT, ((9, 150),), SHORT, ((1, 1), (30, 1)), SHORT, ((2, 40), (1, 1), (3, 9))],
        (1, 0, 1, 0.25, 0, 1, 0.5),
        (0, 1, 1, 2, 2, 2, 2),
        EVERYBODY,
        {"groups": 3, "singleton_groups": 1, "informative_groups": 2 / 3},
    ),
}


@pytest.fixture(scope="module")
def episodes(tiny_policy: Policy) -> dict[str, list[TokenEpisode]]:
    """The conversations of each case; the policy really gives their tokens these log-probabilities."""
    return {name: [talk(tiny_policy, case, i) for i in range(len(case.turns))] for name, case in CASES.items()}


def talk(policy: Policy, case: Case, index: int) -> TokenEpisode:
    turns = case.turns[index]
    turn = np.array([t for k, (heard, said) in enumerate(turns) for t in [-1] * heard + [k] * said])
    ids = np.random.default_rng(index).integers(6, len(policy.tokenizer), len(turn))
    action = turn >= 0
    with torch.no_grad():
        logp = model_score(policy.model, torch.from_numpy(ids)[None], torch.from_numpy(action)[None]).logp[0].numpy()
    rewards = np.zeros(len(turns), np.float32)
    rewards[-1] = case.returns[index]
    return TokenEpisode(
        ids=ids,
        logp=logp,
        action=action,
        turn=turn,
        rewards=rewards,
        state_keys=np.arange(1, len(turns) + 1),
        group=case.groups[index],
        env_seed=0,
        sample_seed=index,
        terminated=not case.truncated,
    )


@pytest.fixture(scope="module", params=algos.names())
def learner(request: pytest.FixtureRequest, tiny_policy: Policy, episodes: dict[str, list[TokenEpisode]]) -> Learner:
    """One of every algorithm; it has learnt before, so that there is momentum which a step would follow."""
    fields = {"epochs": 1, "minibatches": 2} if request.param in CRITICS else {}
    made = learner_of(tiny_policy, algos.make(request.param, **fields), weight_decay=0.1)
    update(made, episodes["groups of 1, 2 and 4, rows of 1 to 150 tokens"])
    made.name = request.param  # type: ignore[attr-defined]
    return made


def update(learner: Learner, rows: Sequence[TokenEpisode]) -> dict[str, float]:
    return learner.update(rows, dict.fromkeys((row.group for row in rows), 0.5))


def everything(learner: Learner) -> dict[str, Tensor]:
    """Weights of model and critic, and the optimiser's moments."""
    tensors, _ = learner.snapshot()
    return {f"{part}/{name}": x.clone() for part, found in tensors.items() for name, x in found.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def assert_finite(learner: Learner, metrics: Mapping[str, float]) -> None:
    assert all(x.isfinite().all() for x in everything(learner).values())
    assert all(math.isfinite(x) for x in metrics.values()), metrics
    assert all(math.isfinite(x) for x in learner.statistics.values())
    assert metrics["skipped_steps"] == 0


@pytest.mark.parametrize("case", CASES)
def test_an_update_survives_and_counts_it(
    learner: Learner, case: str, episodes: dict[str, list[TokenEpisode]]
) -> None:
    before, step, expected = everything(learner), learner.step, CASES[case]
    metrics = update(learner, episodes[case])
    assert_finite(learner, metrics)
    assert {name: metrics[name] for name in expected.metrics} == pytest.approx(dict(expected.metrics))
    learns = learner.name in expected.learn  # type: ignore[attr-defined]
    assert same(before, everything(learner)) == (not learns)  # to the last bit, the moments too
    if not learns:
        assert metrics["loss"] == 0 and metrics["grad_norm"] == 0
    assert learner.step == step + 1
    assert len(learner.aside) == metrics["set_aside"]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_nothing_sound_at_all_is_an_error_that_changes_nothing(
    learner: Learner, bad: float, episodes: dict[str, list[TokenEpisode]]
) -> None:
    rows = [dataclasses.replace(e, rewards=np.full_like(e.rewards, bad)) for e in episodes["all earn alike"]]
    before, rest = everything(learner), learner.snapshot()[1]
    with pytest.raises(EnvError, match=rf"finite rewards.*none of 4.*rewards \[{bad}, {bad}\]"):
        update(learner, rows)
    with pytest.raises(EnvError, match="none of 0"):
        update(learner, [])
    assert same(before, everything(learner)) and learner.snapshot()[1] == rest


def test_rewards_too_large_for_sums_harm_no_weights(learner: Learner, episodes: dict[str, list[TokenEpisode]]) -> None:
    """Every one is finite and their sum is not: the step is skipped and counted, unless it came out finite."""
    rows = [
        dataclasses.replace(e, rewards=np.full_like(e.rewards, (3e38, -3e38)[i % 2]))
        for i, e in enumerate(episodes["all earn alike"])
    ]
    statistics, guard = learner.statistics, learner.guard
    with suppress(DivergedError):
        update(learner, rows)
    assert all(x.isfinite().all() for x in everything(learner).values())
    learner.statistics, learner.guard = statistics, guard if guard.in_a_row == 0 else NanGuard()


# Filters that leave nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in algos.names() if hasattr(algos.make(n), "mask_truncated")])
def test_with_truncated_rows_masked_a_truncated_batch_teaches_nothing(
    name: str, tiny_policy: Policy, episodes: dict[str, list[TokenEpisode]]
) -> None:
    learner = learner_of(tiny_policy, algos.make(name, mask_truncated=True), weight_decay=0.1)
    metrics = update(learner, episodes["one alone among others"])
    assert metrics["masked_truncated"] == 0 and metrics["grad_norm"] > 0
    before = everything(learner)
    metrics = update(learner, episodes["all truncated"])
    assert_finite(learner, metrics)
    assert metrics["masked_truncated"] == 4 and metrics["kept_rows"] == 0 and metrics["loss"] == 0
    assert metrics["informative_groups"] == 1  # there was something to learn, and the mask took it away
    assert same(before, everything(learner))


def test_filters_say_how_many_they_left_out() -> None:
    """Group 0 differs, and one of it is cut; group 1 earns alike; the last row of group 2 is no number."""
    returns, groups = (0.0, 1.0, 1.0, 2.0, 2.0, 3.0, NAN), (0, 0, 0, 1, 1, 2, 2)
    rows = [Row(((1, 2),), (r,), g, i != 1, i) for i, (r, g) in enumerate(zip(returns, groups))]
    batch = complete(batch_of(rows))
    credit = algos.make("dapo", mask_truncated=True).credit(batch)
    assert credit.keep is not None and credit.keep.tolist() == [True, False, True, False, False, False, False]
    assert dict(credit.metrics) == {"masked_truncated": 1, "dropped_dead": 3}
    spread = algos.make("grpo", assignment="gae", mask_truncated=True).credit(batch)
    assert spread.metrics.keys() == {"masked_truncated", "explained_variance"}
    assert dict(algos.make("grpo").credit(batch).metrics) == {}


def test_who_learns_from_nothing_is_in_the_log(
    learner: Learner, episodes: dict[str, list[TokenEpisode]]
) -> None:
    metrics = update(learner, episodes["nobody earns anything"])
    name = learner.name  # type: ignore[attr-defined]
    assert metrics["kept_rows"] == (0 if name in ("raft", "dapo") else 1)
    assert metrics.get("dropped_dead") == (4 if name == "dapo" else None)


def test_a_group_without_a_greedy_episode_is_left_out_and_counted(
    tiny_policy: Policy, episodes: dict[str, list[TokenEpisode]]
) -> None:
    learner = learner_of(tiny_policy, "remax")
    metrics = learner.update(episodes["all earn alike"], {0: 1})  # a whole number, and nothing for group 1
    assert_finite(learner, metrics)
    assert metrics["without_greedy"] == 2 and metrics["kept_rows"] == 0.5 and metrics["grad_norm"] > 0
    before = everything(learner)
    metrics = learner.update(episodes["all earn alike"], {})
    assert metrics["without_greedy"] == 4 and metrics["kept_rows"] == 0 and same(before, everything(learner))


# A mask of numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [torch.tensor([1, -1]), torch.tensor([1.0, 0.0]), torch.tensor([[True], [True]])])
def test_a_filter_that_is_no_mask_is_refused(keep: Tensor) -> None:
    batch = batch_of([Row(((1, 2),), (1.0,)), Row(((1, 1),), (0.0,), seed=1)])
    credit = algos.make("grpo").credit(batch)
    with pytest.raises(ConfigError, match=r"Credit\.keep is .*expected torch\.bool of shape \(2,\)"):
        Minibatch.of(batch, credit._replace(keep=keep))
    assert Minibatch.of(batch, credit._replace(keep=torch.tensor([True, False]))).size == 2


# Settings drawn at random ------------------------------------------------------------------------------

NUMBERS = (0.0, 1.0, 0.05, 0.2, 0.5, 2.0, 50.0, 1e-9, 1e6, -0.5, math.nan, math.inf)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Legal and illegal values of a field, by its annotation."""
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        float: st.sampled_from(NUMBERS),
        int: st.sampled_from((1, 2, 3, 50, 0, -1, 1.5)),
        bool: st.sampled_from((True, False, "yes")),
        type(None): st.none(),
        KL: st.fixed_dictionaries(
            {"beta": st.sampled_from((0.0, 0.1, 1e6, -1.0)), "placement": st.sampled_from(typing.get_args(Placement))}
        ),
    }
    if typing.get_origin(hint) is Literal:
        return st.sampled_from((*typing.get_args(hint), "nonsense"))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of(*map(values, typing.get_args(hint)))
    return kinds[hint]


@st.composite
def random_settings(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A name, and other values for some of its fields."""
    name = draw(st.sampled_from(algos.names()))
    cls = type(algos.make(name))
    hints = typing.get_type_hints(cls)
    fields = sorted(f.name for f in dataclasses.fields(cls))
    switches = [f for f in fields if typing.get_origin(hints[f]) is Literal]  # contradictions begin there
    chosen = draw(st.sets(st.sampled_from(switches), max_size=2)) | draw(st.sets(st.sampled_from(fields), max_size=2))
    return name, {field: draw(values(hints[field])) for field in sorted(chosen)}


@settings(max_examples=200, deadline=None)
@given(random_settings())
def test_settings_are_refused_by_name_or_work(drawn: tuple[str, dict[str, Any]]) -> None:
    """What can be built works on any batch, and follows the policy gradient of its own advantages at ratio 1."""
    name, changes = drawn
    try:
        algorithm = algos.make(name, **changes)
    except ConfigError as error:
        said = re.match(r"(\w+)\.(\w+) = .* is illegal: expected \S", str(error))
        cls = type(algos.make(name))
        assert said, error
        owner = KL if said[1] == "KL" else cls
        assert changes and said[1] == owner.__name__ and said[2] in {f.name for f in dataclasses.fields(owner)}
        return
    assert {field: algos.to_config(algorithm)[field] for field in changes} == changes  # refused, never rewritten
    batch = complete(a_batch())
    assert_sound(algorithm, batch)

    plain = plain_of(algorithm)
    _, data, weights = judged(plain, batch)
    assert data.old_logp is not None
    logp = data.old_logp.clone().requires_grad_()
    loss, _ = plain.loss(Scores(logp, torch.zeros_like(logp), data.value), data)
    gradient = torch.autograd.grad((weights * loss)[data.action].sum(), logp)[0]
    torch.testing.assert_close(gradient, -weights * data.advantage, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("ppo", {"ratio": "sequence"}, r"PPO\.ratio.*no coarser than the credit"),
        ("ppo", {"ratio": "turn"}, r"PPO\.ratio.*no coarser than the credit"),
        ("ppo_bilevel", {"ratio": "turn"}, r"PPOBilevel\.ratio"),
        ("vapo", {"ratio": "sequence"}, r"VAPO\.ratio"),
        ("ppo_turn", {"ratio": "sequence"}, r"PPOTurn\.ratio.*'turn'"),
        ("gspo", {"reduce": "turn"}, r"GRPO\.reduce.*no finer than ratio 'sequence'"),
        ("gmpo", {"reduce": "turn"}, r"GMPO\.reduce.*no finer than the row"),
        ("gspo", {"top_entropy": 0.2}, r"GRPO\.top_entropy.*1 with ratio 'sequence'"),
        ("gigpo", {"ratio": "turn", "top_entropy": 0.2}, r"GiGPO\.top_entropy.*1 with ratio 'turn'"),
        ("gmpo", {"top_entropy": 0.2}, r"GMPO\.top_entropy.*1: all tokens of a row"),
        ("gigpo", {"omega": 0, "gamma_step": 0.5}, r"GiGPO\.gamma_step.*no effect unless omega"),
    ],
)
def test_what_tells_tokens_apart_contradicts_a_ratio_that_they_share(
    name: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        algos.make(name, **fields)


# The page ----------------------------------------------------------------------------------------------


def test_every_test_and_metric_on_the_page_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "concepts" / "bad-input.md").read_text("utf-8")
    files = {"": "test_bad_input.py"} | {name: name for name in re.findall(r"`((?:\w+/)?test_\w+\.py)`", page)}
    code = {name: (root / "tests" / "algos" / file).read_text("utf-8") for name, file in files.items()}
    engine = page[page.index("## The engine") : page.index("## A `Batch`")].splitlines()
    for line in page.splitlines():
        named = re.search(r"`((?:\w+/)?test_\w+\.py)`", line)
        for test in re.findall(r"`(test_\w+)`", line):
            where = "test_batch.py" if "expected" in line or "the place" in line else named[1] if named else ""
            where = where or ("rollout/test_memory.py" if line in engine else "")
            assert f"def {test}(" in code[where], (test, where)
    metrics = (root / "docs" / "algorithms" / "metrics.md").read_text("utf-8")
    tables = page.split("## A `Batch`")[0]
    rows = [line.split("|") for line in tables.splitlines() if line.count("|") == 5]
    counted = {metric for row in rows for metric in re.findall(r"`(\w+)`", row[3])}
    assert {"set_aside", "wordless", "empty_groups"} <= counted and all(f"`{m}`" in metrics for m in counted)
