"""Every algorithm's expected update against the exact policy gradient: ``python -m benchmarks.gradient_audit``.

On micro dialogues that can be enumerated (``benchmarks/micro_dialogues.py``) the gradient g of the expected return is
known exactly. Every algorithm of ``algos.names()``, at its published setting, gives its update direction d (through
its own ``credit``, ``loss`` and ``loss_weights``: one optimiser step on the whole batch, on-policy) on the same
sampled batches. Reported, with D = E[d], for every dialogue, policy, group size and reward:

- **factor** c = <D, g> / <g, g>: how long the step is along the truth. A learning rate can absorb it.
- **residual** |D - c g| / |c g|: the bias that no learning rate can absorb; 0 is a policy gradient up to a factor.
- **distance** |D - g| / |g|: the bias with respect to the true gradient itself.
- **variance** tr Cov(d) / |g|^2.
- **cosine** of D to g, and the mean cosine of the d of single batches to g.
- **ESS**, the effective sample size relative to REINFORCE: with the signal-to-noise ratio c^2 |g|^2 / tr Cov(d), that
  of the algorithm over that of REINFORCE without a baseline (``seq_sum``) on the same batches. 3 says: REINFORCE
  needs three times as many episodes for a step along g that is as clean. It does not count bias.

**How noise is kept out.** The squared length of a mean of I noisy vectors is too large by tr Cov / I. Squared lengths
are therefore means of <r_i, r_j> over pairs of *different* batches, which are unbiased; their error has the linear and
the degenerate part of the U-statistic (Chen and Qin 2010, "A two-sample test for high-dimensional data"). The test of
"residual 0" splits the batches: one half gives a direction, a t-test along it is made in the other half, and the other
way round; the p value is twice the smaller one (Bonferroni).

**Control variates.** Four score-function estimators are computed by the audit itself on each batch: without a
baseline, leave-one-out, with the exact value, and the bare score. Their expectations are theorems: g, g, g and 0. What
they missed on a batch, times coefficients fitted on the *other* half of the batches, is subtracted from d, which moves
no expectation. An algorithm that equals one of them in every batch has an interval without width: an identity is no
estimate. Variance, cosine of a batch and ESS are those of the plain d.

**Verdicts**, over all hypotheses of the run (two an entry: residual 0, and factor 1), p values corrected by Holm at
5 %: ``biased`` if the residual is not 0; ``up to a factor`` if the factor is not 1; ``unbiased`` otherwise;
``undecided`` in place of the last two where the residual's interval reaches above ``FINE``. The intervals are 95 %
each, uncorrected: one of twenty misses its truth, and cells of one dialogue and policy, which share their random
numbers, miss together (Holm's correction holds under any dependence). No verdict proves that a bias is 0; the interval
says how large it may be.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scipy import stats as scipy_stats

import algos
from algos.base import Algorithm, Minibatch, Scores
from algos.maths.reductions import loss_weights
from benchmarks import micro_dialogues, provenance, stats
from benchmarks.micro_dialogues import SETTINGS, Dialogue, Floats, Policy, PolicyKind, Sampled, Setting
from benchmarks.pool import THREADS
from convgym.errors import ConfigError, UnknownNameError

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
SIZES = (2, 4, 8, 16)  # episodes of a group
KINDS: tuple[PolicyKind, ...] = ("tabular", "llama")
PLAIN = "reinforce[no baseline, seq_sum]"
REFERENCES: dict[str, Algorithm] = {  # settings of the zoo whose expectation is known
    PLAIN: algos.make("reinforce", baseline="none", reduce="seq_sum"),
    "reinforce[seq_sum]": algos.make("reinforce", reduce="seq_sum"),
    "dr_grpo[seq_sum]": algos.make("dr_grpo", reduce="seq_sum"),
    "grpo[seq_sum]": algos.make("grpo", reduce="seq_sum"),
}
NO_GRADIENT = {"bc"}  # looks at no reward: on its own episodes its mean is 0, but for sampled lengths in 1/N
FINE = 0.15  # a residual's interval that stays below it is called fine enough for a verdict
ROUNDING = 1e-6  # the tiny Llama computes its norms in float32


@dataclass(frozen=True)
class Configuration:
    """One cell of the audit: what is played, by whom, in which groups, for which reward."""

    setting: Setting
    kind: PolicyKind
    size: int
    scale: float = 1.0
    shift: float = 0.0

    @property
    def reward(self) -> str:
        """The reward in words."""
        return f"x{self.scale:g}" + (f" {self.shift:+g}" if self.shift else "")

    @property
    def name(self) -> str:
        """A name that no other cell has."""
        return f"{self.setting.name}/{self.kind}/G{self.size}/{self.reward}"


def configurations(sizes: Sequence[int]) -> list[Configuration]:
    """Every dialogue and policy with each group size, and with other rewards at the second group size."""
    out = []
    for setting in SETTINGS:
        for kind in KINDS:
            out += [Configuration(setting, kind, size) for size in sizes]
            middle = sizes[min(1, len(sizes) - 1)]
            out += [Configuration(setting, kind, middle, 10.0), Configuration(setting, kind, middle, 1.0, 1.0)]
    return out


# Directions -----------------------------------------------------------------------------------------------


def directions(algorithm: Algorithm, sampled: Sampled) -> Floats:
    """[I,P] the step that each batch asks for: the negative gradient of the learner's loss, by the policy's parameters.

    The critic is exact (the values of the algorithm's own discounts) and has no parameters in common with the policy.
    """
    critic = (getattr(algorithm, "gamma_turn", 1.0), getattr(algorithm, "gamma_token", 1.0))
    weights = np.stack([ascent(algorithm, sampled, i, critic) for i in range(len(sampled.edge))])
    return weights @ sampled.policy.jacobian.reshape(weights.shape[1], -1)


def ascent(algorithm: Algorithm, sampled: Sampled, i: int, critic: tuple[float, float] = (1.0, 1.0)) -> Floats:
    """[S E] minus the derivative of the loss of batch ``i`` by the log-probability of each edge."""
    batch = sampled.batch(i, critic)
    credit = algorithm.credit(dataclasses.replace(batch, old_logp=None))  # as in an iteration of a single step
    data = Minibatch.of(batch, credit)
    logp, entropy = batch.behaviour_logp.clone(), batch.old_entropy
    assert entropy is not None
    scores = Scores(logp.requires_grad_(), entropy.clone().requires_grad_(), batch.value)
    loss, _ = algorithm.loss(scores, data)
    total = (loss_weights(batch, credit.keep, algorithm) * loss)[batch.action].sum()
    total = total + 0.0 * (scores.logp.sum() + scores.entropy.sum())
    by_logp, by_entropy = torch.autograd.grad(total, (scores.logp, scores.entropy))
    found = sampled.on_edges(i, -by_logp.numpy())
    return found if not by_entropy.any() else found - _through_entropy(sampled, i, by_entropy.numpy())


def _through_entropy(sampled: Sampled, i: int, by_entropy: Floats) -> Floats:
    """[S E] of a bonus: the entropy after a prefix is -sum p log p over its edges."""
    pi, how = sampled.policy, sampled.policy.spelling
    at, prefixes = sampled.place[i] >= 0, len(how.prefixes)
    state, prefix = sampled.table.state_of[sampled.place[i][at] // prefixes], sampled.place[i][at] % prefixes
    weight = np.zeros((len(pi.logp), prefixes))
    np.add.at(weight, (state, prefix), by_entropy[at])
    return (-weight[:, how.prefix_of] * np.exp(pi.logp) * (pi.logp + 1)).ravel()


def controls(sampled: Sampled) -> Floats:
    """[4,I,P] estimators with expectations g, g, g and 0, made without the zoo; see :func:`expectations`."""
    total = sampled.reward.sum(2)  # [I,B]
    same = (sampled.group[:, None] == sampled.group[None, :]) & ~np.eye(len(sampled.group), dtype=bool)
    others = total @ same / same.sum(1)
    to_go = sampled.reward[:, :, ::-1].cumsum(2)[:, :, ::-1]  # [I,B,K]
    value = micro_dialogues.values(sampled.table, sampled.policy)[0]
    jacobian = sampled.policy.jacobian.reshape(sampled.policy.logp.size, -1)
    rows: list[list[Floats]] = [[], [], [], []]
    for i, turn in enumerate(sampled.turn):
        after = np.take_along_axis(to_go[i], np.maximum(turn, 0), 1) - sampled.at_places(value, i).numpy()
        one = np.ones_like(after)
        for out, weight in zip(rows, (one * total[i, :, None], one * (total - others)[i, :, None], after, one)):
            out.append(sampled.on_edges(i, weight / len(turn)))
    return np.stack([np.stack(weights) @ jacobian for weights in rows])


def expectations(truth: Floats) -> Floats:
    """[4,P] what :func:`controls` are on average."""
    return np.stack([truth, truth, truth, np.zeros_like(truth)])


# Measures -------------------------------------------------------------------------------------------------


class Measure(NamedTuple):
    """What is said of an algorithm in a cell. Intervals are 95 %; NaN where there is nothing to say."""

    factor: float
    factor_low: float
    factor_high: float
    factor_p: float  # of "the factor is 1"
    residual: float
    residual_low: float
    residual_high: float
    residual_p: float  # of "the residual is 0"
    distance: float
    variance: float
    cosine: float
    cosine_batch: float
    cosine_batch_low: float
    cosine_batch_high: float
    ess: float
    plain_factor: float  # without control variates
    plain_factor_low: float
    plain_factor_high: float


def measure(found: Floats, truth: Floats, known: Floats | None = None, mean: Floats | None = None) -> Measure:
    """Compares directions [I,P] with the true gradient [P].

    Args:
        found: Directions on independent batches.
        truth: The true gradient.
        known: [C,I,P] control variates on the same batches.
        mean: [C,P] their expectations.
    """
    square = float(truth @ truth)
    unit = float(np.sqrt(square))
    halves = adjusted(found, known, mean)
    better = np.concatenate([half for _, half in halves])
    along = better @ truth / square  # [I]
    c = _t(along)
    size = abs(c.estimate) if c.low > 0 else float("nan")  # without a step along g nothing can be relative to it

    def across(x: Floats) -> Floats:
        """The part orthogonal to g, in units of |g|."""
        return (x - (x @ truth / square)[:, None] * truth) / unit

    u, error = squared_mean(across(better))
    residual, low, high = (float(np.sqrt(max(x, 0.0))) for x in (u, u - 1.96 * error, u + 1.96 * error))
    p = split_test([(across(one), across(other)) for one, other in halves])
    if np.linalg.norm(across(better).mean(0)) < ROUNDING:
        residual, low, high, p = 0.0, 0.0, 0.0, 1.0
    noise = float(found.var(0, ddof=1).sum()) / square
    gap = max((c.estimate - 1) ** 2 - float(along.var(ddof=1)) / len(along), 0.0)
    norms = np.linalg.norm(found, axis=1) * unit
    cosines = np.divide(found @ truth, norms, out=np.zeros(len(found)), where=norms > 0)
    per_batch, raw = _t(cosines), _t(found @ truth / square)
    return Measure(
        *c, _t_test(along, 1.0), residual / size, low / size, high / size, p,
        distance=float(np.sqrt(gap + residual**2)),
        variance=noise,
        cosine=1 / float(np.hypot(1.0, residual / size)),
        cosine_batch=per_batch.estimate, cosine_batch_low=per_batch.low, cosine_batch_high=per_batch.high,
        ess=size**2 / noise if noise > 0 else float("nan"),  # over that of REINFORCE once that is known
        plain_factor=raw.estimate, plain_factor_low=raw.low, plain_factor_high=raw.high,
    )  # fmt: skip


def adjusted(found: Floats, known: Floats | None, mean: Floats | None) -> list[tuple[Floats, Floats]]:
    """Directions less what the control variates missed, for each half of the batches with the other one's coefficients.

    Returns:
        Twice (the half that the coefficients were fitted on, the other half), [I/2,P] each: both with coefficients
        that know nothing of the second one. The second ones together are all batches.
    """
    halves, odd = [], np.arange(len(found)) % 2 == 1
    for fit in (odd, ~odd):
        if known is None or mean is None:
            halves.append((found[fit], found[~fit]))
            continue
        missed = known - mean[:, None]
        x = (known[:, fit] - known[:, fit].mean(1, keepdims=True)).reshape(len(known), -1)
        y = (found[fit] - found[fit].mean(0)).ravel()
        scale = np.linalg.norm(x, axis=1) + 1e-300
        gram = x @ x.T / np.outer(scale, scale)
        coefficients = np.linalg.lstsq(gram, x @ y / scale, rcond=1e-10)[0] / scale  # controls may be collinear
        better = found - np.tensordot(coefficients, missed, 1)
        halves.append((better[fit], better[~fit]))
    return halves


def squared_mean(x: Floats) -> tuple[float, float]:
    """Unbiased |E x|^2 of vectors [I,P], and its standard error: mean of <x_i, x_j> over i != j.

    Var = 4 Var<x, m> / I + 2 tr Cov^2 / I^2 with m = E x, the linear and the degenerate part; both are estimated from
    inner products of different batches.
    """
    n, gram = len(x), x @ x.T
    off = gram.sum(1) - np.diag(gram)
    u = float(off.sum()) / (n * (n - 1))
    centred = x - x.mean(0)
    inner = centred @ centred.T
    trace = float((inner**2).sum() - (np.diag(inner) ** 2).sum()) / (n * (n - 1))
    # each off / (n - 1) has the noise of a mean of n - 1 others: the degenerate part is in it twice
    linear = 4 * float((off / (n - 1)).var(ddof=1)) / n - 4 * trace / n**2
    return u, float(np.sqrt(max(linear, 0.0) + 2 * trace / n**2))


def split_test(halves: Sequence[tuple[Floats, Floats]]) -> float:
    """P value of "E x = 0": a direction from one half, a one-sided t-test along it in the other, and both ways."""
    ps = []
    for one, other in halves:
        direction = one.mean(0)
        ps.append(_t_test(other @ direction / max(float(np.linalg.norm(direction)), 1e-300), 0.0, above=True))
    return min(1.0, 2 * min(ps))


def _t(x: Floats) -> stats.Interval:
    return stats.t_interval([x])


def _t_test(x: Floats, against: float, above: bool = False) -> float:
    """P value of "the mean is ``against``"; numbers that are all equal but for rounding are or are not."""
    gap, spread = float(x.mean()) - against, float(x.std(ddof=1))
    if spread < ROUNDING:
        return 1.0 if abs(gap) < ROUNDING or (above and gap < 0) else 0.0
    t = gap / (spread / np.sqrt(len(x)))
    tail = float(scipy_stats.t.sf(t if above else abs(t), len(x) - 1))
    return tail if above else 2 * tail


# The audit ------------------------------------------------------------------------------------------------


def zoo(names: Sequence[str] = ()) -> dict[str, Algorithm]:
    """The references and the algorithms, each at its published setting."""
    unknown = sorted(set(names) - set(algos.names()))
    if unknown:
        raise UnknownNameError.of("algorithm", unknown[0], algos.names())
    return REFERENCES | {name: algos.make(name) for name in names or algos.names()}


def run_cell(cell: Configuration, names: Sequence[str], batches: int, rows: int, seed: int) -> list[dict[str, Any]]:
    """Audits every algorithm in one cell; JSON-plain rows."""
    torch.set_num_threads(1)
    table, pi = _cell(cell, seed)
    generator = micro_dialogues.named_generator(seed, f"batches/{cell.setting.name}/{cell.kind}")
    sampled = micro_dialogues.sample(
        table, pi, generator, batches=batches, groups=rows // cell.size, size=cell.size
    )
    truth = micro_dialogues.true_gradient(table, pi)
    known, mean = controls(sampled), expectations(truth)
    measures = {name: measure(directions(a, sampled), truth, known, mean) for name, a in zoo(names).items()}
    unit = measures[PLAIN].ess
    same_length = len(np.unique(pi.spelling.lengths)) == 1
    return [
        {
            "cell": cell.name, "dialogue": cell.setting.name, "policy": cell.kind, "size": cell.size,
            "reward": cell.reward, "rows": rows, "algorithm": name,
            "length": float(sampled.lengths.mean()), "same_length": same_length,
            **{k: v if np.isfinite(v) else None for k, v in m._replace(ess=m.ess / unit)._asdict().items()},
        }
        for name, m in measures.items()
    ]  # fmt: skip


def _cell(cell: Configuration, seed: int) -> tuple[Dialogue, Policy]:
    policy = micro_dialogues.policy(cell.setting, cell.kind, seed)
    return micro_dialogues.dialogue(cell.setting, cell.scale, cell.shift), policy


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds corrected p values and the verdict to the rows of a whole run."""
    tested = [row for row in rows if row["algorithm"] not in NO_GRADIENT]
    p = stats.holm([row[key] for row in tested for key in ("residual_p", "factor_p")]).reshape(-1, 2)
    corrected = {id(row): (float(a), float(b)) for row, (a, b) in zip(tested, p)}
    out = []
    for row in rows:
        residual, factor = corrected.get(id(row), (None, None))
        made = {**row, "residual_p_holm": residual, "factor_p_holm": factor}
        label, value = theory(made) or (None, None)
        out.append({**made, "verdict": verdict(made), "theory": label, "theory_factor": value})
    return out


def verdict(row: Mapping[str, Any]) -> str:
    """The verdict on a row with corrected p values; see the top of this file."""
    if row["algorithm"] in NO_GRADIENT:
        return "no policy gradient"
    if row["residual_p_holm"] < 0.05:
        return "biased"
    if row["residual_high"] is None or row["residual_high"] > FINE:
        return "undecided"
    return "up to a factor" if row["factor_p_holm"] < 0.05 else "unbiased"


def theory(row: Mapping[str, Any]) -> tuple[str, float] | None:
    """The factor that is known from theory, in words and as a number, or ``None`` if there is none.

    Centring by the own group of G gives (G-1)/G, by the own batch of B (B-1)/B. Where all rows have L tokens, weights
    per token and per longest row give 1/L; where lengths are sampled, theory says nothing about these.
    """
    of_group, of_batch = 1 - 1 / row["size"], 1 - 1 / row["rows"]
    known = {
        PLAIN: ("1", 1.0),
        "rloo": ("1", 1.0),
        "dr_grpo[seq_sum]": ("(G-1)/G", of_group),
        "reinforce[seq_sum]": ("(B-1)/B", of_batch),
    }
    if row["same_length"]:
        known |= {
            "dr_grpo": ("(G-1)/(G L)", of_group / row["length"]),
            "reinforce": ("(B-1)/(B L)", of_batch / row["length"]),
            "remax": ("1/L", 1 / row["length"]),
        }
    return known.get(row["algorithm"])


# Reports --------------------------------------------------------------------------------------------------


def render(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    machine, rows, versions = found["machine"], found["rows"], found["versions"]
    changed = ", changed since" if found["commit"].get("changed") else ""
    middle = found["sizes"][min(1, len(found["sizes"]) - 1)]
    hypotheses = sum(row["residual_p_holm"] is not None for row in rows) * 2
    parts = [
        f"`{found['command']}`: {machine['processor']}, {machine['cores']} cores; "
        f"Python {versions['python']}, torch {versions['torch']}; "
        f"commit {found['commit'].get('id', 'none')[:10]}{changed}; "
        f"{found['started']}; {found['batches']} batches of {found['batch_rows']} episodes in each of "
        f"{len({row['cell'] for row in rows})} cells, seed {found['seed']}. Verdicts are corrected (Holm, 5 %) for "
        f"{hypotheses} hypotheses; intervals are 95 % each.",
        "![Residuals of all algorithms](gradient-audit.svg)",
        "### What theory says",
        "Cells in which the residual was not found to differ from 0, and in which the interval of the factor holds "
        "the known value. The intervals are 95 % each, so that one of twenty misses; cells of one dialogue and policy "
        "share their random numbers, so that misses come together. An estimator that is a multiple of a control "
        "variate in every batch agrees exactly: for it, only the last column is an estimate.",
        _checks(rows),
        "### Verdicts",
        "Cells of the run with each verdict, with the tiny Llama (messages of sampled lengths) and with the table "
        "(one token a message):",
        _verdicts(rows),
        *(
            part
            for kind in KINDS
            for setting in SETTINGS
            for part in (
                f"### {setting.name}, {kind}, groups of {middle}",
                _cell_table([r for r in rows if _is(r, setting.name, kind, middle, "x1")]),
            )
        ),
        "### Group sizes",
        "Factor and residual with the tiny Llama in AskOrAct:",
        _across(rows, [(f"G = {g}", ("AskOrAct", "llama", g, "x1")) for g in found["sizes"]]),
        "### Rewards",
        f"The same with groups of {middle}: the reward as it is, ten times as large, and with 1 added to each return. "
        "The factor refers to the true gradient of that reward.",
        _across(rows, [(r, ("AskOrAct", "llama", middle, r)) for r in ("x1", "x10", "x1 +1")]),
    ]
    return "\n\n".join(parts)


def _is(row: Mapping[str, Any], *cell: Any) -> bool:
    return (row["dialogue"], row["policy"], row["size"], row["reward"]) == cell


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["algorithm"] for row in rows))


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for name in _names(rows):
        line = [f"`{name}`"]
        for kind in reversed(KINDS):
            said = [r["verdict"] for r in rows if r["algorithm"] == name and r["policy"] == kind]
            counts = {v: said.count(v) for v in dict.fromkeys(said)}
            line.append(", ".join(f"{v} {n}" for v, n in counts.items()))
        lines.append(line)
    return _markdown(("algorithm", "tiny Llama", "table"), lines)


def _checks(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    known = [row for row in rows if row["theory"] is not None]
    for name, label in dict.fromkeys((row["algorithm"], row["theory"]) for row in known):
        cells = [row for row in known if (row["algorithm"], row["theory"]) == (name, label)]
        straight, plain = sum(row["residual_p_holm"] >= 0.05 for row in cells), sum(_holds(r, "plain_") for r in cells)
        held, n = sum(_holds(row, "") for row in cells), len(cells)
        lines.append((f"`{name}`", label, f"{straight} of {n}", f"{held} of {n}", f"{plain} of {n}"))
    return _markdown(("algorithm", "factor", "residual 0", "factor in interval", "without control variates"), lines)


def _holds(row: Mapping[str, Any], which: str) -> bool:
    low, high = row[f"{which}factor_low"], row[f"{which}factor_high"]
    return bool(low - ROUNDING <= row["theory_factor"] <= high + ROUNDING)


def _cell_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("algorithm", "verdict", "factor c", "residual", "distance", "variance", "cosine", "of a batch", "ESS")
    lines = [
        (
            f"`{r['algorithm']}`", r["verdict"] + (f", {r['theory']}" if r["theory"] not in (None, "1") else ""),
            _interval(r, "factor"), _interval(r, "residual"), _number(r["distance"]), _number(r["variance"]),
            _number(r["cosine"]), _number(r["cosine_batch"]), _number(r["ess"]),
        )
        for r in rows
    ]  # fmt: skip
    return _markdown(header, lines)


def _across(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, tuple[Any, ...]]]) -> str:
    lines = []
    for name in _names(rows):
        line = [f"`{name}`"]
        for _, cell in columns:
            found = [r for r in rows if r["algorithm"] == name and _is(r, *cell)]
            line.append(f"{_number(found[0]['factor'])}; {_interval(found[0], 'residual')}" if found else "")
        lines.append(line)
    return _markdown(("algorithm", *(label for label, _ in columns)), lines)


def _number(x: float | None) -> str:
    return "-" if x is None else f"{0.0 if abs(x) < ROUNDING else x:.3g}"


def _interval(row: Mapping[str, Any], key: str) -> str:
    if row[key] is None:
        return "-"
    return f"{_number(row[key])} [{_number(row[f'{key}_low'])}, {_number(row[f'{key}_high'])}]"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the cells with the tiny Llama."""
    for cell in dict.fromkeys(row["cell"] for row in rows if row["policy"] == "llama" and row["reward"] == "x1"):
        table = Table("algorithm", "verdict", "factor c", "residual", "cosine", "ESS", title=cell)
        for row in (r for r in rows if r["cell"] == cell):
            table.add_row(
                row["algorithm"].replace("[", "\\["), row["verdict"], _interval(row, "factor").replace("[", "\\["),
                _interval(row, "residual").replace("[", "\\["), _number(row["cosine"]), _number(row["ess"]),
            )  # fmt: skip
        console.print(table)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Residuals with their intervals, one panel a dialogue, one line an algorithm, one colour a policy."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = found["rows"]
    names, middle = _names(rows), found["sizes"][min(1, len(found["sizes"]) - 1)]
    style = {"svg.hashsalt": "convgym", "svg.fonttype": "none", "font.size": 8.0, "text.parse_math": False}
    colours = {"tabular": "#1b7f79", "llama": "#c4572e"}
    with rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.0, 1.2 + 0.19 * len(names)), layout="constrained")
        for axes, setting in zip(figure.subplots(1, len(SETTINGS), sharey=True), SETTINGS):
            for kind, offset in zip(KINDS, (-0.16, 0.16)):
                for y, name in enumerate(names):
                    cell = [r for r in rows if r["algorithm"] == name and _is(r, setting.name, kind, middle, "x1")]
                    for r in (r for r in cell if r["residual"] is not None):
                        bounds = [r["residual_low"], min(r["residual_high"], 1.5)]
                        axes.plot(bounds, [y + offset] * 2, color=colours[kind], linewidth=1)
                        axes.plot(min(r["residual"], 1.5), y + offset, "o", color=colours[kind], markersize=3)
            axes.set(title=setting.name, xlabel="residual |D - c g| / |c g|", xlim=(-0.02, 1.55))
            axes.grid(axis="x", alpha=0.25)
            axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        for kind, label in zip(KINDS, ("table", "tiny Llama")):
            axes.plot([], [], "o-", color=colours[kind], markersize=3, label=label)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


# The command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Compare every algorithm's expected update with the exact policy gradient on micro dialogues."""

    write: Path | None = None
    """Page whose figures are replaced; JSON and figure go beside it."""
    quick: bool = False
    """Few batches and two group sizes: to see that it works."""
    algorithms: tuple[str, ...] = ()
    """Only these (default: all)."""
    batches: int | None = None
    """Batches in each cell (default: 200, or 40 if quick)."""
    rows: int = 16
    """Episodes of a batch, a multiple of 16."""
    seed: int = 0
    """Seed of policies and batches."""
    jobs: int = 2
    """Cells at a time, one core each."""

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        if self.rows < 16 or self.rows % 16:
            raise ConfigError(f"--rows: expected a multiple of 16, got {self.rows}.")
        if self.batches is not None and self.batches < 20:
            raise ConfigError(f"--batches: expected at least 20 (the halves need t-tests), got {self.batches}.")
        if self.jobs < 1:
            raise ConfigError(f"--jobs: expected at least 1, got {self.jobs}.")


def audit(options: Options, console: Console, command: str) -> dict[str, Any]:
    """Runs the cells in processes of one thread each; JSON-plain."""
    sizes = (4, 16) if options.quick else SIZES
    batches = options.batches or (40 if options.quick else 200)
    names = tuple(name for name in zoo(options.algorithms) if name not in REFERENCES)
    cells = configurations(sizes)
    here = provenance.describe(command)
    rows: dict[str, list[dict[str, Any]]] = {}
    for cell, made in _in_processes(cells, options.jobs, console, (names, batches, options.rows, options.seed)):
        rows[cell.name] = made
    judged = judge([row for cell in cells for row in rows[cell.name]])
    return {
        **here, "batches": batches, "batch_rows": options.rows, "sizes": list(sizes), "seed": options.seed,
        "rows": judged,
    }  # fmt: skip


def _in_processes(
    cells: Sequence[Configuration], jobs: int, console: Console, arguments: tuple[Any, ...]
) -> Iterator[tuple[Configuration, list[dict[str, Any]]]]:
    count = TextColumn("{task.completed}/{task.total} cells")
    columns = [count, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    os.environ.update(dict.fromkeys(THREADS, "1"))  # inherited; several BLAS threads a cell cost five times the CPU
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with Progress(*columns, console=console) as progress, ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        bar = progress.add_task("auditing", total=len(cells))
        waiting = {pool.submit(run_cell, cell, *arguments): cell for cell in cells}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
            progress.advance(bar)


def write(page: Path, found: Mapping[str, Any]) -> None:
    """Puts the figures between the markers of a page, JSON and SVG beside it.

    Raises:
        ConfigError: if the page has no markers.
    """
    text = page.read_text("utf-8") if page.is_file() else f"# Gradient audit\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ConfigError(f"{page}: expected the markers {BEGIN} and {END}, found none; add them.")
    block = f"{BEGIN}\n{render(found)}\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, text, flags=re.DOTALL), "utf-8")
    page.with_suffix(".json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    draw(found, page.with_suffix(".svg"))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=given, prog="python -m benchmarks.gradient_audit")
    console = Console()
    found = audit(options, console, shlex.join(["python", "-m", "benchmarks.gradient_audit", *given]))
    show(found["rows"], console)
    if options.write is not None:
        write(options.write, found)


if __name__ == "__main__":
    main()
