"""Our formulas against other trainers' own functions, on random tensors; docs/concepts/peers.md explains what differs.

Their functions are cut out of their source files and run, decorators and imports aside: that needs neither a GPU
library nor the versions that they pin, only the files (``pip install --no-deps verl trl openrlhf``). Where a package
is not installed its tests are skipped; Stable-Baselines3 is among the test requirements.
"""

from __future__ import annotations
import __future__

import ast
import dataclasses
import functools
import importlib.util
import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import algos
from algos.base import KL, Algorithm, Batch, Credit, Minibatch, Reduce, Scores
from algos.maths.advantages import gae, group_advantages, on_last_token, spread_episodes, whiten
from algos.maths.kl import k2, k3, kl_in_loss, kl_in_reward
from algos.maths.losses import clipped_surrogate, truncated_importance, value_loss
from algos.maths.reductions import surest_last, token_weights
from tests.algos.batches import Row, batch_of, batches

few = settings(max_examples=6, deadline=None)
unit = st.sampled_from((0.0, 0.5, 0.9, 1.0))
seeds = st.integers(0, 99)


def close(found: Tensor, expected: Tensor, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


# Their code ------------------------------------------------------------------------------------------


@functools.cache
def source(package: str, file: str) -> ast.Module:
    """The parsed file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    return ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text("utf-8"))


def run(body: list[ast.stmt], scope: dict[str, Any]) -> dict[str, Any]:
    """Executes statements of theirs; annotations are not evaluated."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = []
    code = compile(ast.Module(body, []), "peer", "exec", __future__.annotations.compiler_flag)
    scope.update(torch=torch, np=np, math=math, nn=nn, defaultdict=defaultdict, itertools=itertools)
    exec(code, scope)
    return scope


def cut(package: str, file: str, *names: str, **scope: Any) -> Any:
    """Functions, methods and classes of a file by their names, as attributes; ``scope`` is what they call."""
    body = [
        node
        for node in ast.walk(source(package, file))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names
    ]
    assert {node.name for node in body} == set(names), f"{package}/{file} has no longer all of {names}"
    return SimpleNamespace(**run(list(body), scope))


def passage(package: str, file: str, method: str, first: str, last: str) -> Callable[..., Any]:
    """The statements of a method from the one that begins with ``first`` to the one that begins with ``last``."""
    (function,) = (
        node for node in ast.walk(source(package, file)) if isinstance(node, ast.FunctionDef) and node.name == method
    )
    texts = [ast.unparse(statement) for statement in function.body]
    start = next(i for i, text in enumerate(texts) if text.startswith(first))
    end = next(i for i, text in enumerate(texts) if i >= start and text.startswith(last))
    return lambda **scope: run(function.body[start : end + 1], scope)


@functools.cache
def verl() -> Any:
    helpers = ("masked_sum", "masked_mean", "masked_var", "masked_whiten", "clip_by_value")
    functional = cut("verl", "utils/torch_functional.py", *helpers)
    kinds = ("vanilla", "gspo", "sapo", "geo_mean", "cispo")
    estimators = ("grpo_outcome", "rloo_outcome", "rloo_vectorized_outcome", "reinforce_plus_plus_outcome",
                  "reinforce_plus_plus_baseline_outcome", "remax_outcome", "gpg_outcome")  # fmt: skip
    return cut(
        "verl",
        "trainer/ppo/core_algos.py",
        "compute_gae_advantage_return",
        *(f"compute_{name}_advantage" for name in estimators),
        *(f"compute_policy_loss_{name}" for name in kinds),
        *("agg_loss", "compute_value_loss", "kl_penalty", "kl_penalty_forward", "compute_rewards"),
        verl_F=functional,
        ActorConfig=Actor,
        AlgoConfig=dict,
    )


class Actor(SimpleNamespace):
    """Settings of verl's actor."""

    def __init__(self, low: float = 0.2, high: float = 0.2, **more: Any) -> None:
        super().__init__(clip_ratio=low, clip_ratio_low=low, clip_ratio_high=high, global_batch_info={}, **more)

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


@functools.cache
def openrlhf() -> Any:
    names = ("masked_mean", "compute_reward", "compute_approx_kl")
    utils = cut("openrlhf", "models/utils.py", *names)
    losses = cut(
        "openrlhf", "models/loss.py", "aggregate_loss", "PolicyLoss", "ValueLoss", masked_mean=utils.masked_mean
    )
    methods = ("compute_advantages_and_returns", "get_advantages_and_returns", "get_cumulative_returns")
    maker = cut(
        "openrlhf",
        "trainer/ppo_utils/experience_maker.py",
        *methods,
        compute_reward=utils.compute_reward,
        apply_length_penalties=lambda experiences, args: None,  # ours are wrappers of the environment
        logger=SimpleNamespace(warning=print),
    )
    return SimpleNamespace(**vars(utils), losses=losses, maker=maker)


@functools.cache
def trl() -> Any:
    utils = cut("trl", "trainer/utils.py", "nanstd", "nanmin", "nanmax")
    names = ("_compute_loss", "get_high_entropy_mask")
    grpo = cut("trl", "trainer/grpo_trainer.py", *names, **vars(utils))
    rloo = cut("trl", "trainer/rloo_trainer.py", "_compute_loss", **vars(utils))
    return SimpleNamespace(nanstd=utils.nanstd, grpo=grpo, rloo=rloo)


# Ours, put like theirs -------------------------------------------------------------------------------


def token_rewards(batch: Batch) -> Tensor:
    return on_last_token(batch.reward, batch.turn)


def outcome_only(batch: Batch) -> Batch:
    """All of an episode's reward in its last turn: what most of them assume."""
    last = (batch.n_turns - 1)[:, None]
    total = batch.reward.sum(1, keepdim=True)
    return dataclasses.replace(batch, reward=torch.zeros_like(batch.reward).scatter(1, last, total))


def in_company(batch: Batch) -> Tensor:
    """[B] rows whose group has two episodes or more."""
    return (batch.group[:, None] == batch.group).sum(1) > 1


def moved(batch: Batch, seed: int, spread: float = 0.3) -> Tensor:
    """Log-probabilities a few steps later, 0 off action."""
    assert batch.old_logp is not None
    noise = torch.randn(batch.action.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((batch.old_logp + spread * noise) * batch.action).requires_grad_()


def drawn_advantages(batch: Batch, seed: int, *, per_row: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    shape = batch.action.shape[:1] if per_row else batch.action.shape
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return spread_episodes(x, batch.action) if per_row else x * batch.action


def our_loss(algorithm: Algorithm, batch: Batch, advantage: Tensor, logp: Tensor, reduce: Reduce) -> Tensor:
    """The reduced loss, with L_max of ``const`` the width of the batch."""
    data = Minibatch.of(batch, Credit(advantage))
    loss, _ = algorithm.loss(Scores(logp, torch.zeros_like(logp)), data)
    weights = token_weights(batch, None, reduce, longest=batch.action.shape[1])
    return (weights * loss)[batch.action].sum()


class Loss(Protocol):
    def __call__(self, batch: Batch, advantage: Tensor, logp: Tensor) -> Tensor: ...


def same_loss_and_gradient(
    batch: Batch, advantage: Tensor, seed: int, ours: Loss, theirs: Loss, *, spread: float = 0.3, rtol: float = 1e-9
) -> None:
    logp = moved(batch, seed, spread)
    pair = [loss(batch, advantage, logp) for loss in (ours, theirs)]
    close(pair[0], pair[1], rtol)
    gradients = [torch.autograd.grad(loss, logp)[0] * batch.action for loss in pair]
    close(gradients[0], gradients[1], rtol)


REDUCTIONS: dict[Reduce, str] = {
    "token": "token-mean",
    "seq": "seq-mean-token-mean",
    "seq_sum": "seq-mean-token-sum",
    "const": "seq-mean-token-sum-norm",
}


# The golden vector -----------------------------------------------------------------------------------

GOLDEN_MASK = torch.tensor([[1, 1, 0, 0, 1, 1, 0]], dtype=torch.float64)
GOLDEN_REWARD = torch.zeros(1, 7, dtype=torch.float64).index_fill(1, torch.tensor([5]), 1.0)
GOLDEN_VALUE = torch.tensor([[0.5, 0.4, 0.9, 0.9, 0.6, 0.7, 0.3]], dtype=torch.float64)
ENDED = {"terminated": torch.tensor([True]), "bootstrap": torch.zeros(1, dtype=torch.float64)}


def at_actions(x: Tensor) -> list[float]:
    return [round(value, 4) for value in x[GOLDEN_MASK > 0].tolist()]


def test_ours_on_the_golden_vector() -> None:
    # by hand, steps 0 1 4 5: delta = -.14 .14 .03 .3; A_5 = .3, A_4 = .03 + .72 (.3) = .246, A_1 = .14 + .72 (.246),
    # A_0 = -.14 + .72 (.31712)
    step = GOLDEN_MASK > 0
    found = gae(GOLDEN_REWARD, GOLDEN_VALUE, step, discount=0.9, lam=0.8, **ENDED)
    assert at_actions(found) == [0.0883, 0.3171, 0.246, 0.3]
    returns = gae(GOLDEN_REWARD, torch.zeros(1, 7).double(), step, discount=0.9, lam=1.0, **ENDED)
    assert at_actions(returns) == [0.729, 0.81, 0.9, 1.0]


def test_verl_on_the_golden_vector() -> None:
    _, returns = verl().compute_gae_advantage_return(GOLDEN_REWARD, GOLDEN_VALUE, GOLDEN_MASK, 0.9, 0.8)
    assert at_actions(returns - GOLDEN_VALUE) == [0.0883, 0.3171, 0.246, 0.3]
    config = SimpleNamespace(gamma=0.9)
    _, returns = verl().compute_reinforce_plus_plus_outcome_advantage(GOLDEN_REWARD, GOLDEN_MASK, config)
    assert at_actions(returns) == [0.729, 0.81, 0.9, 1.0]


def test_openrlhf_on_the_golden_vector() -> None:
    """The user's words are steps of value 0 there: gamma and lambda act at each of them."""
    maker = openrlhf().maker
    found, _ = maker.get_advantages_and_returns(None, GOLDEN_VALUE, GOLDEN_REWARD, GOLDEN_MASK, 0.9, 0.8)
    # steps 0 .. 5 with V = .5 .4 0 0 .6 .7: delta = -.14 -.4 0 .54 .03 .3; A_4 = .246, A_3 = .54 + .72 (.246),
    # A_2 = .72 A_3, A_1 = -.4 + .72 A_2, A_0 = -.14 + .72 A_1
    assert at_actions(found) == [-0.1603, -0.0282, 0.246, 0.3]
    returns = maker.get_cumulative_returns(None, GOLDEN_REWARD, GOLDEN_MASK, 0.9)
    assert at_actions(returns) == [0.5905, 0.6561, 0.9, 1.0]


def test_sb3_on_the_golden_vector_with_a_step_for_every_token() -> None:
    """What a user of a step-based library gets who feeds all tokens: the values at the user's words leak in."""
    ones = torch.ones_like(GOLDEN_MASK)
    found = sb3_gae(GOLDEN_REWARD, GOLDEN_VALUE, ENDED["terminated"], ENDED["bootstrap"], 0.9, 0.8)
    everywhere = gae(GOLDEN_REWARD, GOLDEN_VALUE, ones > 0, discount=0.9, lam=0.8, **ENDED)
    close(found, everywhere, atol=1e-6)
    # delta = -.14 .41 -.09 -.36 .03 .57 -.3; A_6 = -.3, A_5 = .57 + .72 A_6 = .354, A_4 = .03 + .72 A_5 = .2849, ...
    assert at_actions(found) == [0.0507, 0.2649, 0.2849, 0.354]


# Stable-Baselines3 -----------------------------------------------------------------------------------


def sb3_gae(reward: Tensor, value: Tensor, ended: Tensor, after: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE of Stable-Baselines3's buffer: rows are environments, columns are steps, one episode each; float32."""
    spaces = pytest.importorskip("gymnasium.spaces")
    buffers = pytest.importorskip("stable_baselines3.common.buffers", reason="pip install stable-baselines3")
    rows, steps = reward.shape
    buffer = buffers.RolloutBuffer(
        steps, spaces.Discrete(2), spaces.Discrete(2), gamma=gamma, gae_lambda=lam, n_envs=rows
    )
    for t in range(steps):
        start = np.full(rows, float(t == 0))
        nothing = np.zeros((rows, 1))
        buffer.add(nothing, nothing, reward[:, t].numpy(), start, value[:, t].float(), torch.zeros(rows))
    buffer.compute_returns_and_advantage(after.float(), ended.numpy())
    return torch.from_numpy(buffer.advantages).T


@few
@given(st.integers(1, 4), st.integers(1, 6), unit, unit, seeds)
def test_sb3_gae(rows: int, steps: int, gamma: float, lam: float, seed: int) -> None:
    """One token a turn, no user: whole and cut episodes alike."""
    generator = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(2, rows, steps, generator=generator, dtype=torch.float64)
    ended = torch.rand(rows, generator=generator) < 0.5
    after = torch.randn(rows, generator=generator, dtype=torch.float64)
    step = torch.ones(rows, steps, dtype=torch.bool)
    ours = gae(reward, value, step, terminated=ended, bootstrap=after, discount=gamma, lam=lam)
    close(sb3_gae(reward, value, ended, after, gamma, lam), ours, rtol=1e-4, atol=1e-5)


@few
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), unit, unit, seeds)
def test_sb3_gae_of_several_episodes_in_one_buffer(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    """Its rows hold one episode after another; ours hold one. Nothing leaks over an end."""
    spaces = pytest.importorskip("gymnasium.spaces")
    buffers = pytest.importorskip("stable_baselines3.common.buffers", reason="pip install stable-baselines3")
    steps = sum(lengths)
    generator = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(2, steps, generator=generator, dtype=torch.float64)
    buffer = buffers.RolloutBuffer(steps, spaces.Discrete(2), spaces.Discrete(2), gamma=gamma, gae_lambda=lam)
    starts = [i == 0 for length in lengths for i in range(length)]
    for t in range(steps):
        nothing = np.zeros((1, 1))
        buffer.add(nothing, nothing, reward[t : t + 1].numpy(), np.array([float(starts[t])]), value[t], torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
    ours = [
        gae(r[None], v[None], torch.ones(1, len(r)) > 0, discount=gamma, lam=lam, **ENDED)[0]
        for r, v in zip(reward.split(lengths), value.split(lengths))
    ]
    close(torch.from_numpy(buffer.advantages[:, 0]), torch.cat(ours), rtol=1e-4, atol=1e-5)


# verl: estimators ------------------------------------------------------------------------------------


@few
@given(batches(), unit, unit)
def test_verl_gae(batch: Batch, gamma: float, lam: float) -> None:
    """Of episodes that terminated: it has no value after the last token, so a cut episode is a finished one."""
    assert batch.value is not None
    reward, ended = token_rewards(batch), torch.ones_like(batch.terminated)
    nothing = torch.zeros_like(batch.bootstrap)  # type: ignore[arg-type]
    ours = gae(reward, batch.value, batch.action, terminated=ended, bootstrap=nothing, discount=gamma, lam=lam)
    assume(int(batch.action.sum()) > 1)  # it cannot whiten a single number
    mask = batch.action.double()
    white, returns = verl().compute_gae_advantage_return(reward, batch.value, mask, gamma, lam)
    close((returns - batch.value) * mask, ours)
    if ours[batch.action].std() > 0.05:  # it adds 1e-8 to the variance, we to the standard deviation
        close(white * mask, whiten(ours, batch.action), rtol=1e-4, atol=1e-5)


@few
@given(batches(min_size=2), st.booleans())
def test_verl_grpo(batch: Batch, divide: bool) -> None:
    valid = torch.ones_like(batch.terminated)
    ours = group_advantages(batch.reward.sum(1), batch.group, valid, scale="group" if divide else "none", eps=1e-6)
    theirs, _ = verl().compute_grpo_outcome_advantage(
        token_rewards(batch), batch.action.double(), batch.group.numpy(), 1e-6, divide
    )
    shared = in_company(batch)
    close(theirs[shared], spread_episodes(ours, batch.action)[shared])


def test_a_singleton_teaches_in_verl_and_not_here() -> None:
    batch = batch_of([Row(((1, 1),), (0.75,))])
    reward, mask, index = token_rewards(batch), batch.action.double(), batch.group.numpy()
    for name in ("grpo", "rloo"):
        theirs, _ = getattr(verl(), f"compute_{name}_outcome_advantage")(reward.clone(), mask, index)
        assert theirs[0, 1].item() == pytest.approx(0.75, rel=1e-5)
    vectorised, _ = verl().compute_rloo_vectorized_outcome_advantage(reward, mask, index)
    assert vectorised[0, 1] == 0
    for name in ("grpo", "rloo"):
        assert (algos.make(name).credit(batch).advantage == 0).all()


@few
@given(batches(min_size=2))
def test_verl_rloo(batch: Batch) -> None:
    ours = algos.make("rloo").credit(batch).advantage
    arguments = token_rewards(batch), batch.action.double(), batch.group.numpy()
    close(verl().compute_rloo_vectorized_outcome_advantage(*arguments)[0], ours)
    shared = in_company(batch)
    close(verl().compute_rloo_outcome_advantage(*arguments)[0][shared], ours[shared])


@few
@given(batches(min_size=2))
def test_verl_gpg(batch: Batch) -> None:
    """Dr. GRPO's advantage, scaled up by the share of episodes whose reward is not 0."""
    rewards = batch.reward.sum(1)
    alpha = batch.size / max(int((rewards != 0).sum()), 1)
    ours = group_advantages(rewards, batch.group, torch.ones_like(batch.terminated), scale="none")
    theirs, _ = verl().compute_gpg_outcome_advantage(
        token_rewards(batch), batch.action.double(), batch.group.numpy()
    )
    shared = in_company(batch)
    close(theirs[shared], alpha * spread_episodes(ours, batch.action)[shared])


@few
@given(batches(min_size=2), unit)
def test_verl_reinforce_plus_plus(batch: Batch, gamma: float) -> None:
    config, mask = SimpleNamespace(gamma=gamma), batch.action.double()
    white, returns = verl().compute_reinforce_plus_plus_outcome_advantage(token_rewards(batch), mask, config)
    close(returns, algos.make("reinforce_pp", whiten=False, gamma_token=gamma).credit(batch).advantage)
    if returns[batch.action].std() > 0.05:
        ours = algos.make("reinforce_pp", gamma_token=gamma).credit(batch).advantage
        close(white, ours, rtol=1e-4, atol=1e-5)


@few
@given(batches(min_size=2))
def test_verl_reinforce_plus_plus_baseline(batch: Batch) -> None:
    some = in_company(batch)
    assume(bool(some.any()))
    batch = outcome_only(batch.rows(some))
    ours = algos.make("reinforce_pp_baseline").credit(batch).advantage
    theirs, _ = verl().compute_reinforce_plus_plus_baseline_outcome_advantage(
        token_rewards(batch), batch.action.double(), batch.group.numpy()
    )
    assume(float(theirs.abs().sum()) > 1)
    close(theirs, ours, rtol=1e-4, atol=1e-5)


@few
@given(batches())
def test_verl_remax(batch: Batch) -> None:
    """It judges a token by what comes after it; with a reward at the end that is the episode's return."""
    batch = outcome_only(batch)
    theirs, _ = verl().compute_remax_outcome_advantage(token_rewards(batch), batch.greedy_return, batch.action.double())
    close(theirs * batch.action, algos.make("remax").credit(batch).advantage)


@few
@given(batches(), st.floats(0, 2))
def test_verl_kl_in_the_reward(batch: Batch, beta: float) -> None:
    theirs = verl().compute_rewards(token_rewards(batch), batch.old_logp, batch.ref_logp, beta)
    close(theirs, token_rewards(batch) + kl_in_reward(batch, KL(beta, "reward_k1")))


# verl: losses ----------------------------------------------------------------------------------------


def of_verl(name: str, mode: str, **settings: Any) -> Loss:
    def loss(batch: Batch, advantage: Tensor, logp: Tensor) -> Tensor:
        function = getattr(verl(), f"compute_policy_loss_{name}")
        found, _ = function(batch.old_logp, logp, advantage, batch.action.double(), mode, Actor(**settings))
        return found  # type: ignore[no-any-return]

    return loss


def of_ours(algorithm: Algorithm, reduce: Reduce) -> Loss:
    return lambda batch, advantage, logp: our_loss(algorithm, batch, advantage, logp, reduce)


@few
@given(batches(), seeds, st.sampled_from(list(REDUCTIONS)), st.sampled_from(((0.2, 0.2), (0.1, 0.28), (3e-4, 4e-4))))
def test_verl_clipped_surrogate_and_reductions(
    batch: Batch, seed: int, reduce: Reduce, bounds: tuple[float, float]
) -> None:
    """Without its third bound, see below."""
    low, high = bounds
    theirs = of_verl("vanilla", REDUCTIONS[reduce], low=low, high=high, clip_ratio_c=1e9)
    ours = of_ours(algos.make("grpo", low=low, high=high), reduce)
    same_loss_and_gradient(batch, drawn_advantages(batch, seed), seed, ours, theirs, rtol=1e-7)


def test_verl_bounds_bad_tokens_a_third_time() -> None:
    """Dual clip (arXiv 1912.09729): at ratio 5 and A = -1 its loss is 3 and its gradient 0; ours are 5 and 5."""
    batch = batch_of([Row(((1, 1),), (0.0,))])
    assert batch.old_logp is not None
    logp = (batch.old_logp + math.log(5) * batch.action).requires_grad_()
    for loss, worth, slope in (
        (of_ours(algos.make("grpo"), "token"), 5.0, 5.0),
        (of_verl("vanilla", "token-mean"), 3.0, 0.0),
    ):
        found = loss(batch, -batch.action.double(), logp)
        assert found.item() == pytest.approx(worth)
        assert torch.autograd.grad(found, logp)[0][0, 1].item() == pytest.approx(slope)


@few
@given(batches(), seeds, st.sampled_from(((0.2, 0.2), (3e-4, 4e-4))))
def test_verl_gspo(batch: Batch, seed: int, bounds: tuple[float, float]) -> None:
    """It gives each token its own gradient (GSPO-token); with one advantage a row that is the same in sum."""
    low, high = bounds
    theirs = of_verl("gspo", "seq-mean-token-mean", low=low, high=high)
    ours = of_ours(algos.make("gspo", low=low, high=high), "seq")
    same_loss_and_gradient(batch, drawn_advantages(batch, seed, per_row=True), seed, ours, theirs, rtol=1e-6)


@few
@given(batches(), seeds)
def test_verl_gmpo(batch: Batch, seed: int) -> None:
    theirs = of_verl("geo_mean", "token-mean", low=0.4, high=0.4)
    advantage = drawn_advantages(batch, seed, per_row=True)
    ours = of_ours(algos.make("gmpo"), "seq")
    same_loss_and_gradient(batch, advantage, seed, ours, theirs, spread=0.6, rtol=1e-6)


@few
@given(batches(), seeds)
def test_verl_sapo(batch: Batch, seed: int) -> None:
    theirs = of_verl("sapo", "token-mean", tau_pos=1.0, tau_neg=1.05)
    ours = of_ours(algos.make("sapo"), "seq")
    same_loss_and_gradient(batch, drawn_advantages(batch, seed), seed, ours, theirs, rtol=1e-6)


@few
@given(batches(), seeds, st.sampled_from((0.2, 4.0)))
def test_verl_cispo(batch: Batch, seed: int, high: float) -> None:
    """With its lower bound out of reach; ours has none, as in the paper."""
    ours = of_ours(algos.make("cispo", high=high), "token")
    theirs = of_verl("cispo", "token-mean", low=1.0, high=high)
    same_loss_and_gradient(batch, drawn_advantages(batch, seed), seed, ours, theirs)


@few
@given(batches(), seeds)
def test_verl_value_loss(batch: Batch, seed: int) -> None:
    assert batch.value is not None
    now, target = batch.value + moved(batch, seed) - batch.old_logp, drawn_advantages(batch, seed)  # type: ignore[operator]
    theirs, _ = verl().compute_value_loss(now, target, batch.value, batch.action.double(), 0.2)
    close(theirs, (token_weights(batch) * value_loss(now, target, batch.value, 0.2)[0]).sum())


distances = st.lists(st.floats(-2, 2), min_size=1, max_size=5)


@given(distances)
@few
def test_verl_kl_penalties(distance: list[float]) -> None:
    d = torch.tensor(distance, dtype=torch.float64)
    zero = torch.zeros_like(d)
    close(verl().kl_penalty(d, zero, "k2"), k2(d))
    close(verl().kl_penalty(d, zero, "k3"), k3(d))
    logp = d.clone().requires_grad_()
    straight = torch.autograd.grad(verl().kl_penalty(logp, zero, "k3+").sum(), logp)[0]
    close(straight, torch.autograd.grad(k2(logp).sum(), logp)[0])


@pytest.mark.parametrize("peer", ["verl", "openrlhf"])
def test_their_k3_stops_pulling_where_the_policy_has_gone_far(peer: str) -> None:
    """At d = -3, so 20 times less likely than under the reference: e^3 - 4 = 16.1 here, 10 and no gradient there."""
    logp, reference = torch.tensor([-3.0], requires_grad=True), torch.zeros(1)
    theirs = (
        verl().kl_penalty(logp, reference, "k3")
        if peer == "verl"
        else openrlhf().compute_approx_kl(logp, reference, kl_estimator="k3")
    )
    assert theirs.item() == 10 and torch.autograd.grad(theirs.sum(), logp)[0].item() == 0
    ours = kl_in_loss("loss_k3", logp, reference, logp.detach())
    assert ours.item() == pytest.approx(math.exp(3) - 4)
    assert torch.autograd.grad(ours.sum(), logp)[0].item() == pytest.approx(1 - math.exp(3))


# OpenRLHF --------------------------------------------------------------------------------------------

ESTIMATORS = {
    "rloo": ("rloo", {}),
    "group_norm": ("grpo", {"eps": 1e-9}),
    "dr_grpo": ("dr_grpo", {}),
    "reinforce_baseline": ("reinforce_pp_baseline", {}),
    "reinforce": ("reinforce_pp", {}),
}


def even_groups(seed: int, groups: int = 3, size: int = 4, turns: int = 2) -> Batch:
    """Groups of one size, as most of them need; every episode is paid at its end."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(groups * size):
        lengths = torch.randint(1, 4, (turns, 2), generator=generator).tolist()
        eighths = int(torch.randint(-8, 9, (), generator=generator))
        rewards = (*([0.0] * (turns - 1)), eighths / 8)
        rows.append(Row(tuple((o, a) for o, a in lengths), rewards, group=i // size, seed=seed * 100 + i))
    return batch_of(rows)


def openrlhf_advantages(batch: Batch, estimator: str, size: int, **settings: Any) -> Tensor:
    advantage = SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False, **settings)
    arguments = SimpleNamespace(
        algo=SimpleNamespace(advantage=advantage),
        rollout=SimpleNamespace(n_samples_per_prompt=size),
        reward=SimpleNamespace(clip_range=None),
    )
    maker = openrlhf().maker
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(args=arguments), kl_ctl=SimpleNamespace(value=0.0), advantage_estimator=estimator
    )
    trainer.get_advantages_and_returns = functools.partial(maker.get_advantages_and_returns, trainer)
    trainer.get_cumulative_returns = functools.partial(maker.get_cumulative_returns, trainer)
    experience = SimpleNamespace(
        rewards=batch.reward.sum(1), index=list(range(batch.size)), kl=torch.zeros_like(batch.behaviour_logp),
        action_mask=batch.action.double(), values=batch.value, info={},
    )  # fmt: skip
    (judged,) = maker.compute_advantages_and_returns(trainer, [experience])
    return judged.advantages * batch.action  # type: ignore[no-any-return]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(3))
def test_openrlhf_estimators(estimator: str, seed: int) -> None:
    batch = even_groups(seed)
    name, fields = ESTIMATORS[estimator]
    ours = algos.make(name, **fields).credit(batch).advantage
    if estimator.startswith("reinforce"):  # it whitens by the deviation of a population, we by that of a sample
        n = int(batch.action.sum())
        ours = ours * math.sqrt(n / (n - 1))
    close(openrlhf_advantages(batch, estimator, 4), ours, rtol=1e-5, atol=1e-6)


@few
@given(batches(), unit, unit)
def test_openrlhf_gae_is_ours_where_a_conversation_has_one_turn(batch: Batch, gamma: float, lam: float) -> None:
    """Or where nothing is discounted: with gamma = lambda = 1 all trainers agree, which is why nobody notices."""
    assert batch.value is not None
    single = batch.rows(batch.n_turns == 1)
    for rows, g, lam_ in ((single, gamma, lam), (batch, 1.0, 1.0)):
        reward = token_rewards(rows)
        ended, nothing = torch.ones_like(rows.terminated), torch.zeros_like(rows.bootstrap)  # type: ignore[arg-type]
        found, _ = openrlhf().maker.get_advantages_and_returns(
            None, rows.value, reward, rows.action.double(), g, lam_
        )
        ours = gae(reward, rows.value, rows.action, terminated=ended, bootstrap=nothing, discount=g, lam=lam_)  # type: ignore[arg-type]
        close(found * rows.action, ours)


def of_openrlhf(by_token: bool, **settings: Any) -> Loss:
    policy_loss = openrlhf().losses.PolicyLoss(token_level_loss=by_token, **settings)
    return lambda batch, advantage, logp: policy_loss(logp, batch.old_logp, advantage, batch.action.double())[0]


@few
@given(batches(), seeds, st.booleans())
def test_openrlhf_clipped_surrogate_and_reductions(batch: Batch, seed: int, by_token: bool) -> None:
    theirs = of_openrlhf(by_token, clip_eps_low=0.1, clip_eps_high=0.28)
    ours = of_ours(algos.make("grpo", low=0.1, high=0.28), "token" if by_token else "seq")
    same_loss_and_gradient(batch, drawn_advantages(batch, seed), seed, ours, theirs, rtol=1e-7)


@few
@given(batches(), seeds)
def test_openrlhf_gspo(batch: Batch, seed: int) -> None:
    theirs = of_openrlhf(False, policy_loss_type="gspo")
    ours = of_ours(algos.make("gspo", low=0.2, high=0.2), "seq")
    same_loss_and_gradient(batch, drawn_advantages(batch, seed), seed, ours, theirs, rtol=1e-7)


@few
@given(batches(), seeds)
def test_openrlhf_truncated_importance(batch: Batch, seed: int) -> None:
    """Its ratio of trainer to sampler, bounded above; ours stands at the present policy, so at the first step alike."""
    assert batch.old_logp is not None
    advantage, sampler = drawn_advantages(batch, seed), moved(batch, seed, 0.8).detach()
    settings = {"is_correction_level": "token", "is_correction_mode": "clip", "is_correction_threshold": [0.0, 2.0]}
    policy_loss = openrlhf().losses.PolicyLoss(**settings)
    theirs = policy_loss(batch.old_logp, batch.old_logp, advantage, batch.action.double(), sampler)[0]
    surrogate, _ = clipped_surrogate(torch.ones_like(advantage), advantage)
    ours = token_weights(batch) * truncated_importance(batch.old_logp, sampler, 2.0) * surrogate
    close(theirs, ours.sum())


@few
@given(batches(), seeds)
def test_openrlhf_value_loss(batch: Batch, seed: int) -> None:
    assert batch.value is not None
    now, target = batch.value + moved(batch, seed) - batch.old_logp, drawn_advantages(batch, seed)  # type: ignore[operator]
    theirs = openrlhf().losses.ValueLoss(0.2)(now, batch.value, target, batch.action.double())
    close(theirs, (token_weights(batch) * value_loss(now, target, batch.value, 0.2)[0]).sum())


@given(distances)
@few
def test_openrlhf_kl_estimators(distance: list[float]) -> None:
    d = torch.tensor(distance)
    for name, ours in (("k2", k2), ("k3", k3)):
        close(openrlhf().compute_approx_kl(d, torch.zeros_like(d), kl_estimator=name), ours(d), 1e-4, 1e-5)


# TRL -------------------------------------------------------------------------------------------------


def trl_advantages(rewards: Tensor, size: int, scale: str) -> Tensor:
    """The passage of ``GRPOTrainer._generate_and_score_completions`` from rewards to advantages; NaN = no score."""
    compute = passage("trl", "trainer/grpo_trainer.py", "_generate_and_score_completions",
                      "if self.multi_objective_aggregation", "advantages = torch.nan_to_num")  # fmt: skip
    trainer = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize", scale_rewards=scale, reward_weights=torch.ones(1).double()
    )
    scope = compute(
        self=trainer, rewards_per_func=rewards[:, None], num_generations=size, nanstd=trl().nanstd,
        unscorable_mask=rewards.isnan(), device="cpu",
    )  # fmt: skip
    return scope["advantages"]  # type: ignore[no-any-return]


def trl_rloo_advantages(rewards: Tensor, size: int) -> Tensor:
    """The same of ``RLOOTrainer``."""
    compute = passage("trl", "trainer/rloo_trainer.py", "_generate_and_score_completions",
                      "scorable_counts", "advantages = torch.nan_to_num")  # fmt: skip
    trainer = SimpleNamespace(normalize_advantages=False)
    scope = compute(self=trainer, rewards=rewards, grouped_rewards=rewards.view(-1, size), num_generations=size)
    return scope["advantages"]  # type: ignore[no-any-return]


scores = st.one_of(st.integers(-16, 16).map(lambda eighths: eighths / 8), st.just(math.nan))


@few
@given(st.integers(2, 4), st.integers(1, 3), st.data())
def test_trl_group_advantages(size: int, groups: int, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(scores, min_size=size * groups, max_size=size * groups))
    rewards = torch.tensor(drawn, dtype=torch.float64)
    group, valid = torch.arange(groups).repeat_interleave(size), ~rewards.isnan()
    for scale in ("group", "batch", "none"):
        ours = group_advantages(rewards, group, valid, scale=scale, eps=1e-4)  # type: ignore[arg-type]
        close(trl_advantages(rewards, size, scale), ours, rtol=1e-6)  # its n / (n - 1) is a float32
    rloo = group_advantages(rewards, group, valid, baseline="leave_one_out", scale="none")
    close(trl_rloo_advantages(rewards, size), rloo)


class Accelerator:
    """One process: nothing to gather."""

    num_processes = 1
    sync_gradients = True

    def gather(self, x: Tensor) -> Tensor:
        return x

    def reduce(self, x: Tensor, reduction: str) -> Tensor:
        return x

    def pad_across_processes(self, x: Tensor, **_: Any) -> Tensor:
        return x


def of_trl(kind: str, level: str = "token", beta: float = 0.0, **settings: Any) -> Loss:
    """``GRPOTrainer._compute_loss`` on a trainer of settings alone, whose model answers with given numbers."""

    def loss(batch: Batch, advantage: Tensor, logp: Tensor) -> Tensor:
        arguments = {"delta": None, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
        arguments |= {"steps_per_generation": 1, "use_bias_correction_kl": settings.get("corrected", False)}
        trainer = SimpleNamespace(
            loss_type=kind, importance_sampling_level=level, beta=beta, top_entropy_quantile=1.0,
            epsilon_low=settings.get("low", 0.2), epsilon_high=settings.get("high", 0.2),
            max_completion_length=batch.action.shape[1], off_policy_mask_threshold=None, aux_loss_enabled=False,
            use_vllm=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
            args=SimpleNamespace(**arguments), model=SimpleNamespace(training=True), accelerator=Accelerator(),
            _metrics={"train": defaultdict(list)},
            _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        )  # fmt: skip
        mask = batch.action.double()
        empty = batch.tokens[:, :0]
        inputs = {
            "prompt_ids": empty, "prompt_mask": empty, "completion_ids": batch.tokens, "completion_mask": mask,
            "advantages": advantage, "old_per_token_logps": batch.old_logp, "ref_per_token_logps": batch.ref_logp,
            "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        return trl().grpo._compute_loss(trainer, None, inputs)  # type: ignore[no-any-return]

    return loss


@few
@given(batches(), seeds, st.sampled_from((("grpo", "seq"), ("bnpo", "token"), ("dapo", "token"), ("dr_grpo", "const"))))
def test_trl_clipped_surrogate_and_reductions(batch: Batch, seed: int, kinds: tuple[str, Reduce]) -> None:
    ours = of_ours(algos.make("grpo", high=0.28), kinds[1])
    theirs = of_trl(kinds[0], high=0.28)
    same_loss_and_gradient(batch, drawn_advantages(batch, seed), seed, ours, theirs)


@few
@given(batches(), seeds, st.sampled_from((("grpo", "seq"), ("dapo", "token"))))
def test_trl_sequence_ratio(batch: Batch, seed: int, kinds: tuple[str, Reduce]) -> None:
    ours = of_ours(algos.make("gspo"), kinds[1])
    theirs = of_trl(kinds[0], "sequence", low=3e-4, high=4e-4)
    advantage = drawn_advantages(batch, seed, per_row=True)
    per_row = lambda batch, advantage, logp: theirs(batch, advantage.sum(1) / batch.action.sum(1), logp)  # noqa: E731
    same_loss_and_gradient(batch, advantage, seed, ours, per_row)


@few
@given(batches(), seeds)
def test_trl_cispo(batch: Batch, seed: int) -> None:
    """Its ``epsilon_high`` is the bound itself, ours is how far it lies above 1."""
    advantage = drawn_advantages(batch, seed)
    same_loss_and_gradient(
        batch, advantage, seed, of_ours(algos.make("cispo", high=4.0), "token"), of_trl("cispo", high=5.0)
    )


@few
@given(batches(), seeds)
def test_trl_sapo(batch: Batch, seed: int) -> None:
    advantage = drawn_advantages(batch, seed)
    same_loss_and_gradient(batch, advantage, seed, of_ours(algos.make("sapo"), "seq"), of_trl("sapo"), rtol=1e-6)


@few
@given(batches(), seeds, st.booleans())
def test_trl_kl(batch: Batch, seed: int, corrected: bool) -> None:
    kl = KL(0.1, "loss_k3_is" if corrected else "loss_k3")
    theirs = of_trl("grpo", beta=0.1, corrected=corrected)
    ours = of_ours(algos.make("grpo", kl=kl), "seq")
    same_loss_and_gradient(batch, drawn_advantages(batch, seed), seed, ours, theirs)


def rloo_of_trl(batch: Batch, advantage: Tensor, logp: Tensor) -> Tensor:
    """``RLOOTrainer._compute_loss``."""
    trainer = SimpleNamespace(
        epsilon_low=0.2, epsilon_high=0.2, aux_loss_enabled=False, model=SimpleNamespace(training=True),
        accelerator=Accelerator(), _metrics={"train": defaultdict(list)}, beta=0.0,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
    )  # fmt: skip
    mask, empty = batch.action.double(), batch.tokens[:, :0]
    assert batch.old_logp is not None
    inputs = {
        "prompt_ids": empty, "prompt_mask": empty, "completion_ids": batch.tokens, "completion_mask": mask,
        "advantages": advantage.sum(1) / mask.sum(1), "old_logps": (batch.old_logp * mask).sum(1),
    }  # fmt: skip
    return trl().rloo._compute_loss(trainer, None, inputs)  # type: ignore[no-any-return]


@few
@given(batches(), seeds)
def test_trl_rloo_has_the_same_gradient_on_policy(batch: Batch, seed: int) -> None:
    advantage = drawn_advantages(batch, seed, per_row=True)
    logp = moved(batch, seed, 0.0)
    ours = our_loss(algos.make("rloo"), batch, advantage, logp, "seq_sum")
    expected = torch.autograd.grad(ours, logp)[0]
    found = torch.autograd.grad(rloo_of_trl(batch, advantage, logp), logp)[0]
    close(found * batch.action, expected * batch.action)


def test_trl_rloo_multiplies_the_ratios_and_ours_takes_their_mean() -> None:
    """Four tokens, each 10 % likelier, A = 1: e^0.4 = 1.49 is over its bound, e^0.1 = 1.11 is inside ours."""
    batch = batch_of([Row(((1, 4),), (1.0,))])
    assert batch.old_logp is not None
    logp = (batch.old_logp + 0.1 * batch.action.double()).requires_grad_()
    advantage = batch.action.double()
    theirs = rloo_of_trl(batch, advantage, logp)
    assert theirs.item() == pytest.approx(-1.2)
    assert (torch.autograd.grad(theirs, logp)[0] == 0).all()
    ours = our_loss(algos.make("rloo"), batch, advantage, logp, "seq_sum")
    slope = torch.autograd.grad(ours, logp)[0][batch.action]
    close(slope, torch.full((4,), -math.exp(0.1), dtype=torch.float64))


@few
@given(batches(), st.sampled_from((0.2, 0.5, 0.8)))
def test_trl_high_entropy_mask(batch: Batch, share: float) -> None:
    """Its threshold lies between two tokens, ours on the upper one: the same tokens are above it."""
    entropy = (batch.behaviour_logp.abs() + 0.1) * batch.action
    trainer = SimpleNamespace(accelerator=Accelerator())
    theirs = trl().grpo.get_high_entropy_mask(trainer, entropy.float(), batch.action.int(), 1 - share)
    ours = surest_last(entropy.float(), batch.action, None, share)
    assert torch.equal(theirs.bool() & batch.action, ours)
