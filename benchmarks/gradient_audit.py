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

Noise is kept out of these by ``benchmarks/bias.py``, with the help of **control variates**: four score-function
estimators are computed on each batch, without a baseline, leave-one-out, with the exact value, and the bare score,
whose expectations are theorems: g, g, g and 0.

**Verdicts**, over all hypotheses of the run (two an entry: residual 0, and factor 1), p values corrected by Holm at
5 %: ``biased`` if the residual is not 0; ``up to a factor`` if the factor is not 1; ``unbiased`` otherwise;
``undecided`` in place of the last two where the residual's interval reaches above ``FINE``. The intervals are 95 %
each, uncorrected: one of twenty misses its truth, and cells of one dialogue and policy, which share their random
numbers, miss together (Holm's correction holds under any dependence). No verdict proves that a bias is 0; the interval
says how large it may be.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import algos
from algos.base import Algorithm, Minibatch, Scores
from algos.maths.reductions import loss_weights
from benchmarks import micro_dialogues, provenance, stats
from benchmarks.bias import measure
from benchmarks.command import guarded
from benchmarks.gradient_page import show, write
from benchmarks.micro_dialogues import KINDS, SETTINGS, Dialogue, Floats, Policy, PolicyKind, Sampled, Setting
from benchmarks.pool import THREADS
from convgym.errors import ConfigError, UnknownNameError

SIZES = (2, 4, 8, 16)  # episodes of a group
PLAIN = "reinforce[no baseline, seq_sum]"
REFERENCES: dict[str, Algorithm] = {  # settings of the zoo whose expectation is known
    PLAIN: algos.make("reinforce", baseline="none", reduce="seq_sum"),
    "reinforce[seq_sum]": algos.make("reinforce", reduce="seq_sum"),
    "dr_grpo[seq_sum]": algos.make("dr_grpo", reduce="seq_sum"),
    "grpo[seq_sum]": algos.make("grpo", reduce="seq_sum"),
}
NO_GRADIENT = {"bc"}  # looks at no reward: on its own episodes its mean is 0, but for sampled lengths in 1/N
FINE = 0.15  # a residual's interval that stays below it is called fine enough for a verdict


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
    sys.exit(guarded(main))
