"""One normaliser: the weight of every token, computed once over the whole optimiser batch.

With these weights the loss of the batch is ``sum(w * loss)``, so it can be added up in any number of
micro-batches, in any order and with any padding, and its gradient stays the same.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algos.base import Algorithm, Batch, Reduce, filled
from algos.maths.advantages import turns_of


def loss_weights(
    batch: Batch, keep: Bool[Tensor, " B"] | None, algorithm: Algorithm
) -> Float[Tensor, "B T"]:
    """:func:`token_weights` as an algorithm wants them; see there."""
    at = None
    if algorithm.top_entropy < 1:
        at = surest_last(filled(batch.old_entropy, "old_entropy"), batch.action, keep, algorithm.top_entropy)
    return token_weights(batch, keep, algorithm.reduce, longest=algorithm.budget, at=at)


def surest_last(
    entropy: Float[Tensor, "B T"], action: Bool[Tensor, "B T"], keep: Bool[Tensor, " B"] | None, share: float
) -> Bool[Tensor, "B T"]:
    """Marks the ``share`` of the kept action tokens with the highest entropy, at least one; ties are all in. [B,T].

    Source: Wang et al. 2025 (arXiv 2506.01939), eq. 6.
    """
    counted = action if keep is None else action & keep[:, None]
    if not counted.any():
        return counted
    least = torch.quantile(entropy[counted].double(), 1 - share, interpolation="higher")
    return counted & (entropy >= least)


def token_weights(
    batch: Batch,
    keep: Bool[Tensor, " B"] | None = None,
    reduce: Reduce = "token",
    *,
    longest: int | None = None,
    at: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """Weight of each token of an optimiser batch; 0 off action and in rows that are not kept.

    N counts the kept action tokens, S the kept rows that have any, L_i those of row i:

    ========  =====================  ============================================================
    reduce    weight of a token      every ... weighs the same
    ========  =====================  ============================================================
    token     1 / N                  token (DAPO)
    seq       1 / (S L_i)            conversation (GRPO)
    const     1 / (S L_max)          token, by a constant that no sampled length can change (Dr. GRPO)
    seq_sum   1 / S                  token; the loss of a row is the sum over its tokens (RLOO)
    prompt    1 / (groups N_group)   group
    turn      1 / (turns len_turn)   turn
    ========  =====================  ============================================================

    Args:
        batch: The whole optimiser batch, never a micro-batch.
        keep: [B] bool, rows that train; ``None`` keeps all.
        reduce: One of the above.
        longest: L_max of ``const``: the most action tokens that an episode may have. Without it the longest
            kept row of the batch is taken, which makes the constant depend a little on what was sampled.
        at: [B,T] bool, the action tokens that train; ``None`` takes all.

    Returns:
        [B,T] in the dtype of ``behaviour_logp``. All zero when nothing is kept.
    """
    rows = batch.action.new_ones(batch.size) if keep is None else keep
    trained = batch.action if at is None else batch.action & at
    counted = trained & rows[:, None]  # the one mask of numerator and denominator
    length = counted.sum(1)  # [B]
    sequences = (length > 0).sum()
    if reduce == "token":
        count = length.sum().expand(batch.size)[:, None]
    elif reduce == "seq":
        count = (sequences * length)[:, None]
    elif reduce == "const":
        budget = length.amax() if longest is None else longest
        count = (sequences * budget).expand(batch.size)[:, None]
    elif reduce == "seq_sum":
        count = sequences.expand(batch.size)[:, None]
    elif reduce == "prompt":
        count = _tokens_of_group(batch.group, length)[:, None]
    else:
        count = _tokens_of_turn(batch.turn, counted)
    weight = 1 / count.to(batch.behaviour_logp.dtype)  # a count of 0 belongs to nobody who is counted
    return torch.where(counted, weight, torch.zeros_like(weight))


def _tokens_of_group(group: Int[Tensor, " B"], length: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """[B] number of groups with kept tokens, times the kept tokens of the row's group."""
    names, member = torch.unique(group, return_inverse=True)
    tokens = length.new_zeros(len(names)).index_add(0, member, length)
    return (tokens > 0).sum() * tokens[member]


def _tokens_of_turn(turn: Int[Tensor, "B T"], counted: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """[B,T] number of turns with kept tokens, times the kept tokens of the token's turn."""
    column = turn.clamp(min=0)
    tokens = turn.new_zeros(turn.shape[0], turns_of(turn)).scatter_add(1, column, counted.long())  # [B,K]
    return (tokens > 0).sum() * tokens.gather(1, column)
