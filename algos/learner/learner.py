"""The learner: from episodes to an optimiser step, for any algorithm.

It never asks which algorithm it runs. One set of token weights is computed over the whole optimiser batch,
and each micro-batch adds ``(w * loss)[action].sum()``: accumulation, padding, row order, length buckets and
the number of processes change nothing but rounding.

Axes: B rows of the iteration, b rows of a micro-batch, T tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from algos.base import Algorithm, Batch, Minibatch, Scores, filled
from algos.learner.checkpoint import Checkpoint, fill_tensors, tensors_of
from algos.learner.faults import NanGuard, sound
from algos.learner.flops import peak, size_of, training_flops, utilisation
from algos.learner.optimiser import Schedule, learning_rate_factor, parameter_groups
from algos.learner.prefixes import tree_buckets
from algos.learner.scores import linear_head, recomputing, score
from algos.learner.trunk import on_tree
from algos.maths.advantages import clean_rewards, group_report
from algos.maths.losses import truncated_importance
from algos.maths.reductions import loss_weights
from algos.policies.critic import Critic, Trunk, decoder, new_critic
from algos.policies.load import Policy
from algos.policies.reference import frozen_copy
from algos.rollout.episodes import TokenEpisode, buckets, collate
from algos.rollout.memory import is_out_of_memory
from convgym.errors import CapacityError, CheckpointError, ConfigError, EnvError, ModelError
from convgym.seeding import derive_seed

Precision = Literal["fp32", "bf16", "fp16"]
MONITORED_ROWS = 8  # rows scored again after an update, to see how far the policy has moved


@dataclass(frozen=True)
class LearnerConfig:
    """How gradients become steps.

    Attributes:
        learning_rate: Peak learning rate of the policy.
        critic_learning_rate: Peak learning rate of the critic's own parameters.
        updates: Planned number of updates; the schedule's horizon.
        schedule: What the learning rate does after the warm-up.
        warmup: Share of the updates that warm up.
        weight_decay: Of matrices; norms, biases and embeddings are never decayed.
        max_grad_norm: Gradients are clipped to this norm, the policy's and the critic's each on its own.
        kl_limit: After an update that moved the policy further than this (nats a token), the learning rate
            is halved; it recovers by a tenth an update. ``None`` leaves it alone.
        temperature: Of the sampler; divides the logits here too.
        micro_tokens: Most tokens in a micro-batch; what its rows have in common at their beginning counts once.
        precision: Of the matrix products; the weights are always float32.
        gradient_checkpointing: Recompute activations in the backward pass: slower, less memory.
        critic_warmup: Updates at the start in which only the critic learns (arXiv 2503.01491); the policy stays.
        mismatch_limit: Once sampler and learner disagree by more than this (mean absolute difference of the
            log-probabilities, nats a token), each token's loss is weighted by their truncated ratio.
        engine: What samples. The log-probabilities of any but the built-in engine are never taken for the learner's
            own, and the ratio weights every token from the first update on, whatever ``mismatch_limit``.
        importance_cap: Upper bound of that ratio (arXiv 2506.13585 and Yao et al. 2025, "Your efficient RL framework
            secretly brings you off-policy training").
        critic: Where the critic reads its hidden states; see ``algos.policies.critic.new_critic``.
        device: ``"auto"`` takes an accelerator if there is one.
        seed: Root of the learner's random streams.
    """

    learning_rate: float = 5e-4
    critic_learning_rate: float = 1e-3
    updates: int = 20
    schedule: Schedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    kl_limit: float | None = None
    temperature: float = 1.0
    micro_tokens: int = 2048
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    critic_warmup: int = 0
    mismatch_limit: float = 0.02
    engine: Literal["builtin", "vllm"] = "builtin"
    importance_cap: float = 2.0
    critic: Trunk = "shared"
    device: Literal["auto", "cpu"] = "auto"
    seed: int = 0


class Tally:
    """Means of per-token metrics over all micro-batches, not over the last one."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[float, int]] = {}  # sum, number of tokens

    def add(self, metrics: Mapping[str, Tensor], at: Tensor) -> None:
        """Adds metrics ``[b,T]`` where ``at`` ``[b,T]`` is true."""
        tokens = int(at.sum())
        for name, value in metrics.items():
            self._add(name, float(value.detach()[at].double().sum()), tokens)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Metric -> mean over the tokens of all processes; an empty tally has none."""
        if accelerator.num_processes > 1:
            parts, self._totals = gather_object([self._totals]), {}
            for part in parts:
                for name, (total, tokens) in part.items():
                    self._add(name, total, tokens)
        return {name: total / max(1, tokens) for name, (total, tokens) in self._totals.items()}

    def _add(self, name: str, total: float, tokens: int) -> None:
        before = self._totals.get(name, (0.0, 0))
        self._totals[name] = before[0] + total, before[1] + tokens


class Learner:
    """Trains a policy in place.

    Args:
        policy: Its model is moved to the device and trained in place; it stays in evaluation mode.
        algorithm: What to optimise.
        config: How.

    Attributes:
        step: Updates done.
        model: The policy's model.
        critic: The critic, if the algorithm needs one.
        reference: The policy as it was at construction, if the algorithm needs it.
        accelerator: Owns device, precision and processes.
        aside: The conversations that the last update could not learn from; see ``algos.learner.faults.sound``.

    Raises:
        ConfigError: If the process already runs another precision or device.
        ModelError: If the model's logits are not its head on its hidden states.
    """

    def __init__(self, policy: Policy, algorithm: Algorithm, config: LearnerConfig) -> None:
        self.policy, self.algorithm, self.config = policy, algorithm, config
        self.accelerator = _accelerator(config)
        self.model = policy.model.to(self.accelerator.device).eval()
        if not linear_head(self.model):
            raise ModelError(
                f"Expected the logits of {policy.name!r} to be its head on its last hidden states, but "
                f"{type(self.model).__name__} changes them in between. Choose one without scaling or capping."
            )
        seed = derive_seed(config.seed, "critic")
        self.critic = (
            new_critic(self.model, trunk=config.critic, seed=seed) if "critic" in algorithm.needs else None
        )
        self.reference = frozen_copy(self.model) if "reference" in algorithm.needs else None
        self.modules: dict[str, nn.Module] = {"model": self.model}
        if self.critic is not None:
            self.modules["critic"] = self.critic
        groups = parameter_groups(self.modules, config.weight_decay)
        self.parameters = {name: p for g in groups for name, p in zip(g["names"], g["params"])}
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)  # what no row reaches has gradient 0, not none
        self.adam = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.optimiser = self.accelerator.prepare_optimizer(self.adam)
        self.step = 0
        self.aside: list[TokenEpisode] = []
        self.guard = NanGuard()
        self.damping = 1.0  # factor on the learning rate, moved by `kl_limit`
        self.micro_tokens = config.micro_tokens  # halved when memory runs out
        self.statistics: dict[str, float] = {}  # the algorithm's running baselines
        self.mismatch = 0.0  # of the last update; above `mismatch_limit` the next one is corrected

    def update(
        self, episodes: Sequence[TokenEpisode], greedy_returns: Mapping[int, float] | None = None
    ) -> dict[str, float]:
        """One update: credit, then ``epochs x minibatches`` optimiser steps.

        Args:
            episodes: What the present policy sampled; with several processes, all of them in the same order
                in each.
            greedy_returns: Group -> return of its greedy episode, for algorithms that need it. A group without
                one gets NaN.

        Returns:
            Metrics. The algorithm's own are means over the action tokens that were trained on; ``kl`` (from
            the policy before the update to the one after it, k3, nats a token) and ``entropy`` are taken
            after the update on a few rows of the batch, so that they mean the same for every algorithm.

        Raises:
            DivergedError: After three optimiser steps in a row without a finite gradient.
            CapacityError: If not even one row fits into memory.
            EnvError: If no episode has finite rewards and a sampled token.
        """
        start = time.perf_counter()
        kept, self.aside = sound(episodes)
        if not kept:
            first = f" The first has rewards {self.aside[0].rewards.tolist()}." if self.aside else ""
            raise EnvError(
                "Expected conversations with finite rewards and log-probabilities and at least one sampled token; "
                f"none of {len(episodes)} is of that kind.{first} Look at the reward."
            )
        batch = self._observe(collate(kept, self.policy.pad_id), greedy_returns)
        observed = time.perf_counter()
        credit = self.algorithm.credit(batch)
        self.statistics = dict(credit.state)
        keep = credit.keep if credit.keep is not None else torch.ones_like(batch.terminated)
        data, rate = Minibatch.of(batch, credit), self._set_learning_rate()
        credited = time.perf_counter()

        tally = Tally()
        losses, norms = [], []
        for index, rows in enumerate(self._minibatches(batch.size)):
            loss, norm = self._optimise(data.rows(rows), keep[rows], tally, first=index == 0)
            losses.append(loss)
            norms.append(norm)
        if self._warms_up():
            self._forget_moments()
        self.step += 1
        optimised = time.perf_counter()

        metrics = (
            {"clip_share": 0.0} | tally.means(self.accelerator) | dict(credit.metrics) | self._drift(batch)
        )
        self._damp(metrics["kl"])
        self.mismatch = metrics.get("mismatch", self.mismatch)
        ended = time.perf_counter()
        return metrics | {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            "lr": rate,
            **_groups(batch, episodes),
            "kept_rows": float(keep.float().mean()),
            "set_aside": float(len(self.aside)),
            "wordless": float(sum(not episode.action.any() for episode in self.aside)),
            "skipped_steps": float(self.guard.skipped),
            **utilisation(self._flops(data, keep), ended - start, self._peak()),
            "seconds_observe": observed - start,
            "seconds_credit": credited - observed,
            "seconds_optimise": optimised - credited,
            "seconds_monitor": ended - optimised,
        }

    # -- the phases of an update -----------------------------------------------------------------------------

    def _observe(self, batch: Batch, greedy_returns: Mapping[int, float] | None) -> Batch:
        """Fills in what the algorithm needs to know about the batch under the policy before the update."""
        found: dict[str, Any] = {"state": self.statistics}
        several_steps = self.algorithm.epochs * self.algorithm.minibatches > 1
        unsure = "entropy" in self.algorithm.needs
        # The sampler's float32 log-probabilities are the learner's own, if this very policy sampled and they agree.
        same = self.config.precision == "fp32" and bool((batch.version == self.step).all())
        trusted = same and not self._corrects()
        if several_steps and trusted:
            found["old_logp"] = batch.behaviour_logp
        if self.critic is not None or unsure or (several_steps and not trusted):
            # One column more, and V "before" the token after the end is what bootstraps a truncated row.
            tokens, wanted = F.pad(batch.tokens, (0, 1)), F.pad(batch.action, (0, 1))
            end = _lengths(batch.action)[:, None]  # [B,1]
            scores = self._scores(self.model, tokens, wanted.scatter(1, end, True), self.critic)
            if several_steps and not trusted:
                found["old_logp"] = scores.logp[:, :-1] * batch.action
            if unsure:
                found["old_entropy"] = scores.entropy[:, :-1] * batch.action
            if scores.value is not None:
                found["value"] = scores.value[:, :-1] * batch.action
                found["bootstrap"] = scores.value.gather(1, end).squeeze(1)
        if self.reference is not None:
            found["ref_logp"] = self._scores(self.reference, batch.tokens, batch.action).logp
        if "greedy" in self.algorithm.needs:
            if greedy_returns is None:
                raise ConfigError("The algorithm needs greedy episodes: pass greedy_returns to update.")
            returns = [greedy_returns.get(int(g), math.nan) for g in batch.group]
            found["greedy_return"] = torch.tensor(returns, dtype=torch.float32)
        return batch.with_columns(**found)

    def _optimise(self, part: Minibatch, keep: Tensor, tally: Tally, *, first: bool) -> tuple[float, float]:
        """One optimiser step over the rows of ``part``; returns its loss and the policy's gradient norm."""
        weights = loss_weights(part, keep, self.algorithm)
        live = _live(part, weights, self.algorithm)
        if not len(live):  # nothing to learn; Adam's momentum would move the weights all the same
            return 0.0, 0.0
        while True:
            try:
                loss = self._accumulate(part, weights, live, tally, first=first)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
                self._shrink(error)
        self.accelerator.unscale_gradients()
        norm = {owner: self._clip(owner) for owner in self.modules}
        # Under fp16 an overflowing gradient is the scaler's business: it skips the step and lowers its scale.
        overflow = self.accelerator.scaler is not None
        if self.guard.admit(loss, 0.0 if overflow else sum(norm.values())):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        return loss, norm["model"]

    def _accumulate(
        self, part: Minibatch, weights: Tensor, live: Tensor, tally: Tally, *, first: bool
    ) -> float:
        """Adds up the gradient of the live rows, micro-batch by micro-batch; returns the loss."""
        self.optimiser.zero_grad(set_to_none=False)
        device, processes = self.accelerator.device, self.accelerator.num_processes
        total = torch.zeros((), dtype=torch.float64, device=device)
        measured = []
        micro_batches = self._micro_batches(part.tokens[live], part.action[live])
        own = None if self.critic is None else self.critic.trunk
        recompute = self.config.gradient_checkpointing
        with recomputing(self.model, recompute), recomputing(own, recompute and own is not None):
            for index in micro_batches[self.accelerator.process_index :: processes]:
                rows = live[torch.from_numpy(index)]
                micro = part.rows(rows).trimmed().to(device)
                scores = self._score(self.model, micro.tokens, micro.action, self.critic)
                if micro.old_logp is None:  # one step an iteration: the old policy is the present one
                    micro = micro.with_columns(old_logp=scores.logp.detach())
                per_token, metrics = self.algorithm.loss(scores, micro)
                w = weights[rows, : micro.action.shape[1]].to(device)
                if self._corrects() and not self.algorithm.demonstrations:
                    sampled_as = truncated_importance(
                        filled(micro.old_logp, "old_logp"), micro.behaviour_logp, self.config.importance_cap
                    )
                    w, metrics = w * sampled_as, metrics | {"importance_weight": sampled_as}
                loss = (w * per_token)[micro.action].sum()
                self.accelerator.backward(loss)
                total += loss.detach()
                apart = scores.logp.detach() - micro.behaviour_logp
                measured.append((metrics | (_agreement(apart) if first else {}), micro.action))
        for metrics, at in measured:  # only now: a pass that ran out of memory is done again
            tally.add(metrics, at)
        if processes > 1:  # one message with everything in it
            grads = [p.grad for p in self.parameters.values() if p.grad is not None]
            summed = self.accelerator.reduce(_flat([*grads, total.float()]), "sum")
            nn.utils.vector_to_parameters(summed[:-1], grads)
            total = summed[-1]
        return float(total)

    @torch.no_grad()
    def _drift(self, batch: Batch) -> dict[str, float]:
        """How far the update moved the policy, and its entropy now, on a few rows spread over the batch."""
        rows = torch.linspace(0, batch.size - 1, min(batch.size, MONITORED_ROWS)).long()
        some = batch.rows(rows).trimmed()
        scores = self._scores(self.model, some.tokens, some.action)
        d = (scores.logp - some.behaviour_logp)[some.action].clamp(-20, 20)
        return {"kl": float((d.exp() - 1 - d).mean()), "entropy": float(scores.entropy[some.action].mean())}

    # -- pieces ----------------------------------------------------------------------------------------------

    def _score(self, model: PreTrainedModel, tokens: Tensor, action: Tensor, critic: Critic | None) -> Scores:
        """Scores one micro-batch that is on the device."""
        with self.accelerator.autocast():
            bonus = self.algorithm.entropy > 0
            return score(
                model, tokens, action, temperature=self.config.temperature, critic=critic, entropy_grad=bonus
            )

    @torch.no_grad()
    def _scores(
        self, model: PreTrainedModel, tokens: Tensor, action: Tensor, critic: Critic | None = None
    ) -> Scores:
        """Scores any number of rows ``[B,T]`` without gradient; the result is on the CPU."""
        whole = Scores(*(torch.zeros(action.shape) for _ in range(2 if critic is None else 3)))
        lengths = _lengths(action)
        for index in self._micro_batches(tokens, action):
            rows = torch.from_numpy(index)
            width = int(lengths[rows].max())
            t, a = (x[rows, :width].to(self.accelerator.device) for x in (tokens, action))
            for out, part in zip(whole, self._score(model, t, a, critic)):
                if out is not None and part is not None:
                    out[rows, :width] = part.cpu()
        return whole

    def _micro_batches(self, tokens: Tensor, action: Tensor) -> list[NDArray[np.int64]]:
        """Rows that are scored at once: those that begin alike where that spares work, else those of one length."""
        lengths = _lengths(action).numpy()
        if on_tree(decoder(self.model)):  # the last action token is chosen, and not read
            return tree_buckets(tokens.numpy(), lengths - 1, self.micro_tokens)
        return buckets(lengths, self.micro_tokens)

    def _minibatches(self, size: int) -> Iterator[Tensor]:
        """Row indices of each optimiser step."""
        for epoch in range(self.algorithm.epochs):
            order = torch.arange(size)
            if self.algorithm.minibatches > 1:
                seed = derive_seed(self.config.seed, "minibatches", self.step, epoch)
                order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            yield from (rows for rows in order.tensor_split(self.algorithm.minibatches) if len(rows))

    def _flops(self, data: Minibatch, keep: Tensor) -> float:
        """Operations that the model needs for the gradients of an update."""
        rows = _live(data, loss_weights(data, keep, self.algorithm), self.algorithm)
        action = data.action[rows]
        flops = training_flops(size_of(self.model), _lengths(action).tolist(), int(action.sum()))
        return self.algorithm.epochs * flops

    def _peak(self) -> float | None:
        """Operations a second that the devices of all processes promise; ``None`` if they are not known."""
        one = peak(self.accelerator.device, self.config.precision)
        return None if one is None else self.accelerator.num_processes * one

    def _set_learning_rate(self) -> float:
        """Sets this update's learning rates; returns the policy's."""
        c = self.config
        factor = self.damping * learning_rate_factor(self.step, c.updates, c.schedule, c.warmup)
        peaks = {"model": 0.0 if self._warms_up() else c.learning_rate, "critic": c.critic_learning_rate}
        for group in self.adam.param_groups:
            group["lr"] = factor * peaks[group["module"]]
        return factor * peaks["model"]

    def _corrects(self) -> bool:
        """Whether another than this learner's policy sampled, as far as one can know before the update."""
        return self.config.engine != "builtin" or self.mismatch > self.config.mismatch_limit

    def _warms_up(self) -> bool:
        return self.critic is not None and self.step < self.config.critic_warmup

    def _forget_moments(self) -> None:
        """Leaves no momentum from gradients of an untrained critic: after the warm-up the policy begins afresh."""
        for parameter in self.model.parameters():
            self.adam.state.pop(parameter, None)

    def _damp(self, kl: float) -> None:
        if self.config.kl_limit is not None:
            self.damping = self.damping / 2 if kl > self.config.kl_limit else min(1.0, self.damping * 1.1)

    def _clip(self, owner: str) -> float:
        """Clips the gradient of one module; returns its norm before."""
        members = [p for name, p in self.parameters.items() if name.startswith(f"{owner}.")]
        return float(torch.nn.utils.clip_grad_norm_(members, self.config.max_grad_norm))

    def _shrink(self, error: BaseException) -> None:
        """Halves the micro-batch after memory ran out.

        Raises:
            CapacityError: If it cannot be halved any more.
        """
        if self.micro_tokens <= 1:
            raise CapacityError(
                f"Expected one row to fit into memory, but even one does not: {error}. Use shorter episodes "
                "(max_turns, max_turn_tokens), gradient_checkpointing, or a smaller model."
            ) from error
        self.micro_tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- saving and restoring --------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything that the next update depends on: tensors by part, and a JSON-plain rest."""
        states = self.adam.state_dict()["state"]
        moments = {
            f"{name}/{key}": value
            for index, name in enumerate(self.parameters)
            for key, value in states.get(index, {}).items()
        }
        tensors = {owner: tensors_of(module) for owner, module in self.modules.items()}
        tensors["optimiser"] = moments | {"torch_rng": torch.get_rng_state()}
        scaler = self.accelerator.scaler
        return tensors, {
            "step": self.step,
            "skipped": self.guard.skipped,
            "in_a_row": self.guard.in_a_row,
            "damping": self.damping,
            "micro_tokens": self.micro_tokens,
            "statistics": self.statistics,
            "mismatch": self.mismatch,
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a snapshot as if nothing had happened.

        Raises:
            CheckpointError: If it is of another model, critic or optimiser.
        """
        for owner, module in self.modules.items():
            fill_tensors(tensors_of(module), checkpoint.part(owner), f"{checkpoint.path}, part {owner!r}")
        saved = dict(checkpoint.part("optimiser"))
        torch.set_rng_state(saved.pop("torch_rng"))
        index = {name: i for i, name in enumerate(self.parameters)}
        states: dict[int, dict[str, Tensor]] = {}
        for path, value in saved.items():
            name, _, key = path.rpartition("/")
            if name not in index:
                raise CheckpointError(
                    f"{checkpoint.path} has moments of {name!r}; this run knows no such parameter."
                )
            states.setdefault(index[name], {})[key] = value
        self.adam.load_state_dict(self.adam.state_dict() | {"state": states})
        state = checkpoint.state["learner"]
        self.step, self.damping, self.micro_tokens = state["step"], state["damping"], state["micro_tokens"]
        self.guard = NanGuard(skipped=state["skipped"], in_a_row=state["in_a_row"])
        self.statistics, self.mismatch = dict(state["statistics"]), state.get("mismatch", 0.0)  # older ones have none
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _accelerator(config: LearnerConfig) -> Accelerator:
    names = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    # Said aloud where there is none: accelerate forms a group of processes on the CPU only if told to use it.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    try:
        return Accelerator(mixed_precision=names[config.precision], cpu=cpu)
    except ValueError as error:
        raise ConfigError(
            f"precision={config.precision!r} and device={config.device!r} cannot be had here: {error} "
            "A process keeps the first precision and device it trained with; use a new process."
        ) from error


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _lengths(action: Tensor) -> Tensor:
    """``[B]`` columns of each row up to its last action token; what comes after cannot matter."""
    return (action * torch.arange(1, action.shape[1] + 1)).amax(1)


def _live(part: Minibatch, weights: Tensor, algorithm: Algorithm) -> Tensor:
    """Indices of the rows with any gradient: the others need no pass, and change nothing by it."""
    pulled = algorithm.kl.beta > 0 or algorithm.entropy > 0 or not algorithm.zero_advantage_is_zero_loss
    acts = weights > 0 if pulled else weights * part.advantage != 0
    if part.critic_at is not None:
        acts = acts | (part.critic_at & (weights > 0))
    return acts.any(1).nonzero().squeeze(1)


def _agreement(apart: Tensor) -> dict[str, Tensor]:
    """Sampler against learner before the first step, per token: 1 and 0 if they are the same policy."""
    return {"ratio_first": apart.exp(), "mismatch": apart.abs()}


def _groups(batch: Batch, episodes: Sequence[TokenEpisode]) -> dict[str, float]:
    """How much the groups can teach: counts, and the share of those whose returns differ."""
    reward, valid = clean_rewards(batch.reward, batch.n_turns)
    report = group_report(reward.sum(1), batch.group, valid)
    empty = {episode.group for episode in episodes} - set(batch.group.tolist())
    named = {name: report[name] for name in ("groups", "singleton_groups", "informative_groups")}
    return {**named, "empty_groups": float(len(empty))}
