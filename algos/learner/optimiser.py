"""AdamW's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    update: int, updates: int, schedule: Schedule = "constant", warmup: float = 0.0
) -> float:
    """What the learning rate is multiplied with at one update.

    It rises linearly over the warm-up, never from 0, and then stays, or falls linearly or as half a cosine
    to the 0 that it would reach just after the last planned update.

    Args:
        update: Index of the update, 0-based.
        updates: Planned number of updates.
        schedule: What follows the warm-up.
        warmup: Share of the updates that warm up, in [0, 1).

    Returns:
        A number in [0, 1], and above 0 while the plan lasts.
    """
    rising = round(warmup * updates)
    if update < rising:
        return (update + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    done = 1.0 if update >= updates else (update - rising) / (updates - rising)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def parameter_groups(modules: Mapping[str, nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: two a module, with and without weight decay.

    Norms, biases and embeddings are not decayed: pulling them to zero is no regularisation.

    Args:
        modules: Name -> module, e.g. ``{"model": ..., "critic": ...}``.
        weight_decay: Decay of the matrices.

    Returns:
        Groups with ``params``, ``names`` (``"model.lm_head.weight"``), ``module`` and ``weight_decay``. Tied
        parameters appear once, empty groups not at all.
    """
    groups: list[dict[str, Any]] = []
    for owner, module in modules.items():
        embedded = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        trained = [(f"{owner}.{name}", p) for name, p in module.named_parameters() if p.requires_grad]
        decays = {name for name, p in trained if p.ndim >= 2 and id(p) not in embedded}
        for wanted in (True, False):
            members = [(name, p) for name, p in trained if (name in decays) == wanted]
            if members:
                names, params = zip(*members)
                decay = weight_decay if wanted else 0.0
                groups.append(
                    {"params": list(params), "names": names, "module": owner, "weight_decay": decay}
                )
    return groups
