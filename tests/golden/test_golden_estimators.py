"""Numbers that can be checked with a pencil: each is derived in its test, in exact fractions."""

from __future__ import annotations

from fractions import Fraction as F

import pytest
import torch
from torch import Tensor

from algos.maths.advantages import gae, group_advantages, returns_to_go, token_discount
from algos.maths.kl import k2, k3
from algos.maths.losses import clipped_surrogate, importance_ratio, value_loss


def vector(*numbers: float | F) -> Tensor:
    return torch.tensor([[float(x) for x in numbers]], dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# Seven tokens, of which 0, 1 (turn 0) and 4, 5 (turn 1) are the policy's; the reward comes with token 5.
TURN = torch.tensor([[0, 0, -1, -1, 1, 1, -1]])
REWARD = vector(0, 0, 0, 0, 0, 1, 0)
VALUE = vector(0.5, 0.4, 0.9, 0.9, 0.6, 0.7, 0.3)
ENDED, NOTHING = torch.tensor([True]), torch.zeros(1, dtype=torch.float64)


def advantages(value: Tensor, lam: float, *, gamma_turn: float = 1.0, terminated: Tensor = ENDED) -> Tensor:
    discount = token_discount(TURN, 0.9, gamma_turn)
    bootstrap = torch.tensor([0.5], dtype=torch.float64)
    return gae(
        REWARD, value, TURN >= 0, terminated=terminated, bootstrap=bootstrap, discount=discount, lam=lam
    )


def test_gae_over_a_conversation() -> None:
    gamma, carry = F(9, 10), F(9, 10) * F(8, 10)
    v0, v1, v4, v5 = F(5, 10), F(4, 10), F(6, 10), F(7, 10)  # what stands at 2, 3 and 6 is not asked
    a5 = 1 - v5
    a4 = gamma * v5 - v4 + carry * a5
    a1 = gamma * v4 - v1 + carry * a4  # the next step after token 1 is token 4
    a0 = gamma * v1 - v0 + carry * a1
    assert (a5, a4) == (F(3, 10), F(246, 1000))
    assert [round(float(a), 4) for a in (a0, a1, a4, a5)] == [0.0883, 0.3171, 0.2460, 0.3000]
    close(advantages(VALUE, 0.8), vector(a0, a1, 0, 0, a4, a5, 0))


def test_gae_with_a_discount_per_turn() -> None:
    inside, leaving, lam = F(9, 10), F(9, 10) * F(1, 2), F(8, 10)
    a5 = 1 + leaving * F(1, 2) - F(7, 10)  # truncated: V(s_T) = 0.5 is one turn away
    a4 = inside * F(7, 10) - F(6, 10) + inside * lam * a5
    a1 = leaving * F(6, 10) - F(4, 10) + leaving * lam * a4
    a0 = inside * F(4, 10) - F(5, 10) + inside * lam * a1
    found = advantages(VALUE, 0.8, gamma_turn=0.5, terminated=torch.tensor([False]))
    close(found, vector(a0, a1, 0, 0, a4, a5, 0))


def test_discounted_return_over_a_conversation() -> None:
    found = advantages(torch.zeros_like(VALUE), 1.0)
    close(found, vector(F(729, 1000), F(81, 100), 0, 0, F(9, 10), 1, 0))


def test_returns_to_go() -> None:
    # 4 + 0; 2 + 4 / 2; 1 + 4 / 2
    close(returns_to_go(vector(1, 2, 4), 0.5), vector(3, 4, 4))


@pytest.mark.parametrize(
    ("baseline", "scale", "expected"),
    [
        # returns 1 0 0 3: mean 1, median 1/2, mean of the others 1, 4/3, 4/3, 1/3
        ("group_mean", "none", (0, -1, -1, 2)),
        ("group_median", "none", (0.5, -0.5, -0.5, 2.5)),
        ("leave_one_out", "none", (0, F(-4, 3), F(-4, 3), F(8, 3))),
        ("none", "none", (1, 0, 0, 3)),
        # squared deviations 0 1 1 4 over n - 1 = 3: variance 2
        ("group_mean", "group", (0, -(2**-0.5), -(2**-0.5), 2**0.5)),
        ("none", "group", (2**-0.5, 0, 0, 3 * 2**-0.5)),
    ],
)
def test_group_advantages(baseline: str, scale: str, expected: tuple[float, ...]) -> None:
    returns, group = vector(1, 0, 0, 3)[0], torch.tensor([5, 5, 5, 5])
    valid = torch.ones(4, dtype=torch.bool)
    found = group_advantages(returns, group, valid, baseline=baseline, scale=scale, eps=0.0)  # type: ignore[arg-type]
    close(found, vector(*expected)[0])


def test_batch_statistics_look_over_the_groups() -> None:
    # two groups, 1 3 and 0 4: mean of all 2; squared deviations 1 1 4 4 over 3
    returns, group = vector(1, 3, 0, 4)[0], torch.tensor([0, 0, 1, 1])
    valid = torch.ones(4, dtype=torch.bool)
    sigma = (10 / 3) ** 0.5
    found = group_advantages(returns, group, valid, baseline="global_mean", scale="batch", eps=0.0)
    close(found, vector(-1, 1, -2, 2)[0] / sigma)


def test_clipped_surrogate() -> None:
    #                 inside  high, A>0  high, A<0  low, A>0  low, A<0
    ratio = vector(1.1, 1.5, 1.5, 0.5, 0.5)
    advantage = vector(2, 2, -2, 2, -2)
    loss, held = clipped_surrogate(ratio, advantage, low=0.2, high=0.3)
    close(loss, vector(-2.2, -2.6, 3.0, -1.0, 1.6))
    close(held, vector(0, 1, 0, 0, 1))


def test_ratios_of_a_turn_and_of_a_sequence() -> None:
    rho = vector(2, 8, 1, 1, 1, 4, 1)  # turn 0: sqrt(2 * 8) = 4; turn 1: sqrt(1 * 4) = 2; row: 64 ** (1/4)
    logp, old = rho.log() - 1, torch.full_like(rho, -1.0)
    close(importance_ratio(logp, old, TURN, "token"), rho)
    close(importance_ratio(logp, old, TURN, "turn")[TURN >= 0], vector(4, 4, 2, 2)[0])
    close(importance_ratio(logp, old, TURN, "sequence")[TURN >= 0], vector(*[64**0.25] * 4)[0])


def test_value_loss() -> None:
    #             inside; moved too far, away from the target; too far, towards it
    value, old = vector(1.1, 2.0, 2.0), vector(1.0, 1.0, 1.0)
    target = vector(2.0, 0.0, 3.0)
    loss, held = value_loss(value, target, old, clip=0.5)
    close(loss, vector(0.81 / 2, 4 / 2, 2.25 / 2))  # the third: clipped to 1.5, which is 1.5 from 3
    close(held, vector(0, 0, 1))
    close(value_loss(value, target, old, clip=None)[0], vector(0.81 / 2, 4 / 2, 1 / 2))


def test_kl_estimators() -> None:
    d = vector(0, 2**0.5, torch.log(torch.tensor(2.0, dtype=torch.float64)).item())
    close(k2(d)[0, :2], vector(0, 1)[0])
    close(k3(d)[0, ::2], vector(0, 0.5 - 1 + float(d[0, 2]))[0])
