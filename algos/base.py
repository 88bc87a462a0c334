"""What an algorithm is: a frozen dataclass whose fields are its hyperparameters, and two pure functions.

``credit`` looks at a whole iteration without gradient and says how much each sampled token deserves; ``loss``
turns fresh scores into a loss per token. Everything else (tokens, models, micro-batches, optimisers, logging)
belongs to the learner, which never asks which algorithm it runs.

The learner's side of the bargain:

1. It fills ``Batch.ref_logp`` if ``"reference" in needs``, ``value`` and ``bootstrap`` if ``"critic"``,
   ``greedy_return`` if ``"greedy"``, ``old_entropy`` if ``"entropy"``; with ``"group"`` it
   collects groups of two or more episodes.
2. It hands ``credit`` the state that the last call returned (``Batch.state``; ``{}`` at the start), keeps
   ``Credit.state``, and writes it into the checkpoint as JSON. Running baselines live there and nowhere else.
3. It computes ``w = loss_weights(batch, credit.keep, algorithm)`` once over all rows of an optimiser step, and adds
   ``(w * loss)[action].sum()`` for each micro-batch. It never divides again. Where nothing weighs, it takes no step.
4. Before ``loss`` it fills ``old_logp``: the log-probabilities under the policy before the first optimiser
   step of the iteration. Where there is only one step they are ``scores.logp.detach()``.
5. It averages each per-token metric over the kept action tokens.

Axes: B rows, b rows of a micro-batch, T tokens, K turns.
"""

from __future__ import annotations

import dataclasses
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from algos.checks import check, check_types, check_unused, known_fields
from convgym.errors import ConfigError

Reduce = Literal["token", "seq", "const", "seq_sum", "prompt", "turn"]
Placement = Literal["reward_k1", "loss_k2", "loss_k3", "loss_k3_is"]
Need = Literal["critic", "reference", "group", "greedy", "entropy"]


@dataclass(frozen=True)
class Batch:
    """One iteration of experience, without gradient; a row is one conversation.

    ``logp[:, t]`` is the log-probability of ``tokens[:, t]`` given the tokens before it, and ``value[:, t]``
    is the critic's value before token ``t``. Both mean something only where ``action`` is true, and are 0
    elsewhere. A row's last token is an action token: what the user says after the end is not part of the row.

    Columns that contradict each other cannot be built. What is only bad luck can (a reward that is no number, a group
    of one, a row without an action token): ``docs/concepts/bad-input.md`` says what becomes of it.

    Raises:
        ConfigError: at construction, for a shape, a type or a number that contradicts the others; it names the place.
    """

    tokens: Tensor  # [B,T] int64, right-padded
    action: Tensor  # [B,T] bool, token sampled by the policy
    turn: Tensor  # [B,T] int64, turn index, -1 off action
    reward: Tensor  # [B,K] reward that turn k brought, 0 past the last turn
    n_turns: Tensor  # [B] int64
    group: Tensor  # [B] int64, any ids
    terminated: Tensor  # [B] bool; a row that is not terminated was truncated
    state_key: Tensor  # [B,K] int64, hash of the env's abstract state before turn k, 0 = none
    version: Tensor  # [B] int64, policy version that sampled it
    behaviour_logp: Tensor  # [B,T] as the sampler saw it
    # filled by the learner, only when `needs` asks
    old_logp: Tensor | None = None  # [B,T]
    ref_logp: Tensor | None = None  # [B,T]
    value: Tensor | None = None  # [B,T]
    bootstrap: Tensor | None = None  # [B] value after the last token
    greedy_return: Tensor | None = None  # [B] return of the greedy episode of the row's scenario, NaN without one
    old_entropy: Tensor | None = None  # [B,T] entropy of the policy before the first step
    judged: Tensor | None = None  # [B] bool, the env paid for the end state although a limit cut the row
    state: Mapping[str, float] = field(default_factory=dict)  # what the last `credit` returned

    def __post_init__(self) -> None:
        """Refuses columns that contradict each other."""
        self._check_form()
        self._check_numbers()

    def with_columns(self, **columns: Any) -> Self:
        """The same batch with other columns, for what is computed from a batch that has been looked at.

        Shapes and types are compared again; numbers are not, because that would wait for the device at each
        micro-batch. ``dataclasses.replace`` looks at everything.
        """
        unknown = sorted(columns.keys() - vars(self).keys())
        if unknown:
            raise TypeError(f"{type(self).__name__} has no column {unknown[0]!r}")
        return self._trusted(vars(self) | columns)

    @classmethod
    def _trusted(cls, columns: Mapping[str, Any]) -> Self:
        made = object.__new__(cls)
        vars(made).update(columns)
        made._check_form()
        return made

    def _check_form(self) -> None:
        """Shapes and types: nothing here reads a number."""
        for name, axes in (("action", "[B,T]"), ("reward", "[B,K]")):
            if getattr(getattr(self, name), "ndim", None) != 2:
                raise self._refusal(name, f"is {_form(getattr(self, name))}, expected a tensor {axes}.")
        rows, width, turns = *self.action.shape, self.reward.shape[1]
        dtypes = self._dtypes()
        for name, shape in self._shapes(rows, width, turns).items():
            tensor, dtype = getattr(self, name), dtypes.get(name)
            if tensor is None and getattr(type(self), name, ...) is None:
                continue  # nobody has filled it
            if not isinstance(tensor, Tensor):
                raise self._refusal(name, f"is {_form(tensor)}, expected a tensor {shape}.")
            if tuple(tensor.shape) != shape:
                sizes = f"(B={rows}, T={width}, K={turns})"
                raise self._refusal(name, f"has shape {tuple(tensor.shape)}, expected {shape} {sizes}.")
            if dtype is None and not tensor.is_floating_point():
                raise self._refusal(name, f"is {tensor.dtype}, expected floating point; convert it with `.float()`.")
            if dtype is torch.bool and tensor.dtype != dtype:
                how = "a mask says which, not how much; write `mask > 0`"
                raise self._refusal(name, f"is {tensor.dtype}, expected torch.bool: {how}.")
            if dtype is torch.int64 and tensor.dtype != dtype:
                raise self._refusal(name, f"is {tensor.dtype}, expected torch.int64; convert it with `.long()`.")

    def _check_numbers(self) -> None:
        """One pass over what the sampler says, and one question to the device."""
        shape, turns = tuple(self.action.shape), self.reward.shape[1]
        if 0 in (*shape, turns):
            expected = "expected at least one row, one token and one turn"
            raise self._refusal("action", f"has shape {shape} with K={turns}, {expected}.")
        wrong = self._wrong_numbers()
        found = torch.stack([mask.any() for _, mask, _ in wrong]).tolist()
        if any(found):
            name, mask, expected = wrong[found.index(True)]
            place = mask.nonzero()[0].tolist()
            number = getattr(self, name)[tuple(place)].item()
            raise self._refusal(f"{name}[{', '.join(map(str, place))}]", f"is {number}, expected {expected}.")

    def _wrong_numbers(self) -> list[tuple[str, Tensor, str]]:
        """Column, where it is wrong (in the column's shape), and what was expected there."""
        action, turn, size, turns = self.action, self.turn, self.n_turns[:, None], self.reward.shape[1]
        real = torch.arange(turns, device=turn.device) < size  # [B,K]
        said = torch.zeros(len(turn), turns + 1, dtype=torch.bool, device=turn.device)
        said = said.scatter(1, (turn + 1).clamp(0, turns), True)[:, 1:]  # [B,K] turns that have a token
        off_place = torch.where(action, (turn < 0) | (turn >= size), turn != -1)
        sampled = "a finite number: the token was sampled"
        wrong = [
            ("tokens", self.tokens < 0, "an id of the vocabulary, in padding too: no id means `ignore`"),
            ("n_turns", (self.n_turns < 1) | (self.n_turns > turns), f"1 to K = {turns}"),
            ("turn", off_place, "0 to n_turns - 1 where action is true, and -1 where it is not"),
            ("turn", action & (turn < turn.cummax(1).values), "turns in order: none goes on after the next has begun"),
            ("behaviour_logp", action & ~self.behaviour_logp.isfinite(), sampled),
            ("reward", real & ~said & action.any(1)[:, None], "no turn here, as no action token is of this turn"),
        ]
        if self.old_logp is not None:
            wrong.append(("old_logp", action & ~self.old_logp.isfinite(), sampled))
        return wrong

    def _refusal(self, name: str, fault: str) -> ConfigError:
        hint = "algos.rollout.episodes.collate builds batches from conversations."
        return ConfigError(f"{type(self).__name__}.{name} {fault} {hint}")

    def _shapes(self, rows: int, width: int, turns: int) -> dict[str, tuple[int, ...]]:
        per_token = ("tokens", "action", "turn", "behaviour_logp", "old_logp", "ref_logp", "value", "old_entropy")
        per_row = ("n_turns", "group", "terminated", "version", "bootstrap", "greedy_return", "judged")
        shapes: dict[str, tuple[int, ...]] = {"reward": (rows, turns), "state_key": (rows, turns)}
        return shapes | dict.fromkeys(per_token, (rows, width)) | dict.fromkeys(per_row, (rows,))

    def _dtypes(self) -> dict[str, torch.dtype]:
        """Of the columns that are no floating point numbers."""
        whole = dict.fromkeys(("tokens", "turn", "n_turns", "group", "state_key", "version"), torch.int64)
        return whole | dict.fromkeys(("action", "terminated", "judged"), torch.bool)

    @property
    def size(self) -> int:
        """Number of rows, B."""
        return int(self.action.shape[0])

    @property
    def settled(self) -> Tensor:
        """[B] bool, rows after which nothing is to come: V(s_T) on top of a judged end would pay it twice."""
        return self.terminated if self.judged is None else self.terminated | self.judged

    def rows(self, index: Tensor) -> Self:
        """The rows named by ``index`` ([b] int64, or [B] bool), all columns kept."""
        return self._map(lambda tensor: tensor[index])

    def trimmed(self) -> Self:
        """The same rows without the columns of right padding that all of them share."""
        columns = self.action.any(0).nonzero()
        width = int(columns[-1]) + 1 if columns.numel() else 0
        return self._map(lambda tensor: tensor[:, :width], self._per_token())

    def to(self, device: torch.device | str) -> Self:
        """The same batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device))

    def _per_token(self) -> frozenset[str]:
        return frozenset(n for n, shape in self._shapes(-1, -2, -3).items() if shape == (-1, -2))

    def _map(self, change: Callable[[Tensor], Tensor], names: frozenset[str] | None = None) -> Self:
        tensors: dict[str, Any] = {
            f.name: change(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor) and (names is None or f.name in names)
        }
        return self.with_columns(**tensors)


def _form(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class Credit(NamedTuple):
    """What ``Algorithm.credit`` found out about a batch, without gradient.

    Attributes:
        advantage: [B,T], 0 off action.
        target: [B,T] regression target of the critic.
        critic_at: [B,T] bool, where the critic trains; a part of ``action``.
        keep: [B] bool, rows that train; ``None`` keeps all. A row that is not kept weighs nothing, neither in
            the loss nor in its normaliser.
        state: Running statistics, to be given to the next call as ``Batch.state``. JSON-able.
        metrics: Scalars for the log.
    """

    advantage: Tensor
    target: Tensor | None = None
    critic_at: Tensor | None = None
    keep: Tensor | None = None
    state: Mapping[str, float] = types.MappingProxyType({})
    metrics: Mapping[str, float] = types.MappingProxyType({})


class Scores(NamedTuple):
    """What the model says now about the rows of a micro-batch, with gradient; 0 off action.

    Attributes:
        logp: [b,T] log-probabilities at the sampling temperature.
        entropy: [b,T] entropy of the whole distribution, in nats.
        value: [b,T] the critic's value before each token, if there is a critic.
    """

    logp: Tensor
    entropy: Tensor
    value: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Minibatch(Batch):
    """Some rows of a batch, together with their credit."""

    advantage: Tensor  # [b,T]
    target: Tensor | None = None  # [b,T]
    critic_at: Tensor | None = None  # [b,T] bool

    @classmethod
    def of(cls, batch: Batch, credit: Credit) -> Minibatch:
        """All rows of ``batch`` with their credit; take micro-batches from it with ``rows``.

        Raises:
            ConfigError: if the credit has not the form that ``Credit`` promises.
        """
        keep = credit.keep
        if keep is not None and (keep.dtype != torch.bool or keep.shape != (batch.size,)):
            raise ConfigError(
                f"Credit.keep is {keep.dtype} of shape {tuple(keep.shape)}, expected torch.bool of shape "
                f"({batch.size},): it says which rows train, not how much. Write `keep > 0`, or scale the advantage."
            )
        columns = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
        own = {"advantage": credit.advantage, "target": credit.target, "critic_at": credit.critic_at}
        return cls._trusted(columns | own)

    def _shapes(self, rows: int, width: int, turns: int) -> dict[str, tuple[int, ...]]:
        own = dict.fromkeys(("advantage", "target", "critic_at"), (rows, width))
        return super()._shapes(rows, width, turns) | own

    def _dtypes(self) -> dict[str, torch.dtype]:
        return super()._dtypes() | {"critic_at": torch.bool}


@dataclass(frozen=True)
class KL:
    """A pull towards the reference policy, with ``d = logp - ref_logp``.

    Attributes:
        beta: Its weight; 0 switches it off, and then no reference is needed.
        placement: Which estimator, and where it acts.

            - ``reward_k1``: ``-beta d`` on each token's reward. The right gradient of the reverse KL.
            - ``loss_k2``: ``beta d^2 / 2`` in the loss. The right gradient while on-policy.
            - ``loss_k3``: ``beta (exp(-d) - 1 + d)`` in the loss. The usual choice; biased (while on-policy
              it has the gradient of the forward KL).
            - ``loss_k3_is``: the same times the ratio, through which the gradient flows. The right gradient.

    Raises:
        ConfigError: for an illegal value, and for k1 in the loss, whose expected gradient is zero.
    """

    beta: float = 0.0
    placement: Placement = "loss_k2"

    def __post_init__(self) -> None:
        """Refuses illegal settings."""
        if self.placement == "loss_k1":  # type: ignore[comparison-overlap]
            raise ConfigError(
                "KL.placement 'loss_k1' is refused: the expected gradient of k1 in the loss is zero. "
                "Use 'reward_k1' (k1 in the reward) or 'loss_k2'."
            )
        check_types(self)
        check(self, "beta", self.beta >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """Base of the zoo. Defaults of each algorithm are its published setting.

    Attributes:
        reduce: How tokens are weighted; see ``algos.maths.reductions``.
        epochs: Passes over the batch of an iteration.
        minibatches: Optimiser steps a pass.
        kl: Pull towards the reference policy.
        entropy: Weight of the entropy bonus.
        budget: L_max of ``reduce="const"``, the most tokens that the agent can say in a conversation; without it the
            longest row of the optimiser step is taken, which is a number that was sampled.
        top_entropy: Share of the action tokens that train, those at which the policy was least sure; Wang et al. 2025
            (arXiv 2506.01939) take 0.2. Not for algorithms with a critic, which learns at every token.

    Raises:
        ConfigError: at construction, for an illegal value or settings that contradict each other. Settings
            are refused, never rewritten.
    """

    zero_advantage_is_zero_loss: ClassVar[bool] = False  # set it where a row without advantage needs no pass
    demonstrations: ClassVar[bool] = False  # set it where nobody sampled the rows: `behaviour_logp` says nothing then

    reduce: Reduce = "token"
    epochs: int = 1
    minibatches: int = 1
    kl: KL = KL()
    entropy: float = 0.0
    budget: int | None = None
    top_entropy: float = 1.0

    def __post_init__(self) -> None:
        """Refuses illegal settings; a subclass calls this first and then adds its own checks."""
        check_types(self)
        check(self, "epochs", self.epochs >= 1, "at least 1")
        check(self, "minibatches", self.minibatches >= 1, "at least 1")
        check(self, "entropy", self.entropy >= 0, "at least 0")
        check(self, "budget", self.budget is None or self.budget >= 1, "at least 1, or None")
        check_unused(self, ("budget",), self.reduce == "const", "reduce is 'const'")
        every = self.top_entropy == 1 or "critic" not in self.needs
        check(self, "top_entropy", 0 < self.top_entropy <= 1 and every, "in (0, 1], and 1 with a critic")

    @property
    def needs(self) -> frozenset[Need]:
        """What the learner must supply. A subclass returns ``super().needs | {...}``."""
        reference: frozenset[Need] = frozenset({"reference"}) if self.kl.beta > 0 else frozenset()
        entropy: frozenset[Need] = frozenset({"entropy"}) if self.top_entropy < 1 else frozenset()
        return reference | entropy

    @abstractmethod
    def credit(self, batch: Batch) -> Credit:
        """Judges a whole iteration. Pure and without gradient."""

    @abstractmethod
    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-token loss [b,T], un-masked and un-reduced, and per-token metrics [b,T]. Pure.

        Keys of metrics that mean the same in every algorithm: ``kl`` (of the old policy from the present one,
        k3), ``kl_ref`` (of the present policy from the reference, k3), ``entropy``, ``ratio``,
        ``clip_share``, ``policy_loss``, ``value_loss``.
        """


def filled(tensor: Tensor | None, name: str) -> Tensor:
    """The tensor, or an error that says which input the learner left empty.

    Raises:
        ConfigError: if ``tensor`` is ``None``.
    """
    if tensor is None:
        raise ConfigError(f"`{name}` is empty: this algorithm needs it, and the learner must fill it first.")
    return tensor


def to_config(algorithm: Algorithm) -> dict[str, Any]:
    """The fields as a JSON-able dict: ``make(name, **to_config(a)) == a``."""
    return dataclasses.asdict(algorithm)


def from_config(cls: type[Algorithm], config: Mapping[str, Any]) -> Algorithm:
    """Builds ``cls`` from fields that may have been through JSON (``kl`` may be a dict).

    Raises:
        ConfigError: for an unknown field or an illegal value.
    """
    values = known_fields(cls, config)
    if isinstance(values.get("kl"), Mapping):
        values["kl"] = KL(**known_fields(KL, values["kl"]))
    return cls(**values)
