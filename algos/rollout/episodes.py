"""Token episodes: what one conversation leaves behind for training, and how many of them become a batch.

Ids, behaviour log-probabilities and the action mask travel together from the sampler to the loss; nothing is
decoded and encoded again on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from algos.base import Batch
from convgym.errors import ConfigError


@dataclass(frozen=True, eq=False)
class TokenEpisode:
    """One conversation as tokens. It ends with the last sampled token.

    Attributes:
        ids: Tokens, int64 [T].
        logp: Log-probability of each sampled token under the policy and temperature that sampled it,
            float32 [T]; 0 off action.
        action: True where the policy sampled the token, bool [T].
        turn: Index of the agent turn a sampled token belongs to, int64 [T]; -1 off action.
        rewards: Reward that turn k brought, float32 [K].
        state_keys: Hash of the environment's abstract state before turn k, int64 [K]; 0 = none.
        group: Id of the group: episodes that share the scenario and the user's streams.
        env_seed: Seed of the environment's reset.
        sample_seed: Seed of the token sampler.
        version: Version of the policy that sampled it.
        terminated: The conversation reached an end of its own.
        judged: The environment judged and paid for the end state, also where a limit cut the conversation.
        truncated: A limit cut it (turns, characters, context).
        end_reason: The environment's reason, or ``"context_full"``.
        success: The environment's verdict.
        score: Graded outcome in [0, 1].
        cost: Sum of the policy-violation costs.
        understood: Share of turns that the environment understood.
        cut_turns: Turns that the token cap or the context stopped.
        reward_terms: Named reward parts, summed over the episode.
        messages: The whole transcript, for viewers; never fed to the model.

    Raises:
        ConfigError: at construction, if the columns contradict each other.
    """

    ids: NDArray[np.int64]
    logp: NDArray[np.float32]
    action: NDArray[np.bool_]
    turn: NDArray[np.int64]
    rewards: NDArray[np.float32]
    state_keys: NDArray[np.int64]
    group: int
    env_seed: int
    sample_seed: int
    version: int = 0
    terminated: bool = True
    judged: bool = False
    truncated: bool = False
    end_reason: str = ""
    success: bool = False
    score: float = 0.0
    cost: float = 0.0
    understood: float = 1.0
    cut_turns: int = 0
    reward_terms: Mapping[str, float] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("ids", "logp", "action", "turn")}
        if len(set(shapes.values())) > 1 or self.ids.ndim != 1:
            raise ConfigError(f"TokenEpisode: expected ids, logp, action and turn of one length [T], got {shapes}.")
        if self.rewards.ndim != 1 or self.rewards.shape != self.state_keys.shape:
            found = f"{self.rewards.shape} and {self.state_keys.shape}"
            raise ConfigError(f"TokenEpisode: expected rewards and state_keys of one length [K], got {found}.")
        if self.action.dtype != np.bool_:
            raise ConfigError(
                f"TokenEpisode.action is {self.action.dtype}, expected bool: a mask says which, not how much; "
                "write `mask > 0`."
            )
        if not np.array_equal(self.turn >= 0, self.action):
            raise ConfigError("TokenEpisode.turn: expected a turn exactly where action is true, and -1 elsewhere.")
        if self.turn.max(initial=-1) >= len(self.rewards):
            found = f"turn {self.turn.max()} and {len(self.rewards)} rewards"
            raise ConfigError(f"TokenEpisode.turn: expected one reward for each turn, got {found}.")
        if self.action[:1].any():
            raise ConfigError(
                "TokenEpisode.action: the first token has nothing before it, so the policy cannot have sampled it; "
                "begin with the prompt, or at least with one observed token."
            )

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of the turn rewards."""
        return float(self.rewards.sum(dtype=np.float64))


def collate(episodes: Sequence[TokenEpisode], pad_id: int = 0) -> Batch:
    """Stacks episodes into one right-padded batch on the CPU, in the order given.

    Args:
        episodes: At least one episode.
        pad_id: Token at the padded positions; they are never action, so any legal id does.

    Returns:
        A ``Batch`` of B rows, T = longest row, K = most turns; the learner's fields are ``None``.
    """
    if not episodes:
        raise ValueError("collate needs at least one episode, got none")
    n_tokens = max(len(e.ids) for e in episodes)  # T
    n_turns = max(len(e.rewards) for e in episodes)  # K

    def rows(name: str, width: int, fill: float, dtype: torch.dtype) -> torch.Tensor:
        out = torch.full((len(episodes), width), fill, dtype=dtype)
        for row, episode in zip(out, episodes):
            values = torch.from_numpy(getattr(episode, name))
            row[: len(values)] = values
        return out

    return Batch(
        tokens=rows("ids", n_tokens, pad_id, torch.int64),
        action=rows("action", n_tokens, False, torch.bool),
        turn=rows("turn", n_tokens, -1, torch.int64),
        reward=rows("rewards", n_turns, 0.0, torch.float32),
        n_turns=torch.tensor([len(e.rewards) for e in episodes]),
        group=torch.tensor([e.group for e in episodes]),
        # A row that is both (the environment's end fell on its limit) has an end of its own: no bootstrap.
        terminated=torch.tensor([e.terminated for e in episodes]),
        judged=torch.tensor([e.judged for e in episodes]),
        state_key=rows("state_keys", n_turns, 0, torch.int64),
        version=torch.tensor([e.version for e in episodes]),
        behaviour_logp=rows("logp", n_tokens, 0.0, torch.float32),
    )


def buckets(lengths: Sequence[int] | NDArray[np.int64], token_budget: int) -> list[NDArray[np.int64]]:
    """Splits rows into micro-batches of similar length, so that little of a micro-batch is padding.

    Args:
        lengths: Tokens in each row.
        token_budget: Most tokens in a micro-batch, padding included (rows x longest row). A row that is
            longer than the budget gets a micro-batch of its own.

    Returns:
        Index arrays that hold every row exactly once, longest rows first (so that memory runs out, if it
        does, at the beginning); ties keep their order.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    out: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, int(sizes[order[start]])))
        out.append(order[start : start + rows])
        start += rows
    return out
