"""The audit against enumeration, autograd and theory. Everything is seeded: a test passes or fails for good."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from rich.console import Console

import algos
from benchmarks import bias, provenance
from benchmarks import gradient_audit as audit
from benchmarks import micro_dialogues as micro
from benchmarks.gradient_audit import Configuration, Options, directions, measure
from benchmarks.micro_dialogues import SETTINGS, Policy, Setting
from benchmarks.pages import FIGURES
from convgym.errors import ConfigError

BANDIT, ASK, DELAYED = SETTINGS


def sampled(setting: Setting, kind: micro.PolicyKind, size: int, batches: int = 100, **reward: float) -> micro.Sampled:
    generator = micro.named_generator(5, f"test/{setting.name}/{kind}")
    table, pi = micro.dialogue(setting, **reward), micro.policy(setting, kind)
    return micro.sample(table, pi, generator, batches=batches, groups=16 // size, size=size)


def measured(name: str, of: micro.Sampled, **fields: object) -> bias.Measure:
    truth = micro.true_gradient(of.table, of.policy)
    found = directions(algos.make(name, **fields), of)
    return measure(found, truth, audit.controls(of), audit.expectations(truth))


def enumerated(setting: Setting, pi: Policy, logp: torch.Tensor) -> torch.Tensor:
    """The expected return as a sum over every trajectory, differentiable by ``logp`` [S,E]."""
    total, value = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for edges, luck, rewards in micro.trajectories(micro.dialogue(setting), pi.spelling):
        chance = luck * logp[tuple(torch.tensor(edges).T)].sum().exp()
        total, value = total + chance, value + chance * sum(rewards)
    assert float(total.detach()) == pytest.approx(1.0, abs=1e-9)
    return value


# The truth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [ASK, DELAYED], ids=lambda s: s.name)
def test_the_true_gradient_is_autograd_of_the_value_of_every_trajectory(setting: Setting) -> None:
    table, how = micro.dialogue(setting), micro.one_token(micro.dialogue(setting).actions)
    logits = torch.randn(len(table.states), len(how.edges), generator=torch.Generator().manual_seed(3)).double()
    pi = micro.tabular(logits.numpy(), how)
    value = enumerated(setting, pi, micro.trie_softmax(logits.requires_grad_(), how))
    assert micro.expected_return(table, pi) == pytest.approx(float(value.detach()), abs=1e-12)
    assert_allclose(micro.true_gradient(table, pi), torch.autograd.grad(value, logits)[0].numpy().ravel(), atol=1e-12)


def test_the_true_gradient_of_the_llama_is_autograd_through_the_model() -> None:
    table, pi = micro.dialogue(DELAYED), micro.policy(DELAYED, "llama")
    model, score = micro.llama(table, pi.spelling)
    value = enumerated(DELAYED, pi, torch.stack([score(s) for s in range(len(table.states))]))
    found = torch.autograd.grad(value, list(model.parameters()))
    assert micro.expected_return(table, pi) == pytest.approx(float(value.detach()), abs=1e-6)
    truth = micro.true_gradient(table, pi)
    assert_allclose(truth, torch.cat([g.flatten() for g in found]).numpy(), atol=1e-6 * np.linalg.norm(truth))


def test_the_jacobian_is_that_of_finite_differences() -> None:
    how = micro.wordy(("yes", "no", "silent"))
    logits = np.random.default_rng(0).standard_normal((2, len(how.edges)))
    pi, step = micro.tabular(logits, how), 1e-6
    for p, (s, e) in enumerate(itertools.product(range(2), range(len(how.edges)))):
        moved = logits.copy()
        moved[s, e] += step
        slope = (micro.tabular(moved, how).logp - pi.logp) / step
        assert_allclose(pi.jacobian[:, :, p], slope, atol=1e-5)


def test_a_message_is_one_to_four_tokens_and_chances_sum_to_one() -> None:
    pi = micro.policy(ASK, "llama")
    assert sorted(set(pi.spelling.lengths)) == [1, 2, 3, 4]
    assert_allclose(np.exp(pi.message_logp).sum(1), 1.0, atol=1e-9)


def test_a_value_is_the_mean_of_what_follows() -> None:
    # gamma 1/2 per turn, pay of TextBandit at once: V(turn 2) = r, V(turn 1) = r + r'/2, with r the mean pay of a pull
    table, how = micro.dialogue(BANDIT), micro.one_token(micro.dialogue(BANDIT).actions)
    pi = micro.tabular(np.zeros((3, 4)), how)  # uniform: r = (.1 + .3 + .8 + 0) / 4 / 3 = .1
    value, q = micro.values(table, pi, gamma_turn=0.5)
    assert_allclose(value[:, 0], [0.1 + 0.05 + 0.025, 0.1 + 0.05, 0.1])
    assert_allclose(q[2], [0.1 / 3, 0.1, 0.8 / 3, 0.0])


def test_scaling_and_shifting_the_reward_does_to_the_gradient_what_it_must() -> None:
    pi = micro.policy(DELAYED, "tabular")
    truth = micro.true_gradient(micro.dialogue(DELAYED), pi)
    assert_allclose(micro.true_gradient(micro.dialogue(DELAYED, 10.0), pi), 10 * truth, atol=1e-12)
    assert_allclose(micro.true_gradient(micro.dialogue(DELAYED, 1.0, 5.0), pi), truth, atol=1e-12)


def test_a_reward_at_the_end_has_the_gradient_of_one_at_once() -> None:
    pi = micro.policy(DELAYED, "tabular")
    now, later = (micro.true_gradient(micro.dialogue(Setting(DELAYED.name, d)), pi) for d in (True, False))
    assert_allclose(now, later, atol=1e-12)


# The sampler ----------------------------------------------------------------------------------------------


def test_sampled_returns_and_controls_agree_with_enumeration() -> None:
    of = sampled(ASK, "tabular", 4, batches=2000)
    expected, total = micro.expected_return(of.table, of.policy), of.reward.sum((1, 2)) / 16
    assert abs(total.mean() - expected) < 4 * total.std() / np.sqrt(len(total))
    truth = micro.true_gradient(of.table, of.policy)
    for control, mean in zip(audit.controls(of), audit.expectations(truth)):
        along = (control - mean) @ truth / (truth @ truth)  # in units of |g|
        error = along.std() / np.sqrt(len(along))
        assert abs(along.mean()) < 4 * error < 0.2
        u, error = bias.squared_mean((control - mean) / np.linalg.norm(truth))
        assert abs(u) < 4 * error < 0.3**2, "a difference of three tenths of |g| in any direction would show"


def test_visits_of_sampled_episodes_are_those_of_enumeration() -> None:
    of = sampled(ASK, "llama", 4, batches=2000)
    share = np.bincount(of.node.ravel(), minlength=len(of.table.state_of)) / of.node[:, :, 0].size
    assert_allclose(share, micro.visits(of.table, of.policy), atol=0.015)


def test_a_group_shares_its_start_and_its_greedy_episode() -> None:
    of = sampled(ASK, "tabular", 4)
    by_group = of.greedy.reshape(len(of.greedy), -1, 4)
    assert (by_group == by_group[:, :, :1]).all()
    first = of.node[:, :, 0].reshape(len(of.greedy), -1, 4)
    assert (first == first[:, :, :1]).all()
    assert len(np.unique(by_group)) > 1


def test_a_batch_says_what_was_sampled() -> None:
    of = sampled(DELAYED, "llama", 4)
    batch = of.batch(3)
    assert batch.action.sum(1).tolist() == of.lengths[3].tolist()
    assert not batch.action[:, 0].any()
    assert_allclose(batch.reward.sum(1), of.reward[3].sum(1))
    assert torch.equal(batch.state_key, torch.from_numpy(of.table.state_of[of.node[3]] + 1))
    assert (batch.behaviour_logp[batch.action] < 0).all()
    # the value before an episode's first token is that of its start
    start = micro.values(of.table, of.policy)[0][of.node[3, :, 0], 0]
    assert batch.value is not None
    assert_allclose(batch.value[:, 1], start)


# The zoo --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tabular", "llama"])
@pytest.mark.parametrize(
    ("name", "fields", "factor"),
    [
        ("reinforce", {"baseline": "none", "reduce": "seq_sum"}, 1.0),
        ("rloo", {}, 1.0),
        ("dr_grpo", {"reduce": "seq_sum"}, 3 / 4),  # (G-1)/G
        ("reinforce", {"reduce": "seq_sum"}, 15 / 16),  # (B-1)/B
    ],
)
def test_known_estimators(kind: micro.PolicyKind, name: str, fields: dict[str, object], factor: float) -> None:
    of = sampled(BANDIT, kind, 4, batches=200)
    truth = micro.true_gradient(of.table, of.policy)
    found = directions(algos.make(name, **fields), of)
    with_controls = measure(found, truth, audit.controls(of), audit.expectations(truth))
    for m in (with_controls, measure(found, truth)):  # without control variates too, or they would prove themselves
        assert m.factor_low - 1e-6 <= factor <= m.factor_high + 1e-6
        assert m.residual_p > 0.01
    assert with_controls.factor_high - with_controls.factor_low < 0.1
    assert with_controls.residual_high < 0.1


@pytest.mark.parametrize("name", ["dr_grpo", "reinforce"])
def test_where_all_lengths_are_equal_the_published_normaliser_is_a_constant(name: str) -> None:
    m = measured(name, of := sampled(DELAYED, "tabular", 4))
    share = {"dr_grpo": 3 / 4, "reinforce": 15 / 16}[name]
    assert m.factor_low - 1e-6 <= share / of.table.turns <= m.factor_high + 1e-6
    assert m.residual_p > 0.01


def test_dividing_by_sampled_deviations_and_lengths_leaves_a_residual() -> None:
    m = measured("grpo", sampled(BANDIT, "llama", 4, batches=200))
    assert m.residual_p < 1e-4
    assert m.residual_low > 0.05
    # the deviation alone: starts of AskOrAct differ in their deviations, so that they are weighed against each other
    m = measured("grpo", sampled(ASK, "tabular", 4, batches=300), reduce="seq_sum")
    assert m.residual_p < 1e-4


def test_a_deviation_forgets_the_scale_of_rewards() -> None:
    one, ten = (measured("grpo", sampled(BANDIT, "tabular", 4, scale=s)).factor for s in (1.0, 10.0))
    assert ten == pytest.approx(one / 10, rel=1e-3)
    one, ten = (measured("rloo", sampled(BANDIT, "tabular", 4, scale=s)).factor for s in (1.0, 10.0))
    assert ten == pytest.approx(one)


def test_cloning_its_own_episodes_goes_nowhere() -> None:
    m = measured("bc", sampled(BANDIT, "tabular", 4, batches=200))
    assert abs(m.factor) < 0.05
    assert audit.verdict({"algorithm": "bc"}) == "no policy gradient"


def test_an_entropy_bonus_is_differentiated() -> None:
    of = sampled(BANDIT, "tabular", 4, batches=20)
    plain, bonus = (audit.ascent(algos.make("rloo", entropy=e), of, 0) for e in (0.0, 0.3))
    # by hand: seq_sum weighs each token 1/16; dH/dlogp_e = -p (logp + 1)
    expected, pi = np.zeros_like(of.policy.logp), of.policy
    for s in of.edge[0][of.edge[0] >= 0] // 4:
        expected[s] -= 0.3 / 16 * np.exp(pi.logp[s]) * (pi.logp[s] + 1)
    assert_allclose((bonus - plain).reshape(expected.shape), expected, atol=1e-12)


# The command ----------------------------------------------------------------------------------------------


def test_a_cell_goes_into_page_json_and_figure(tmp_path: Path) -> None:
    names = ("rloo", "grpo")
    cells = [Configuration(setting, kind, 4) for setting in SETTINGS for kind in audit.KINDS]
    rows = audit.judge([row for cell in cells for row in audit.run_cell(cell, names, 20, 16, 0)])
    again = audit.run_cell(cells[0], names, 20, 16, 0)
    assert [row["factor"] for row in again] == [row["factor"] for row in rows[: len(again)]]
    found = {
        **provenance.describe("a command"),
        "batches": 20, "batch_rows": 16, "sizes": [4], "seed": 0, "rows": rows,
    }  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{FIGURES[0]}\nstale figures\n{FIGURES[1]}\nafter\n")
    audit.write(page, found)
    text = page.read_text()
    assert text.startswith("# Before") and text.endswith("after\n") and "stale figures" not in text
    assert "| `rloo` |" in text
    assert json.loads((tmp_path / "page.json").read_text())["rows"] == rows
    assert "<svg" in (tmp_path / "page.svg").read_text()
    audit.show(rows, Console(quiet=True))
    page.write_text("no markers")
    with pytest.raises(ConfigError, match="expected one line"):
        audit.write(page, found)


def test_illegal_options_are_refused() -> None:
    for options in ({"rows": 20}, {"batches": 5}, {"jobs": 0}):
        with pytest.raises(ConfigError):
            Options(**options)
