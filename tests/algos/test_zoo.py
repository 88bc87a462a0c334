"""One battery for every algorithm by its name, and for every option of those that have many."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import algos
from algos.base import KL, Algorithm, Batch, Minibatch, Scores
from algos.vapo import VAPO
from tests.algos.batches import (
    ZOO,
    Row,
    batch_of,
    batches,
    flat_gradient,
    gradient_of,
    judged,
    loss_of,
    observed,
    padded,
    row_lists,
    score,
    table,
)

few = settings(max_examples=5, deadline=None)
every = pytest.mark.parametrize("algorithm", [pytest.param(a, id=name) for name, a in ZOO.items()])


def a_batch() -> Batch:
    """Two groups of different sizes, several turns, one truncated row; every group has something to teach."""
    return observed(
        batch_of(
            [
                Row(((2, 3), (1, 2)), (0.5, 1.0), group=1, seed=1),
                Row(((1, 1), (2, 2), (1, 3)), (0.0, 0.0, 2.0), group=1, seed=2),
                Row(((1, 4),), (-1.0,), group=1, terminated=False, seed=3),
                Row(((3, 2), (1, 1)), (0.0, 1.0), group=2, seed=4),
                Row(((2, 2),), (0.0,), group=2, seed=5),
            ]
        )
    )


def regularised(algorithm: Algorithm) -> bool:
    by_kl = algorithm.kl.beta > 0 and algorithm.kl.placement != "reward_k1"
    return algorithm.entropy > 0 or by_kl or (isinstance(algorithm, VAPO) and algorithm.mu > 0)


def plain_of(algorithm: Algorithm) -> Algorithm:
    """Its surrogate alone, without what is added to it."""
    success = {"mu": 0.0, "positive_above": 0.0} if isinstance(algorithm, VAPO) else {}
    return dataclasses.replace(algorithm, kl=KL(), entropy=0.0, **success)  # type: ignore[arg-type]


@every
def test_configuration_survives_json_and_pickle(algorithm: Algorithm) -> None:
    config = json.loads(json.dumps(algos.to_config(algorithm)))
    again = type(algorithm)(**{**config, "kl": KL(**config["kl"])})
    assert again == algorithm
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.epochs = 9  # type: ignore[misc]


@every
def test_it_gets_what_it_asks_for_and_no_more(algorithm: Algorithm) -> None:
    """Without the fields that it does not name in ``needs`` it computes the same."""
    batch = a_batch()
    hidden: dict[str, None] = {} if "greedy" in algorithm.needs else {"greedy_return": None}
    if "reference" not in algorithm.needs:
        hidden["ref_logp"] = None
    if "critic" not in algorithm.needs:
        hidden |= {"value": None, "bootstrap": None}
    poor = dataclasses.replace(batch, **hidden)  # type: ignore[arg-type]
    _, before = gradient_of(algorithm, batch)
    assert torch.equal(gradient_of(algorithm, poor)[1], before)
    assert before.isfinite().all() and (before != 0).any()
    assert algorithm.needs <= {"critic", "reference", "group", "greedy"}


@every
def test_credit_has_the_promised_form(algorithm: Algorithm) -> None:
    batch = a_batch()
    credit, data, weights = judged(algorithm, batch)
    assert not credit.advantage.requires_grad
    assert (credit.advantage[~batch.action] == 0).all() and credit.advantage.isfinite().all()
    assert weights.sum() > 0
    assert (credit.target is None) == (credit.critic_at is None) == ("critic" not in algorithm.needs)
    if credit.critic_at is not None and credit.target is not None:
        assert (batch.action | ~credit.critic_at).all()
        assert credit.target[credit.critic_at].isfinite().all()
    assert json.loads(json.dumps(dict(credit.state))) == dict(credit.state)
    assert all(math.isfinite(x) for x in credit.metrics.values())
    _, metrics = algorithm.loss(score(data, table()), data)
    assert {"kl", "entropy", "policy_loss"} <= set(metrics)
    assert ("kl_ref" in metrics) == (algorithm.kl.beta > 0)
    assert ("value_loss" in metrics) == ("critic" in algorithm.needs)
    for metric in metrics.values():
        assert metric.shape == batch.action.shape and not metric.requires_grad
        assert metric[batch.action].isfinite().all()


@every
def test_credit_and_loss_are_pure(algorithm: Algorithm) -> None:
    batch = a_batch()
    columns = [f.name for f in dataclasses.fields(Batch) if isinstance(getattr(batch, f.name), Tensor)]
    before = {name: getattr(batch, name).clone() for name in columns}
    first, second = gradient_of(algorithm, batch), gradient_of(algorithm, batch)
    assert torch.equal(first[1], second[1]) and torch.equal(first[0], second[0])
    assert all(torch.equal(getattr(batch, name), before[name]) for name in columns)


@every
def test_gradient_flows_to_action_tokens_alone(algorithm: Algorithm) -> None:
    _, data, weights = judged(algorithm, a_batch())
    scores = Scores(*(x.detach().clone().requires_grad_() for x in score(data, table()) if x is not None))
    loss, _ = algorithm.loss(scores, data)
    by_logp, by_entropy, by_value = torch.autograd.grad(
        (weights * loss)[data.action].sum(), [x for x in scores if x is not None], materialize_grads=True
    )
    for gradient in (by_logp, by_entropy, by_value):
        assert (gradient[~data.action] == 0).all()
    assert (by_logp != 0).any()
    assert bool((by_entropy != 0).any()) == (algorithm.entropy > 0)
    assert bool((by_value != 0).any()) == ("critic" in algorithm.needs)


# Their gradient is that of a log-probability times a weight without gradient: the loss is not its integral.
WEIGHTED = tuple(type(ZOO[name]) for name in ("cispo", "topr"))


@contextmanager
def held(values: list[Tensor]) -> Iterator[None]:
    """What is detached inside keeps the value it had the first time: behind a stop-gradient stands a constant."""
    first, remembered = not values, iter(values)
    detach = torch.Tensor.detach

    def constant(tensor: Tensor) -> Tensor:
        if not first:
            return next(remembered)
        values.append(detach(tensor).clone())
        return values[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "detach", constant)
        yield


@every
def test_finite_differences(algorithm: Algorithm) -> None:
    _, data, weights = judged(algorithm, a_batch())
    constants: list[Tensor] = []

    def total(logits: Tensor, values: Tensor) -> Tensor:
        with held(constants) if isinstance(algorithm, WEIGHTED) else nullcontext():
            return loss_of(algorithm, data, weights, (logits, values)) + 0 * values.sum()

    assert torch.autograd.gradcheck(total, table(9))


@every
@few
@given(row_lists(), st.randoms(use_true_random=False), st.integers(1, 4))
def test_micro_batches_order_and_padding_change_nothing(
    algorithm: Algorithm, rows: list[Row], random: object, size: int
) -> None:
    batch = observed(batch_of(rows))
    loss, gradient = gradient_of(algorithm, batch)

    order = list(range(batch.size))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = observed(padded(batch, 3).rows(torch.tensor(order)))
    found = gradient_of(algorithm, shuffled)
    torch.testing.assert_close(found[0], loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], gradient, rtol=1e-9, atol=1e-12)

    _, data, weights = judged(algorithm, batch)
    total, parts = torch.zeros_like(gradient), torch.zeros_like(loss)
    for start in range(0, batch.size, size):
        index = torch.tensor(order[start : start + size])
        micro = data.rows(index).trimmed()
        parameters = table()
        part = loss_of(algorithm, micro, weights[index, : micro.action.shape[1]], parameters)
        parts, total = parts + part.detach(), total + flat_gradient(part, parameters)
    torch.testing.assert_close(parts, loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(total, gradient, rtol=1e-9, atol=1e-12)


@every
@few
@given(row_lists(min_size=2), st.integers(0, 5), st.sampled_from((math.nan, math.inf, -math.inf)))
def test_an_episode_without_a_real_reward_is_as_if_it_were_not_there(
    algorithm: Algorithm, rows: list[Row], which: int, bad: float
) -> None:
    which %= len(rows)
    spoilt = [r._replace(rewards=(*r.rewards[:-1], bad)) if i == which else r for i, r in enumerate(rows)]
    batch = observed(batch_of(spoilt))
    credit, _, _ = judged(algorithm, batch)
    found = gradient_of(algorithm, batch)
    assert found[1].isfinite().all()
    others = torch.arange(len(rows)) != which
    if isinstance(algorithm, type(ZOO["bc"])):
        return  # it does not look at rewards
    assert credit.keep is not None and not credit.keep[which]
    assert (credit.advantage[which] == 0).all()
    alone = batch.rows(others)
    without = algorithm.credit(alone)
    torch.testing.assert_close(credit.advantage[others], without.advantage, rtol=1e-9, atol=1e-12)
    assert dict(credit.state) == pytest.approx(dict(without.state))
    expected = gradient_of(algorithm, alone)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)


@every
def test_nothing_real_in_the_whole_batch(algorithm: Algorithm) -> None:
    batch = observed(batch_of([Row(((1, 2),), (math.nan,), seed=i) for i in range(3)]))
    loss, gradient = gradient_of(algorithm, batch)
    if not isinstance(algorithm, type(ZOO["bc"])):
        assert loss == 0 and (gradient == 0).all()


@every
def test_no_advantage_no_gradient(algorithm: Algorithm) -> None:
    _, data, weights = judged(algorithm, a_batch())
    data = dataclasses.replace(data, advantage=torch.zeros_like(data.advantage))
    logits, values = table()
    loss = loss_of(algorithm, data, weights, (logits, values))
    gradient = torch.autograd.grad(loss + 0 * logits.sum(), logits)[0]
    assert bool((gradient != 0).any()) == regularised(algorithm)


@every
def test_the_pull_and_the_bonus_are_added_to_the_loss(algorithm: Algorithm) -> None:
    batch = a_batch()
    data = Minibatch.of(batch, algorithm.credit(batch))
    scores = score(data, table())
    plain = dataclasses.replace(algorithm, kl=KL(), entropy=0.0)
    full = dataclasses.replace(algorithm, kl=KL(0.3, "loss_k2"), entropy=0.2)
    assert data.ref_logp is not None
    term = 0.3 * (scores.logp - data.ref_logp).square() / 2 - 0.2 * scores.entropy
    added = full.loss(scores, data)[0] - plain.loss(scores, data)[0]
    torch.testing.assert_close(added[data.action], term[data.action], rtol=1e-9, atol=1e-12)


@every
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_good_token_becomes_likelier_and_a_bad_one_less_likely(algorithm: Algorithm, sign: float) -> None:
    plain = dataclasses.replace(algorithm, kl=KL(), entropy=0.0)
    _, data, weights = judged(plain, a_batch())
    data = dataclasses.replace(data, advantage=sign * data.action.double())
    assert data.old_logp is not None
    logp = data.old_logp.clone().requires_grad_()
    loss, _ = plain.loss(Scores(logp, torch.zeros_like(logp), data.value), data)
    gradient = torch.autograd.grad((weights * loss)[data.action].sum(), logp)[0]
    assert (torch.sign(gradient[weights > 0]) == -sign).all()


@every
@few
@given(batches())
def test_on_the_first_pass_every_algorithm_is_reinforce_with_its_own_advantages(
    algorithm: Algorithm, batch: Batch
) -> None:
    """At ratio 1 the gradient by log-probability is ``-w A``, where A is one number a sequence or a turn."""
    plain = plain_of(algorithm)
    _, data, weights = judged(plain, batch)
    assume(bool((weights > 0).any()) and data.old_logp is not None)
    logp = data.old_logp.clone().requires_grad_()  # type: ignore[union-attr]
    loss, metrics = plain.loss(Scores(logp, torch.zeros_like(logp), data.value), data)
    gradient = torch.autograd.grad((weights * loss)[data.action].sum(), logp)[0]
    torch.testing.assert_close(gradient, -weights * data.advantage, rtol=1e-9, atol=1e-12)
    assert (metrics["kl"] == 0).all()
    if "ratio" in metrics:
        assert (metrics["ratio"] == 1).all() and (metrics["clip_share"] == 0).all()


def test_the_battery_holds_every_registered_name() -> None:
    assert set(algos.names()) <= set(ZOO)


def test_minibatch_is_a_batch_with_credit() -> None:
    batch = a_batch()
    data = Minibatch.of(batch, ZOO["ppo"].credit(batch))
    some = data.rows(torch.tensor([3, 0]))
    assert some.target is not None and data.target is not None
    assert torch.equal(some.target, data.target[[3, 0]]) and torch.equal(some.tokens, batch.tokens[[3, 0]])
