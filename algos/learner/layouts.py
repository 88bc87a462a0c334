"""Another layout of the same experience: a row for each turn instead of a row for each conversation.

Some trainers cut a conversation into its turns: each turn's row holds everything that was said before as context,
and only that turn's tokens as action. The layout is no algorithm: with the advantages and the weights that the
*conversations* were given, every loss that looks at one token at a time has the same value and the same gradient in
both layouts. Where the layouts of other trainers differ in what they learn, it is because statistics or weights were
taken over rows: a conversation of six turns then counts as six episodes.

A ratio of the whole sequence (``gspo``, ``rloo``, ``gmpo``, ``topr``) is no loss of one token: cut into turns, the
"sequence" is the turn, and ``ratio="sequence"`` becomes ``ratio="turn"``. At ratio 1, so in a single optimiser step,
the gradients agree all the same.

Axes: B rows, N turns of all rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from algos.base import Minibatch


def per_turn(data: Minibatch, weights: Tensor) -> tuple[Minibatch, Tensor]:
    """Cuts judged conversations into their turns.

    A new row keeps its conversation's own columns (reward, number of turns, group, ...), because whatever is counted
    per episode stays what it was; of the columns per token it keeps its turn's, and of the tokens all up to the
    turn's last one. Turns without action tokens have no row.

    Args:
        data: Rows with their credit.
        weights: [B,T] weights of the tokens, taken over the conversations.

    Returns:
        The N rows, in the order of conversations and turns; [N,T'] weights.
    """
    turns = int(data.turn.max()) + 1 if data.turn.numel() else 0
    spoken = torch.stack([(data.turn == k).any(1) for k in range(turns)], 1) if turns else data.action[:, :0]
    row, turn = spoken.nonzero(as_tuple=True)  # [N]
    cut = data.rows(row)
    own = cut.turn == turn[:, None]  # [N,T]
    said = own.flip(1).cummax(1).values.flip(1)  # every column up to the turn's last token
    columns: dict[str, Any] = {
        name: _where(own, getattr(cut, name))
        for name in sorted(cut._per_token() - {"tokens", "turn", "action"})
        if getattr(cut, name) is not None
    }
    columns |= {"tokens": _where(said, cut.tokens), "action": own, "turn": torch.where(own, cut.turn, -1)}
    cut = cut.with_columns(**columns).trimmed()  # the reward stays the conversation's: most turns of it have no token
    return cut, _where(own, weights[row])[:, : cut.action.shape[1]]


def _where(mask: Tensor, x: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros_like(x))
